/* A request of OpenAI's Responses, rewritten as one of Chat Completions, which chat.c then reads as any other. Nothing
 * is stored here, so everything that would need it (previous_response_id, conversations, references to items) is refused
 * by name. Items of an answer come back as input: a message and the calls after it are one message again; what a model
 * thought (reasoning) is only its own model's business and is left out. */
#include <errno.h>
#include <string.h>
#include "daemon/openai_responses.h"

static bool word_is(const json_t *j, const char *key, const char *word)
{
    const char *s = json_string_value(json_object_get(j, key));

    return s && strcmp(s, word) == 0;
}

static int invalid_at(struct exchange *x, struct request_error *e, const char *path, const char *expected)
{
    return openai_invalid(e, path, "invalid_value", arena_printf(&x->arena, "%s: expected %s", path, expected));
}

/* ---- Input ------------------------------------------------------------------------------------------------------- */

static int part_read(struct exchange *x, json_t *parts, const json_t *part, const char *path, struct request_error *e)
{
    static const char *const kinds[][2] = {
        {"input_text", "text"}, {"output_text", "text"}, {"text", "text"}, {"refusal", "refusal"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        json_t *text = json_object_get(part, kinds[i][1]);

        if (!word_is(part, "type", kinds[i][0]))
            continue;
        if (!json_is_string(text))
            return invalid_at(x, e, arena_printf(&x->arena, "%s.%s", path, kinds[i][1]), "a string");
        return json_array_append_new(parts, json_pack("{s:s, s:O}", "type", "text", "text", text)) < 0 ? -ENOMEM : 0;
    }
    return openai_invalid(e, arena_printf(&x->arena, "%s.type", path), "unsupported_value",
                          arena_printf(&x->arena, "%s.type: only text is supported, no images, files or sound", path));
}

/* A string, or an array of text parts, into what Chat Completions knows. */
static int content_read(struct exchange *x, json_t **ret, json_t *content, const char *path, struct request_error *e)
{
    cleanup(json_decrefp) json_t *parts = NULL;
    const json_t *part;
    size_t i;

    if (json_is_string(content)) {
        *ret = json_incref(content);
        return 0;
    }
    if (!json_is_array(content))
        return invalid_at(x, e, path, "a string or an array of text parts");
    parts = json_array();
    if (!parts)
        return -ENOMEM;
    json_array_foreach(content, i, part) {
        int r = part_read(x, parts, part, arena_printf(&x->arena, "%s[%zu]", path, i), e);
        if (r < 0)
            return r;
    }
    *ret = TAKE(parts);
    return 0;
}

static int message_add(json_t *messages, const char *role, json_t *content /* taken */, const char *call_id)
{
    json_t *m = json_pack("{s:s, s:o, s:s*}", "role", role, "content", content, "tool_call_id", call_id);

    return json_array_append_new(messages, m) < 0 ? -ENOMEM : 0;
}

static int message_read(struct exchange *x, json_t *messages, const json_t *item, const char *path,
                        struct request_error *e)
{
    static const char *const roles[] = {"user", "assistant", "system", "developer"};
    json_t *content;

    for (size_t i = 0; i < ARRAY_SIZE(roles); i++)
        if (word_is(item, "role", roles[i])) {
            int r = content_read(x, &content, json_object_get(item, "content"),
                                 arena_printf(&x->arena, "%s.content", path), e);
            return r < 0 ? r : message_add(messages, roles[i], content, NULL);
        }
    return invalid_at(x, e, arena_printf(&x->arena, "%s.role", path), "user, assistant, system or developer");
}

/* A call belongs to the assistant's message before it, if there is one. */
static int call_read(struct exchange *x, json_t *messages, const json_t *item, const char *path,
                     struct request_error *e)
{
    json_t *last = json_array_get(messages, json_array_size(messages) - 1), *calls, *call;
    const char *id = json_string_value(json_object_get(item, "call_id")),
               *name = json_string_value(json_object_get(item, "name")),
               *arguments = json_string_value(json_object_get(item, "arguments"));

    if (!id || !name || !arguments)
        return invalid_at(x, e, path, "call_id, name and arguments as strings");
    if (!word_is(last, "role", "assistant")) {
        if (message_add(messages, "assistant", json_null(), NULL) < 0)
            return -ENOMEM;
        last = json_array_get(messages, json_array_size(messages) - 1);
    }
    call = json_pack("{s:s, s:s, s:{s:s, s:s}}", "id", id, "type", "function", "function", "name", name,
                     "arguments", arguments);
    calls = json_object_get(last, "tool_calls");
    if (calls)
        return json_array_append_new(calls, call) < 0 ? -ENOMEM : 0;
    return json_object_set_new(last, "tool_calls", json_pack("[o]", call)) < 0 ? -ENOMEM : 0;
}

static int output_read(struct exchange *x, json_t *messages, const json_t *item, const char *path,
                       struct request_error *e)
{
    const char *id = json_string_value(json_object_get(item, "call_id"));
    json_t *content;
    int r;

    if (!id)
        return invalid_at(x, e, arena_printf(&x->arena, "%s.call_id", path), "a string");
    r = content_read(x, &content, json_object_get(item, "output"), arena_printf(&x->arena, "%s.output", path), e);
    return r < 0 ? r : message_add(messages, "tool", content, id);
}

static int item_read(struct exchange *x, json_t *messages, const json_t *item, size_t at, struct request_error *e)
{
    const char *path = arena_printf(&x->arena, "input[%zu]", at);

    if (!json_is_object(item))
        return invalid_at(x, e, path, "an object");
    if (!json_object_get(item, "type") || word_is(item, "type", "message"))
        return message_read(x, messages, item, path, e);
    if (word_is(item, "type", "function_call"))
        return call_read(x, messages, item, path, e);
    if (word_is(item, "type", "function_call_output"))
        return output_read(x, messages, item, path, e);
    if (word_is(item, "type", "reasoning"))
        return 0;
    if (word_is(item, "type", "item_reference"))
        return openai_invalid(e, path, "unsupported_value", "input: nothing is stored, so items cannot be referred to; "
                              "ask with store false and send them whole");
    return invalid_at(x, e, arena_printf(&x->arena, "%s.type", path), "message, function_call or function_call_output");
}

static int input_read(struct exchange *x, json_t *chat, const json_t *body, struct request_error *e)
{
    json_t *messages = json_array(), *input = json_object_get(body, "input"), *item,
           *instructions = json_object_get(body, "instructions");
    size_t i;
    int r = 0;

    if (json_object_set_new(chat, "messages", messages) < 0)
        return -ENOMEM;
    if (instructions && !json_is_null(instructions) && !json_is_string(instructions))
        return invalid_at(x, e, "instructions", "a string");
    if (json_string_length(instructions))
        r = message_add(messages, "system", json_incref(instructions), NULL);
    if (json_is_string(input))
        return r < 0 ? r : message_add(messages, "user", json_incref(input), NULL);
    if (!json_array_size(input) || json_array_size(input) > CHAT_MAX_MESSAGES)
        return invalid_at(x, e, "input", arena_printf(&x->arena, "a string, or an array of 1 to %d items",
                                                      CHAT_MAX_MESSAGES));
    json_array_foreach(input, i, item)
        if (r == 0)
            r = item_read(x, messages, item, i, e);
    return r;
}

/* ---- Tools and formats: the same members, one level further up --------------------------------------------------- */

static json_t *wrapped(const json_t *flat, const char *type)
{
    json_t *inner = json_copy((json_t *)flat);

    json_object_del(inner, "type");
    return json_pack("{s:s, s:o}", "type", type, type, inner);
}

static int tools_read(struct exchange *x, json_t *chat, const json_t *body, struct request_error *e)
{
    json_t *tools = json_object_get(body, "tools"), *choice = json_object_get(body, "tool_choice"), *tool, *list;
    size_t i;

    if (tools && !json_is_null(tools) && !json_is_array(tools))
        return invalid_at(x, e, "tools", "an array");
    list = json_array();
    if (json_object_set_new(chat, "tools", list) < 0)
        return -ENOMEM;
    json_array_foreach(tools, i, tool) {
        if (!word_is(tool, "type", "function"))
            return invalid_at(x, e, arena_printf(&x->arena, "tools[%zu].type", i),
                              "function; no other tools are supported");
        if (json_array_append_new(list, wrapped(tool, "function")) < 0)
            return -ENOMEM;
    }
    if (!choice || json_is_null(choice))
        return 0;
    choice = word_is(choice, "type", "function") ? wrapped(choice, "function") : json_incref(choice);
    return json_object_set_new(chat, "tool_choice", choice) < 0 ? -ENOMEM : 0;
}

static int format_read(struct exchange *x, json_t *chat, const json_t *body, struct request_error *e)
{
    const json_t *text = json_object_get(body, "text");
    json_t *format = json_object_get(text, "format");

    if (text && !json_is_null(text) && !json_is_object(text))
        return invalid_at(x, e, "text", "an object");
    if (!format || json_is_null(format))
        return 0;
    format = word_is(format, "type", "json_schema") ? wrapped(format, "json_schema") : json_incref(format);
    return json_object_set_new(chat, "response_format", format) < 0 ? -ENOMEM : 0;
}

/* ---- The whole --------------------------------------------------------------------------------------------------- */

static int stateless(struct exchange *x, const json_t *body, struct request_error *e)
{
    static const char *const unsupported[] = {"conversation", "prompt", "context_management"};

    if (openai_is_given(json_object_get(body, "previous_response_id")))
        return openai_invalid(e, "previous_response_id", "unsupported_parameter",
                              "previous_response_id: nothing is stored; send the whole conversation as input");
    if (json_is_true(json_object_get(body, "store")))
        return openai_invalid(e, "store", "unsupported_value", "store: nothing is stored; expected false");
    if (json_is_true(json_object_get(body, "background")))
        return openai_invalid(e, "background", "unsupported_value", "background: not supported; expected false");
    return openai_unsupported(x, body, unsupported, ARRAY_SIZE(unsupported), e);
}

static int plain_read(struct exchange *x, json_t *chat, const json_t *body, struct request_error *e)
{
    static const char *const names[][2] = {
        {"model", "model"}, {"temperature", "temperature"}, {"top_p", "top_p"}, {"stream", "stream"},
        {"parallel_tool_calls", "parallel_tool_calls"}, {"top_logprobs", "top_logprobs"},
        {"max_output_tokens", "max_completion_tokens"},
    };
    const json_t *include = json_object_get(body, "include"), *word;
    size_t k;
    int r = 0;

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        json_t *v = json_object_get(body, names[i][0]);
        if (v)
            r |= json_object_set(chat, names[i][1], v);
    }
    json_array_foreach(include, k, word)
        if (json_is_string(word) && strcmp(json_string_value(word), "message.output_text.logprobs") == 0)
            r |= json_object_set_new(chat, "logprobs", json_true());
    return r < 0 ? -ENOMEM : 0;
}

