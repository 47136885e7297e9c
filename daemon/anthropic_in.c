/* From a body of Anthropic's Messages API to the one of chat completions, which chat.c then reads: blocks become text,
 * calls and results; what cannot be kept (images, documents, thinking, tools that run on a server) is refused by name.
 * Thinking blocks of earlier turns are dropped, as Anthropic's own servers do with all but the newest. */
#include <errno.h>
#include <string.h>
#include "daemon/anthropic.h"

#define INVALID(x, e, ...) anthropic_invalid(e, arena_printf(&(x)->arena, __VA_ARGS__))

int anthropic_invalid(struct request_error *e, const char *message)
{
    if (!message)
        return -ENOMEM;
    *e = (struct request_error){.http_status = 400, .type = "invalid_request_error", .code = "invalid_value",
                                .message = message};
    return -EINVAL;
}

static const char *text_of(const json_t *obj, const char *key)
{
    const char *s = json_string_value(json_object_get(obj, key));

    return s ? s : "";
}

static bool type_is(const json_t *block, const char *type)
{
    return strcmp(text_of(block, "type"), type) == 0;
}

static bool is_given(const json_t *v)
{
    return v && !json_is_null(v);
}

/* Taken over under the same name or another; what it may be is chat.c's to say. */
static int take(json_t *out, const char *as, const json_t *body, const char *name)
{
    json_t *v = json_object_get(body, name);

    return is_given(v) ? json_object_set(out, as, v) : 0;
}

/* A block that is not read where it stands: say so, by its name if that is one of the API's. */
static int block_refused(struct exchange *x, struct request_error *e, const char *at, size_t i, const json_t *block)
{
    static const char *const names[] = {
        "image", "document", "search_result", "container_upload", "server_tool_use", "web_search_tool_result",
        "tool_use", "tool_result",
    };

    for (size_t k = 0; k < ARRAY_SIZE(names); k++)
        if (type_is(block, names[k]))
            return INVALID(x, e, "%s.%zu.type: %s is not supported here", at, i, names[k]);
    return INVALID(x, e, "%s.%zu.type: expected text", at, i);
}

static int text_append(struct exchange *x, struct request_error *e, struct buf *text, const char *between,
                       const char *at, size_t i, const json_t *block)
{
    const json_t *s = json_object_get(block, "text");

    if (!json_is_string(s))
        return INVALID(x, e, "%s.%zu.text: expected a string", at, i);
    if (text->len && buf_puts(text, between) < 0)
        return -ENOMEM;
    return buf_append(text, json_string_value(s), json_string_length(s));
}

/* A string, or an array of nothing but text blocks; absent is empty. */
static int text_read(struct exchange *x, struct request_error *e, struct buf *text, const char *at,
                     const json_t *content)
{
    const json_t *block;
    size_t i;
    int r;

    if (!is_given(content))
        return 0;
    if (json_is_string(content))
        return buf_append(text, json_string_value(content), json_string_length(content));
    if (!json_is_array(content))
        return INVALID(x, e, "%s: expected a string or an array of blocks", at);
    json_array_foreach(content, i, block) {
        r = type_is(block, "text") ? text_append(x, e, text, "\n", at, i, block) : block_refused(x, e, at, i, block);
        if (r < 0)
            return r;
    }
    return 0;
}

/* A message of our shape; `more` is taken. */
static int message_add(json_t *messages, const char *role, const struct buf *text, json_t *more)
{
    json_t *m = json_pack("{s:s, s:s%}", "role", role, "content", text->len ? (char *)text->data : "", text->len);
    int r = json_array_append(messages, m);

    if (m && more)
        json_object_update(m, more);
    json_decref(more);
    json_decref(m);
    return r < 0 ? -ENOMEM : 0;
}

/* tool_use, into *calls. */
static int call_read(struct exchange *x, struct request_error *e, json_t *calls, const char *at, size_t i,
                     const json_t *block)
{
    const json_t *input = json_object_get(block, "input");
    cleanup(freep) char *arguments = NULL;

    if (!*text_of(block, "id") || !*text_of(block, "name"))
        return INVALID(x, e, "%s.%zu: expected an id and a name", at, i);
    if (!json_is_object(input))
        return INVALID(x, e, "%s.%zu.input: expected an object", at, i);
    arguments = json_dumps(input, JSON_COMPACT);
    if (!arguments)
        return -ENOMEM;
    return json_array_append_new(calls, json_pack("{s:s, s:s, s:{s:s, s:s}}", "id", text_of(block, "id"),
        "type", "function", "function", "name", text_of(block, "name"), "arguments", arguments));
}

static bool was_called(const json_t *messages, const char *id)
{
    const json_t *call;
    size_t i, k;

    for (i = json_array_size(messages); i-- > 0;)
        json_array_foreach(json_object_get(json_array_get(messages, i), "tool_calls"), k, call)
            if (strcmp(text_of(call, "id"), id) == 0)
                return true;
    return false;
}

