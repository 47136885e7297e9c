/* Tools, calls of them and answer formats, in OpenAI's shapes: read strictly into copies that hold what is documented
 * in chat.h and nothing else, and written back. */
#include <errno.h>
#include <string.h>
#include "base/chat_tools.h"

#define NAME_EXPECTED "expected 1 to 64 letters, digits, '_' or '-'"

static bool name_valid(const char *s)
{
    size_t n = s ? strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") : 0;

    return n >= 1 && n <= 64 && !s[n];
}

static const char *tool_name_of(const json_t *tool)
{
    return json_string_value(json_object_get(json_object_get(tool, "function"), "name"));
}

static bool tool_known(const json_t *tools, const char *name)
{
    const json_t *tool;
    size_t i;

    json_array_foreach(tools, i, tool)
        if (strcmp(tool_name_of(tool), name) == 0)
            return true;
    return false;
}

static bool is_function(const json_t *j)
{
    const char *type = json_string_value(json_object_get(j, "type"));

    return type && strcmp(type, "function") == 0;
}

/* A copy of the string or truth value `key`, where it is one. */
static int member_copy(json_t *to, const json_t *from, const char *key)
{
    json_t *v = json_object_get(from, key);

    return v && !json_is_null(v) ? json_object_set(to, key, v) : 0;
}

/* ---- Definitions ------------------------------------------------------------------------------------------------- */

static int tool_read(json_t *tools, const json_t *tool, size_t at, struct err *err)
{
    const json_t *f = json_object_get(tool, "function");
    json_t *parameters = json_object_get(f, "parameters"), *copy;
    const char *name = json_string_value(json_object_get(f, "name")), *ignored;
    struct err why;
    bool strict;
    int r;

    if (!is_function(tool))
        return err_set(err, -EINVAL, "tools[%zu].type: expected function; no other tools are supported", at);
    if (!json_is_object(f))
        return err_set(err, -EINVAL, "tools[%zu].function: expected an object", at);
    if (!name_valid(name))
        return err_set(err, -EINVAL, "tools[%zu].function.name: " NAME_EXPECTED, at);
    if (tool_known(tools, name))
        return err_set(err, -EINVAL, "tools[%zu].function.name: expected another name than the tools before it", at);
    if (parameters && !json_is_null(parameters) && !json_is_object(parameters))
        return err_set(err, -EINVAL, "tools[%zu].function.parameters: expected an object", at);
    if (json_read_string(f, "description", &ignored, &why) < 0 || json_read_bool(f, "strict", &strict, &why) < 0)
        return err_set(err, -EINVAL, "tools[%zu].function.%s", at, why.msg);

    /* No parameters is the same as an object without any. */
    copy = json_pack("{s:s, s:o}", "name", name, "parameters",
                     json_is_object(parameters) ? json_incref(parameters)
                                                : json_pack("{s:s, s:{}}", "type", "object", "properties"));
    r = copy ? member_copy(copy, f, "description") | member_copy(copy, f, "strict") : -1;
    r |= json_array_append_new(tools, json_pack("{s:s, s:o}", "type", "function", "function", copy));
    return r < 0 ? -ENOMEM : 0;
}

static int tools_read(struct chat_request *r, const json_t *body, struct err *err)
{
    const json_t *tools = json_object_get(body, "tools"), *tool;
    size_t i;

    if (!tools || json_is_null(tools))
        return 0;
    if (!json_is_array(tools) || json_array_size(tools) > CHAT_MAX_TOOLS)
        return err_set(err, -EINVAL, "tools: expected an array of at most %d tools", CHAT_MAX_TOOLS);
    if (!json_array_size(tools))
        return 0;
    r->tools = json_array();
    if (!r->tools)
        return -ENOMEM;
    json_array_foreach(tools, i, tool) {
        int x = tool_read(r->tools, tool, i, err);
        if (x < 0)
            return x;
    }
    return 0;
}

/* ---- The choice among them --------------------------------------------------------------------------------------- */