/* A fault of chat.c names the member as Chat Completions calls it. */
static void fault_rename(struct exchange *x, struct request_error *e)
{
    /* Places among messages are not places among items, so these are left out. */
    static const struct { const char *theirs, *ours; bool alone; } names[] = {
        {"max_completion_tokens", "max_output_tokens", false}, {"response_format.json_schema", "text.format", false},
        {"response_format", "text.format", false}, {"tool_choice.function", "tool_choice", false},
        {"messages", "input", true},
    };

    for (size_t i = 0; e->param && i < ARRAY_SIZE(names); i++) {
        size_t n = strlen(names[i].theirs), left = names[i].alone ? strlen(e->param) : n;

        if (strncmp(e->param, names[i].theirs, n) != 0)
            continue;
        e->message = arena_printf(&x->arena, "%s%s", names[i].ours, e->message + left);
        e->param = arena_printf(&x->arena, "%s%s", names[i].ours, e->param + left);
        return;
    }
}

/* The members of a response that repeat the request, as far as it gave them. */
static json_t *echo(const struct chat_request *c, const json_t *body)
{
    static const char *const names[] = {
        "instructions", "max_output_tokens", "temperature", "top_p", "tool_choice", "metadata", "user", "reasoning",
        "service_tier", "safety_identifier", "prompt_cache_key",
    };
    json_t *format = json_object_get(json_object_get(body, "text"), "format"), *tools = json_object_get(body, "tools"),
           *j = json_pack("{s:n, s:n, s:f, s:f, s:s, s:{}, s:n, s:{s:n, s:n}}", "instructions", "max_output_tokens",
                          "temperature", 1.0, "top_p", 1.0, "tool_choice", "auto", "metadata", "user",
                          "reasoning", "effort", "summary");

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        json_t *v = json_object_get(body, names[i]);
        if (v && !json_is_null(v))
            json_object_set(j, names[i], v);
    }
    json_object_set_new(j, "tools", tools && !json_is_null(tools) ? json_incref(tools) : json_array());
    json_object_set_new(j, "parallel_tool_calls", json_boolean(c->parallel_tool_calls != 0));
    json_object_set_new(j, "text", json_pack("{s:o}", "format", format && !json_is_null(format) ? json_incref(format) :
                                             json_pack("{s:s}", "type", "text")));
    return j;
}

int responses_parse(struct exchange *x, const json_t *body, struct chat_request **ret, struct request_error *e)
{
    cleanup(json_decrefp) json_t *chat = json_object();
    int r = stateless(x, body, e);

    if (r == 0)
        r = plain_read(x, chat, body, e);
    if (r == 0)
        r = input_read(x, chat, body, e);
    if (r == 0)
        r = tools_read(x, chat, body, e);
    if (r == 0)
        r = format_read(x, chat, body, e);
    if (r < 0)
        return r;
    r = openai_chat_request(x, chat, ret, e);
    if (r == -EINVAL)
        fault_rename(x, e);
    if (r < 0)
        return r;
    x->keep = echo(*ret, body);
    return 0;
}