static int result_read(struct exchange *x, struct request_error *e, json_t *messages, const char *at, size_t i,
                       const json_t *block)
{
    cleanup(buf_done) struct buf text = {.max = SIZE_MAX};
    const char *id = text_of(block, "tool_use_id");
    int r;

    if (!*id || !was_called(messages, id))
        return INVALID(x, e, "%s.%zu.tool_use_id: expected the id of a tool_use block in an earlier message", at, i);
    r = text_read(x, e, &text, arena_printf(&x->arena, "%s.%zu.content", at, i), json_object_get(block, "content"));
    return r < 0 ? r : message_add(messages, "tool", &text, json_pack("{s:s}", "tool_call_id", id));
}

/* Results come before what the user says beside them, as a chat completion wants them. */
static int user_read(struct exchange *x, struct request_error *e, json_t *messages, const char *at,
                     const json_t *content)
{
    cleanup(buf_done) struct buf text = {.max = SIZE_MAX};
    const json_t *block;
    bool results = false, words = json_array_size(content) == 0;
    size_t i;
    int r = 0;

    if (!json_is_array(content))
        r = text_read(x, e, &text, at, content);
    json_array_foreach(content, i, block) {
        if (type_is(block, "tool_result"))
            results = true, r = result_read(x, e, messages, at, i, block);
        else if (type_is(block, "text"))
            words = true, r = text_append(x, e, &text, "\n", at, i, block);
        else
            r = block_refused(x, e, at, i, block);
        if (r < 0)
            break;
    }
    if (r < 0 || (results && !words))
        return r;
    return message_add(messages, "user", &text, NULL);
}

static int assistant_read(struct exchange *x, struct request_error *e, json_t *messages, const char *at,
                          const json_t *content)
{
    cleanup(json_decrefp) json_t *calls = json_array();
    cleanup(buf_done) struct buf text = {.max = SIZE_MAX};
    const json_t *block;
    size_t i;
    int r = 0;

    if (!json_is_array(content))
        r = text_read(x, e, &text, at, content);
    json_array_foreach(content, i, block) {
        if (type_is(block, "tool_use"))
            r = call_read(x, e, calls, at, i, block);
        else if (type_is(block, "text"))
            r = text_append(x, e, &text, "", at, i, block);
        else if (!type_is(block, "thinking") && !type_is(block, "redacted_thinking"))
            r = block_refused(x, e, at, i, block);
        if (r < 0)
            break;
    }
    return r < 0 ? r : message_add(messages, "assistant", &text,
                                   json_array_size(calls) ? json_pack("{s:O}", "tool_calls", calls) : NULL);
}

static int messages_read(struct exchange *x, struct request_error *e, json_t *out, const json_t *body)
{
    json_t *messages = json_array();
    const json_t *turns = json_object_get(body, "messages"), *turn;
    cleanup(buf_done) struct buf system = {.max = SIZE_MAX};
    const char *role = "", *at;
    size_t i;
    int r;

    if (json_object_set_new(out, "messages", messages) < 0)
        return -ENOMEM;
    r = text_read(x, e, &system, "system", json_object_get(body, "system"));
    if (r < 0)
        return r;
    if (system.len && message_add(messages, "system", &system, NULL) < 0)
        return -ENOMEM;
    if (!json_array_size(turns) || json_array_size(turns) > CHAT_MAX_MESSAGES)
        return INVALID(x, e, "messages: expected an array of 1 to %d messages", CHAT_MAX_MESSAGES);
    json_array_foreach(turns, i, turn) {
        at = arena_printf(&x->arena, "messages.%zu.content", i);
        role = text_of(turn, "role");
        if (!at)
            return -ENOMEM;
        if (!is_given(json_object_get(turn, "content")))
            return INVALID(x, e, "%s: expected a string or an array of blocks", at);
        if (strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0)
            return INVALID(x, e, "messages.%zu.role: expected user or assistant", i);
        r = (*role == 'u' ? user_read : assistant_read)(x, e, messages, at, json_object_get(turn, "content"));
        if (r < 0)
            return r;
    }
    return *role == 'u' ? 0 : anthropic_invalid(e, "messages: the last one must be the user's; to begin the answer for "
                                                   "the model is not supported");
}

static int tools_read(struct exchange *x, struct request_error *e, json_t *out, const json_t *body)
{
    const json_t *tools = json_object_get(body, "tools"), *tool;
    json_t *list;
    size_t i;

    if (!is_given(tools))
        return 0;
    if (!json_is_array(tools))
        return anthropic_invalid(e, "tools: expected an array");
    list = json_array();
    if (json_object_set_new(out, "tools", list) < 0)
        return -ENOMEM;
    json_array_foreach(tools, i, tool) {
        json_t *function = json_object();

        if (is_given(json_object_get(tool, "type")) && !type_is(tool, "custom")) {
            json_decref(function);
            return INVALID(x, e, "tools.%zu.type: only custom is supported; no tool runs on this server", i);
        }
        if (take(function, "name", tool, "name") < 0 || take(function, "description", tool, "description") < 0 ||
            take(function, "parameters", tool, "input_schema") < 0 || take(function, "strict", tool, "strict") < 0 ||
            json_array_append_new(list, json_pack("{s:s, s:o}", "type", "function", "function", function)) < 0)
            return -ENOMEM;
        if (!json_is_string(json_object_get(tool, "name")) || !json_is_object(json_object_get(tool, "input_schema")))
            return INVALID(x, e, "tools.%zu: expected a name and an input_schema", i);
    }
    return 0;
}