static const char *const choices[] = {
    [CHAT_TOOL_AUTO] = "auto", [CHAT_TOOL_NONE] = "none", [CHAT_TOOL_REQUIRED] = "required",
};

static int named_read(struct chat_request *r, const json_t *choice, struct err *err)
{
    const char *name = tool_name_of(choice);

    if (!is_function(choice) || !name)
        return err_set(err, -EINVAL, "tool_choice: expected auto, none, required or "
                                     "{\"type\":\"function\",\"function\":{\"name\":…}}");
    if (!tool_known(r->tools, name))
        return err_set(err, -EINVAL, "tool_choice.function.name: expected the name of one of the tools");
    r->tool_choice = CHAT_TOOL_NAMED;
    r->tool_name = strdup(name);
    return r->tool_name ? 0 : -ENOMEM;
}

static int choice_read(struct chat_request *r, const json_t *body, struct err *err)
{
    const json_t *choice = json_object_get(body, "tool_choice");
    const char *word = json_string_value(choice);

    if (!choice || json_is_null(choice))
        return 0;
    if (!word)
        return named_read(r, choice, err);
    for (size_t i = 0; i < ARRAY_SIZE(choices); i++)
        if (strcmp(word, choices[i]) == 0) {
            if (i == CHAT_TOOL_REQUIRED && !r->tools)
                return err_set(err, -EINVAL, "tool_choice: required needs tools");
            r->tool_choice = (enum chat_tool_choice)i;
            return 0;
        }
    return err_set(err, -EINVAL, "tool_choice: expected auto, none, required or a function");
}

/* ---- Calls ------------------------------------------------------------------------------------------------------- */

static int call_read(json_t *calls, const json_t *call, size_t at, size_t i, struct err *err)
{
    const json_t *f = json_object_get(call, "function"), *arguments = json_object_get(f, "arguments");
    const char *id = json_string_value(json_object_get(call, "id")), *name = tool_name_of(call);
    const json_t *type = json_object_get(call, "type");

    if (!json_is_object(call))
        return err_set(err, -EINVAL, "messages[%zu].tool_calls[%zu]: expected an object", at, i);
    if (!id || !*id || strlen(id) > CHAT_MAX_CALL_ID)
        return err_set(err, -EINVAL, "messages[%zu].tool_calls[%zu].id: expected a string of 1 to %d bytes", at, i,
                       CHAT_MAX_CALL_ID);
    if (type && !is_function(call))
        return err_set(err, -EINVAL, "messages[%zu].tool_calls[%zu].type: expected function", at, i);
    if (!name_valid(name))
        return err_set(err, -EINVAL, "messages[%zu].tool_calls[%zu].function.name: " NAME_EXPECTED, at, i);
    if (!json_is_string(arguments))
        return err_set(err, -EINVAL, "messages[%zu].tool_calls[%zu].function.arguments: expected a string", at, i);
    return json_array_append_new(calls, json_pack("{s:s, s:s, s:{s:s, s:O}}", "id", id, "type", "function", "function",
                                                  "name", name, "arguments", arguments)) < 0 ? -ENOMEM : 0;
}

int chat_calls_read(json_t **ret, const json_t *message, size_t at, struct err *err)
{
    const json_t *given = json_object_get(message, "tool_calls"), *call;
    cleanup(json_decrefp) json_t *calls = NULL;
    size_t i;

    if (given && !json_is_null(given) && (!json_is_array(given) || json_array_size(given) > CHAT_MAX_TOOLS))
        return err_set(err, -EINVAL, "messages[%zu].tool_calls: expected an array of at most %d calls", at,
                       CHAT_MAX_TOOLS);
    if (!json_array_size(given))
        return 0;
    calls = json_array();
    if (!calls)
        return -ENOMEM;
    json_array_foreach(given, i, call) {
        int r = call_read(calls, call, at, i, err);
        if (r < 0)
            return r;
    }
    *ret = TAKE(calls);
    return 0;
}

/* ---- The answer's format ----------------------------------------------------------------------------------------- */

