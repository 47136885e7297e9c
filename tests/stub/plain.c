/* Plain values of schemas: every property, of every choice the first, the least of what is allowed. */
#include <stdio.h>
#include <string.h>
#include "base/buf.h"
#include "base/chat.h"
#include "tests/stub/plain.h"

static json_t *value(const json_t *root, const json_t *schema, int depth);

static json_t *object_value(const json_t *root, const json_t *schema, int depth)
{
    json_t *o = json_object(), *property;
    const char *key;

    json_object_foreach(json_object_get(schema, "properties"), key, property)
        json_object_set_new(o, key, value(root, property, depth));
    return o;
}

static json_t *array_value(const json_t *root, const json_t *schema, int depth)
{
    json_int_t n = json_integer_value(json_object_get(schema, "minItems"));
    json_t *a = json_array();

    for (json_int_t i = 0; i < MAX(n, 1); i++)
        json_array_append_new(a, value(root, json_object_get(schema, "items"), depth));
    return a;
}

/* "#/$defs/name" */
static const json_t *referred(const json_t *root, const char *ref)
{
    char path[256], *rest = path, *name;

    if (*ref != '#')
        return NULL;
    snprintf(path, sizeof(path), "%s", ref + 1);
    while (root && (name = strsep(&rest, "/")))
        root = *name ? json_object_get(root, name) : root;
    return root;
}

static json_t *value(const json_t *root, const json_t *schema, int depth)
{
    const json_t *type = json_object_get(schema, "type"), *any = json_object_get(schema, "anyOf");
    const char *ref = json_string_value(json_object_get(schema, "$ref")), *t;

    if (depth > 16)
        return json_null();
    if (ref)
        return value(root, referred(root, ref), depth + 1);
    if (json_object_get(schema, "const"))
        return json_deep_copy(json_object_get(schema, "const"));
    if (json_object_get(schema, "enum"))
        return json_deep_copy(json_array_get(json_object_get(schema, "enum"), 0));
    if (any)
        return value(root, json_array_get(any, 0), depth + 1);
    t = json_string_value(json_is_array(type) ? json_array_get(type, 0) : type);
    if (!t || strcmp(t, "object") == 0)
        return object_value(root, schema, depth + 1);
    if (strcmp(t, "array") == 0)
        return array_value(root, schema, depth + 1);
    if (strcmp(t, "string") == 0)
        return json_string("plain");
    if (strcmp(t, "boolean") == 0)
        return json_true();
    if (strcmp(t, "integer") == 0 || strcmp(t, "number") == 0)
        return json_integer((json_int_t)json_number_value(json_object_get(schema, "minimum")));
    return json_null();
}

static char *value_text(const json_t *schema)
{
    json_t *v = value(schema, schema, 0);
    char *text = json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY);

    json_decref(v);
    return text;
}

static const char *role_of(const json_t *message)
{
    const char *s = json_string_value(json_object_get(message, "role"));

    return s ? s : "";
}

json_t *plain_calls(const json_t *body)
{
    const json_t *tools = json_object_get(body, "tools"), *choice = json_object_get(body, "tool_choice"), *tool,
                 *messages = json_object_get(body, "messages"),
                 *last = json_array_get(messages, json_array_size(messages) - 1);
    const char *word = json_string_value(choice), *asked = chat_last_user(messages),
               *named = json_string_value(json_object_get(json_object_get(choice, "function"), "name"));
    json_t *calls;
    size_t i;

    if (!json_array_size(tools) || (word && strcmp(word, "none") == 0) || strcmp(role_of(last), "tool") == 0)
        return NULL;
    calls = json_array();
    json_array_foreach(tools, i, tool) {
        const json_t *f = json_object_get(tool, "function");
        const char *name = json_string_value(json_object_get(f, "name"));
        char id[32], *arguments;

        if (named && strcmp(name, named) != 0)
            continue;
        snprintf(id, sizeof(id), "call_stub_%zu", i);
        arguments = value_text(json_object_get(f, "parameters"));
        json_array_append_new(calls, json_pack("{s:s, s:s, s:{s:s, s:s}}", "id", id, "type", "function", "function",
                                               "name", name, "arguments", arguments));
        free(arguments);
        if (!asked || !strstr(asked, "each") || json_is_false(json_object_get(body, "parallel_tool_calls")))
            break;
    }
    return calls;
}

char *plain_text(const json_t *body, const char *text)
{
    const json_t *format = json_object_get(body, "response_format"), *messages = json_object_get(body, "messages"), *m;
    const char *type = json_string_value(json_object_get(format, "type"));
    struct buf said = {.max = 1 << 20};
    size_t i;

    if (type && strcmp(type, "json_schema") == 0)
        return value_text(json_object_get(json_object_get(format, "json_schema"), "schema"));
    if (type && strcmp(type, "json_object") == 0)
        return strdup("{\"answer\":\"plain\"}");
    if (strcmp(role_of(json_array_get(messages, json_array_size(messages) - 1)), "tool") != 0)
        return strdup(text);
    json_array_foreach(messages, i, m)
        if (strcmp(role_of(m), "tool") == 0)
            buf_printf(&said, "%s%s", said.len ? " " : "The tools said: ",
                       json_string_value(json_object_get(m, "content")));
    return buf_take(&said);
}