static int choice_read(struct exchange *x, struct request_error *e, json_t *out, const json_t *body)
{
    static const struct { const char *type, *word; } words[] = {
        {"auto", "auto"}, {"any", "required"}, {"none", "none"},
    };
    const json_t *choice = json_object_get(body, "tool_choice"), *alone;
    json_t *ours = NULL;

    if (!is_given(choice))
        return 0;
    alone = json_object_get(choice, "disable_parallel_tool_use");
    for (size_t i = 0; i < ARRAY_SIZE(words); i++)
        if (type_is(choice, words[i].type))
            ours = json_string(words[i].word);
    if (type_is(choice, "tool"))
        ours = json_pack("{s:s, s:{s:s}}", "type", "function", "function", "name", text_of(choice, "name"));
    if (!ours)
        return anthropic_invalid(e, "tool_choice.type: expected auto, any, tool or none");
    if (is_given(alone) && !json_is_boolean(alone)) {
        json_decref(ours);
        return anthropic_invalid(e, "tool_choice.disable_parallel_tool_use: expected true or false");
    }
    if (json_object_set_new(out, "tool_choice", ours) < 0)
        return -ENOMEM;
    return json_is_true(alone) ? json_object_set_new(out, "parallel_tool_calls", json_false()) : 0;
}

static int stops_read(struct request_error *e, json_t *out, const json_t *body)
{
    json_t *stops = json_object_get(body, "stop_sequences"), *stop;
    size_t i;

    if (!is_given(stops))
        return 0;
    if (!json_is_array(stops) || json_array_size(stops) > CHAT_MAX_STOPS)
        return anthropic_invalid(e, "stop_sequences: expected an array of at most 4 strings");
    json_array_foreach(stops, i, stop)
        if (!json_string_length(stop))
            return anthropic_invalid(e, "stop_sequences: expected strings that are not empty");
    return json_object_set(out, "stop", stops);
}

/* output_config.format: {"type":"json_schema","schema":…}. */
static int format_read(struct request_error *e, json_t *out, const json_t *body)
{
    const json_t *format = json_object_get(json_object_get(body, "output_config"), "format");
    json_t *schema = json_object_get(format, "schema");

    if (!is_given(format))
        return 0;
    if (!type_is(format, "json_schema") || !json_is_object(schema))
        return anthropic_invalid(e, "output_config.format: expected type json_schema and a schema");
    return json_object_set_new(out, "response_format", json_pack("{s:s, s:{s:s, s:O, s:b}}", "type", "json_schema",
        "json_schema", "name", "answer", "schema", schema, "strict", 1));
}

static int check_unsupported(struct exchange *x, struct request_error *e, const json_t *body)
{
    static const char *const members[] = {"mcp_servers", "container", "inference_geo", "context_management"};
    const json_t *thinking = json_object_get(body, "thinking");

    for (size_t i = 0; i < ARRAY_SIZE(members); i++)
        if (is_given(json_object_get(body, members[i])))
            return INVALID(x, e, "%s: not supported here", members[i]);
    if (is_given(thinking) && !type_is(thinking, "disabled"))
        return anthropic_invalid(e, "thinking: only disabled is supported here");
    return 0;
}

static int rewrite(struct exchange *x, struct request_error *e, json_t **ret, const json_t *body)
{
    static const char *const same[] = {"model", "max_tokens", "temperature", "top_p", "top_k", "stream"};
    cleanup(json_decrefp) json_t *out = json_object();
    int r = out ? 0 : -ENOMEM;

    for (size_t i = 0; i < ARRAY_SIZE(same); i++)
        r |= take(out, same[i], body, same[i]);
    if (r == 0 && !json_is_string(json_object_get(body, "model")))
        r = anthropic_invalid(e, "model: expected a string");
    if (r == 0)
        r = check_unsupported(x, e, body);
    if (r == 0)
        r = messages_read(x, e, out, body);
    if (r == 0)
        r = tools_read(x, e, out, body);
    if (r == 0)
        r = choice_read(x, e, out, body);
    if (r == 0)
        r = stops_read(e, out, body);
    if (r == 0)
        r = format_read(e, out, body);
    if (r == 0)
        *ret = TAKE(out);
    return r == -EINVAL || r == 0 ? r : -ENOMEM;
}

int anthropic_read(struct exchange *x, struct request_error *e, struct chat_request **ret, const json_t *body)
{
    cleanup(json_decrefp) json_t *ours = NULL;
    struct err err;
    int r = rewrite(x, e, &ours, body);

    if (r < 0)
        return r;
    r = chat_request_from_json(ret, ours, &err);
    return r == -EINVAL ? INVALID(x, e, "%s", err.msg) : r;
}