static const char *const formats[] = {
    [CHAT_FORMAT_TEXT] = "text", [CHAT_FORMAT_JSON_OBJECT] = "json_object", [CHAT_FORMAT_JSON_SCHEMA] = "json_schema",
};

static int schema_read(struct chat_format *f, const json_t *j, struct err *err)
{
    json_t *schema = json_object_get(j, "schema");
    const char *name = json_string_value(json_object_get(j, "name")), *description = NULL;
    struct err why;

    if (!json_is_object(j))
        return err_set(err, -EINVAL, "response_format.json_schema: expected an object");
    if (!name_valid(name))
        return err_set(err, -EINVAL, "response_format.json_schema.name: " NAME_EXPECTED);
    if (!json_is_object(schema))
        return err_set(err, -EINVAL, "response_format.json_schema.schema: expected an object");
    if (json_read_string(j, "description", &description, &why) < 0 || json_read_bool(j, "strict", &f->strict, &why) < 0)
        return err_set(err, -EINVAL, "response_format.json_schema.%s", why.msg);
    f->schema = json_incref(schema);
    f->name = strdup(name);
    f->description = description ? strdup(description) : NULL;
    return f->name && !description == !f->description ? 0 : -ENOMEM;
}

static int format_read(struct chat_format *f, const json_t *body, struct err *err)
{
    const json_t *format = json_object_get(body, "response_format");
    const char *type = json_string_value(json_object_get(format, "type"));

    if (!format || json_is_null(format))
        return 0;
    for (size_t i = 0; type && i < ARRAY_SIZE(formats); i++)
        if (strcmp(type, formats[i]) == 0) {
            f->type = (enum chat_format_type)i;
            return i == CHAT_FORMAT_JSON_SCHEMA ? schema_read(f, json_object_get(format, "json_schema"), err) : 0;
        }
    return err_set(err, -EINVAL, "response_format.type: expected text, json_object or json_schema");
}

/* ---- All of it --------------------------------------------------------------------------------------------------- */

int chat_tools_read(struct chat_request *req, const json_t *body, struct err *err)
{
    bool parallel;
    int r = tools_read(req, body, err);

    if (r == 0)
        r = choice_read(req, body, err);
    if (r == 0)
        r = format_read(&req->format, body, err);
    if (r < 0)
        return r;
    r = json_read_bool(body, "parallel_tool_calls", &parallel, err);
    if (r > 0)
        req->parallel_tool_calls = parallel;
    return r < 0 ? r : 0;
}

static json_t *format_write(const struct chat_format *f)
{
    json_t *schema;

    if (f->type != CHAT_FORMAT_JSON_SCHEMA)
        return json_pack("{s:s}", "type", formats[f->type]);
    schema = json_pack("{s:s, s:O, s:b}", "name", f->name, "schema", f->schema, "strict", f->strict);
    if (f->description)
        json_object_set_new(schema, "description", json_string(f->description));
    return json_pack("{s:s, s:o}", "type", formats[f->type], formats[f->type], schema);
}

int chat_tools_write(json_t *body, const struct chat_request *req)
{
    int r = 0;

    if (req->tools)
        r |= json_object_set_new(body, "tools", json_deep_copy(req->tools));
    if (req->tool_choice == CHAT_TOOL_NAMED)
        r |= json_object_set_new(body, "tool_choice", json_pack("{s:s, s:{s:s}}", "type", "function", "function",
                                                                "name", req->tool_name));
    else if (req->tools && req->tool_choice != CHAT_TOOL_AUTO)
        r |= json_object_set_new(body, "tool_choice", json_string(choices[req->tool_choice]));
    if (req->tools && req->parallel_tool_calls >= 0)
        r |= json_object_set_new(body, "parallel_tool_calls", json_boolean(req->parallel_tool_calls));
    if (req->format.type != CHAT_FORMAT_TEXT)
        r |= json_object_set_new(body, "response_format", format_write(&req->format));
    return r;
}

void chat_tools_done(struct chat_request *req)
{
    json_decref(req->tools);
    free(req->tool_name);
    free(req->format.name);
    free(req->format.description);
    json_decref(req->format.schema);
}
