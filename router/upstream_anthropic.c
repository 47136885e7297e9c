/* Anthropic's Messages API as a cloud: https://docs.anthropic.com/en/api/messages.
 *
 * Out: system messages become the one `system` text, calls become tool_use blocks and their results tool_result blocks
 * of the user; neighbours with one role are joined, since turns must alternate and all results of one turn must stand
 * in one message. What this API cannot take (penalties, seed, log-probabilities) is left out. A JSON schema goes as
 * output_config.format; "some JSON object" has no counterpart and is asked for in words.
 *
 * In: the events of a stream, or a whole message, as chat completion chunks. */
#include <ctype.h>
#include <errno.h>
#include <string.h>
#include "base/buf.h"
#include "router/upstream.h"

#define MAX_TOKENS 4096            /* where the client gives no limit: the API demands one */
#define TOKENS_MAX 100000000
#define SYSTEM_MAX (32u << 20)

/* ---- A body out -------------------------------------------------------------------------------------------------- */

static const char *text_of(const json_t *obj, const char *key)
{
    const char *s = json_string_value(json_object_get(obj, key));

    return s ? s : "";
}

/* The API refuses text that is all blanks. */
static bool is_blank(const char *s)
{
    while (isspace((unsigned char)*s))
        s++;
    return !*s;
}

/* An id as this API takes it; our own and OpenAI's stay what they are. */
static json_t *id_json(const char *id)
{
    cleanup(freep) char *known = strdup(id);

    for (char *s = known; s && *s; s++)
        if (!isalnum((unsigned char)*s) && *s != '-')
            *s = '_';
    return known ? json_string(known) : NULL;
}

/* Append `block` (taken) to the turns, to the last one where it has the same role. */
static int block_add(json_t *turns, const char *role, json_t *block)
{
    json_t *last = json_array_get(turns, json_array_size(turns) - 1);

    if (!block)
        return -ENOMEM;
    if (!last || strcmp(text_of(last, "role"), role) != 0) {
        last = json_pack("{s:s, s:[]}", "role", role, "content");
        if (json_array_append_new(turns, last) < 0) {
            json_decref(block);
            return -ENOMEM;
        }
    }
    return json_array_append_new(json_object_get(last, "content"), block) < 0 ? -ENOMEM : 0;
}

static int text_add(json_t *turns, const char *role, const char *text)
{
    return is_blank(text) ? 0 : block_add(turns, role, json_pack("{s:s, s:s}", "type", "text", "text", text));
}

/* Arguments that a model did not write as an object are passed on as text: the call was made, its result follows. */
static json_t *input_json(const char *arguments)
{
    json_t *input = json_parse(arguments, strlen(arguments), NULL);

    if (json_is_object(input))
        return input;
    json_decref(input);
    return is_blank(arguments) ? json_object() : json_pack("{s:s}", "arguments", arguments);
}

static int calls_add(json_t *turns, const json_t *calls)
{
    const json_t *call, *function;
    size_t i;
    int r = 0;

    json_array_foreach(calls, i, call) {
        function = json_object_get(call, "function");
        r |= block_add(turns, "assistant", json_pack("{s:s, s:o, s:s, s:o}", "type", "tool_use",
            "id", id_json(text_of(call, "id")), "name", text_of(function, "name"),
            "input", input_json(text_of(function, "arguments"))));
    }
    return r;
}

static int message_add(json_t *turns, struct buf *system, const json_t *m)
{
    const char *role = text_of(m, "role"), *content = text_of(m, "content");
    int r;

    if (strcmp(role, "system") == 0)
        return is_blank(content) ? 0 : buf_printf(system, "%s%s", system->len ? "\n\n" : "", content);
    /* The first turn must be the user's. */
    if (strcmp(role, "user") != 0 && json_array_size(turns) == 0) {
        r = text_add(turns, "user", "(The assistant begins.)");
        if (r < 0)
            return r;
    }
    if (strcmp(role, "tool") == 0)
        return block_add(turns, "user", json_pack("{s:s, s:o, s:s}", "type", "tool_result",
                                                  "tool_use_id", id_json(text_of(m, "tool_call_id")),
                                                  "content", content));
    r = text_add(turns, role, content);
    return r < 0 ? r : calls_add(turns, json_object_get(m, "tool_calls"));
}

static json_t *tool_json(const json_t *tool)
{
    const json_t *function = json_object_get(tool, "function");
    json_t *j = json_pack("{s:s, s:s*, s:O*}", "name", text_of(function, "name"),
                          "description", json_string_value(json_object_get(function, "description")),
                          "strict", json_object_get(function, "strict"));
    json_t *schema = json_object_get(function, "parameters");

    /* A schema without a type is refused. */
    schema = json_object_size(schema) ? json_copy(schema) : json_object();
    if (!json_object_get(schema, "type"))
        json_object_set_new(schema, "type", json_string("object"));
    json_object_set_new(j, "input_schema", schema);
    return j;
}

/* "auto", "none", "required" or {"type":"function","function":{"name":…}}. */
static json_t *choice_json(const json_t *choice, const json_t *parallel)
{
    static const struct { const char *word, *type; } words[] = {{"none", "none"}, {"required", "any"}};
    const char *word = json_string_value(choice), *type = "auto";
    json_t *j;

    for (size_t i = 0; word && i < ARRAY_SIZE(words); i++)
        if (strcmp(word, words[i].word) == 0)
            type = words[i].type;
    j = json_is_object(choice) ? json_pack("{s:s, s:s}", "type", "tool", "name",
                                           text_of(json_object_get(choice, "function"), "name"))
                               : json_pack("{s:s}", "type", type);
    if (json_is_false(parallel) && strcmp(type, "none") != 0)
        json_object_set_new(j, "disable_parallel_tool_use", json_true());
    return j;
}

static int tools_write(json_t *body, const json_t *request)
{
    const json_t *tools = json_object_get(request, "tools"), *tool;
    json_t *list;
    size_t i;
    int r = 0;

    if (json_array_size(tools) == 0)
        return 0;
    list = json_array();
    json_array_foreach(tools, i, tool)
        r |= json_array_append_new(list, tool_json(tool));
    r |= json_object_set_new(body, "tools", list);
    return r | json_object_set_new(body, "tool_choice", choice_json(json_object_get(request, "tool_choice"),
                                                                    json_object_get(request, "parallel_tool_calls")));
}

static int format_write(json_t *body, struct buf *system, const json_t *format)
{
    const char *type = text_of(format, "type");

    if (strcmp(type, "json_object") == 0)
        return buf_printf(system, "%sAnswer with one JSON object and nothing else.", system->len ? "\n\n" : "");
    if (strcmp(type, "json_schema") != 0)
        return 0;
    return json_object_set_new(body, "output_config", json_pack("{s:{s:s, s:O}}", "format", "type", "json_schema",
        "schema", json_object_get(json_object_get(format, "json_schema"), "schema")));
}

static int params_write(json_t *body, const json_t *request)
{
    json_t *temperature = json_object_get(request, "temperature"), *top_p = json_object_get(request, "top_p"),
           *top_k = json_object_get(request, "top_k"), *stop = json_object_get(request, "stop"),
           *max_tokens = json_object_get(request, "max_tokens");
    int r;

    r = max_tokens ? json_object_set(body, "max_tokens", max_tokens)
                   : json_object_set_new(body, "max_tokens", json_integer(MAX_TOKENS));
    if (temperature)
        r |= json_object_set_new(body, "temperature", json_real(MIN(json_number_value(temperature), 1.0)));
    /* Said to have no effect, it is not said: newer models refuse it beside a temperature. */
    if (top_p && json_number_value(top_p) < 1)
        r |= json_object_set(body, "top_p", top_p);
    if (json_integer_value(top_k) > 0)
        r |= json_object_set(body, "top_k", top_k);
    if (stop)
        r |= json_object_set(body, "stop_sequences", stop);
    return r;
}

json_t *anthropic_body(const json_t *request, const char *model)
{
    cleanup(json_decrefp) json_t *body = json_pack("{s:s, s:b}", "model", model, "stream", 1), *turns = json_array();
    cleanup(buf_done) struct buf system = {.max = SYSTEM_MAX};
    const json_t *m;
    size_t i;
    int r = body && turns ? 0 : -ENOMEM;

    json_array_foreach(json_object_get(request, "messages"), i, m)
        r |= message_add(turns, &system, m);
    r |= json_object_set(body, "messages", turns);
    r |= params_write(body, request);
    r |= tools_write(body, request);
    r |= format_write(body, &system, json_object_get(request, "response_format"));
    if (system.len)
        r |= json_object_set_new(body, "system", json_stringn((char *)system.data, system.len));
    return r < 0 ? NULL : TAKE(body);
}

/* ---- Events in --------------------------------------------------------------------------------------------------- */

static const char *finish_of(const char *stop_reason)
{
    static const struct { const char *theirs, *ours; } reasons[] = {
        {"max_tokens", "length"}, {"model_context_window_exceeded", "length"}, {"tool_use", "tool_calls"},
        {"refusal", "content_filter"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(reasons); i++)
        if (strcmp(stop_reason, reasons[i].theirs) == 0)
            return reasons[i].ours;
    return "stop";
}

static int64_t count(const json_t *usage, const char *key)
{
    int64_t n = 0;

    json_read_int(usage, key, 0, TOKENS_MAX, &n, NULL);
    return n;
}

/* What was read from a cache was also read. */
static int64_t tokens_in(const json_t *usage)
{
    return count(usage, "input_tokens") + count(usage, "cache_creation_input_tokens") +
           count(usage, "cache_read_input_tokens");
}

static json_t *usage_json(int64_t in, int64_t cached, int64_t out)
{
    return json_pack("{s:I, s:I, s:I, s:{s:I}}", "prompt_tokens", (json_int_t)in, "completion_tokens", (json_int_t)out,
                     "total_tokens", (json_int_t)(in + out), "prompt_tokens_details",
                     "cached_tokens", (json_int_t)cached);
}

static int chunk(json_t **ret, json_t *delta /* taken */, const char *finish)
{
    *ret = json_pack("{s:[{s:i, s:o, s:s?}]}", "choices", "index", 0, "delta", delta, "finish_reason", finish);
    return *ret ? 1 : -ENOMEM;
}

/* `call` is taken. */
static int call_chunk(json_t **ret, const struct upstream_stream *s, json_t *call)
{
    json_object_set_new(call, "index", json_integer(s->n_calls - 1));
    return chunk(ret, json_pack("{s:[o]}", "tool_calls", call), NULL);
}

static int text_chunk(json_t **ret, const char *text)
{
    return *text ? chunk(ret, json_pack("{s:s}", "content", text), NULL) : 0;
}

static int arguments_chunk(json_t **ret, struct upstream_stream *s, const char *arguments)
{
    if (!*arguments || !s->in_call)
        return 0;
    s->has_arguments = true;
    return call_chunk(ret, s, json_pack("{s:{s:s}}", "function", "arguments", arguments));
}

static json_t *call_json(const json_t *block, const char *arguments)
{
    return json_pack("{s:s, s:s, s:{s:s, s:s}}", "id", text_of(block, "id"), "type", "function",
                     "function", "name", text_of(block, "name"), "arguments", arguments);
}

static int block_start(json_t **ret, struct upstream_stream *s, const json_t *block)
{
    const char *type = text_of(block, "type");

    s->in_call = s->has_arguments = false;
    if (strcmp(type, "text") == 0)
        return text_chunk(ret, text_of(block, "text"));
    if (strcmp(type, "tool_use") != 0)
        return 0;                          /* thinking, and what servers do by themselves */
    if (!*text_of(block, "id") || !*text_of(block, "name"))
        return -EPROTO;
    s->in_call = true;
    s->n_calls++;
    json_decref(s->input);
    s->input = json_incref(json_object_get(block, "input"));
    return call_chunk(ret, s, call_json(block, ""));
}

/* A call of which no arguments came had them in its first event, or has none. */
static int block_stop(json_t **ret, struct upstream_stream *s)
{
    cleanup(freep) char *text = NULL;
    int r = 0;

    if (s->in_call && !s->has_arguments) {
        text = json_is_object(s->input) ? json_dumps(s->input, JSON_COMPACT) : strdup("{}");
        r = text ? arguments_chunk(ret, s, text) : -ENOMEM;
    }
    s->in_call = false;
    return r;
}

/* Which stop string it was, as other servers tell it. */
static void stop_write(json_t *choice, const json_t *from)
{
    json_t *stop = json_object_get(from, "stop_sequence");

    if (json_is_string(stop))
        json_object_set(choice, "stop_reason", stop);
}

static int message_delta(json_t **ret, struct upstream_stream *s, const json_t *event)
{
    const json_t *usage = json_object_get(event, "usage");
    const char *reason = json_string_value(json_object_get(json_object_get(event, "delta"), "stop_reason"));
    int64_t in = tokens_in(usage), cached = count(usage, "cache_read_input_tokens");
    int r = chunk(ret, json_object(), reason ? finish_of(reason) : NULL);

    if (r > 0)
        stop_write(json_array_get(json_object_get(*ret, "choices"), 0), json_object_get(event, "delta"));
    if (r > 0 && json_is_integer(json_object_get(usage, "output_tokens")))
        json_object_set_new(*ret, "usage", usage_json(in ? in : s->tokens_in, in ? cached : s->tokens_cached,
                                                         count(usage, "output_tokens")));
    return r;
}

int anthropic_event(json_t **ret, struct upstream_stream *s, const json_t *event)
{
    const json_t *delta = json_object_get(event, "delta"), *usage;
    const char *type = json_string_value(json_object_get(event, "type"));

    if (!type)
        return -EPROTO;
    if (strcmp(type, "content_block_delta") == 0)
        return strcmp(text_of(delta, "type"), "text_delta") == 0 ? text_chunk(ret, text_of(delta, "text")) :
               strcmp(text_of(delta, "type"), "input_json_delta") == 0
                   ? arguments_chunk(ret, s, text_of(delta, "partial_json")) : 0;
    if (strcmp(type, "content_block_start") == 0)
        return block_start(ret, s, json_object_get(event, "content_block"));
    if (strcmp(type, "content_block_stop") == 0)
        return block_stop(ret, s);
    if (strcmp(type, "message_start") == 0) {
        usage = json_object_get(json_object_get(event, "message"), "usage");
        s->tokens_in = tokens_in(usage);
        s->tokens_cached = count(usage, "cache_read_input_tokens");
    }
    if (strcmp(type, "message_delta") == 0)
        return message_delta(ret, s, event);
    s->over = strcmp(type, "message_stop") == 0;
    return 0;                              /* also pings, and what is new to us */
}

int anthropic_answer(json_t **ret, const json_t *answer)
{
    const json_t *usage = json_object_get(answer, "usage"), *block;
    cleanup(json_decrefp) json_t *calls = json_array();
    cleanup(buf_done) struct buf text = {.max = SYSTEM_MAX};
    json_t *message;
    size_t i;

    if (strcmp(text_of(answer, "type"), "message") != 0 || !json_is_array(json_object_get(answer, "content")))
        return -EPROTO;
    json_array_foreach(json_object_get(answer, "content"), i, block) {
        cleanup(freep) char *input = NULL;

        if (strcmp(text_of(block, "type"), "text") == 0 && buf_puts(&text, text_of(block, "text")) < 0)
            return -ENOMEM;
        if (strcmp(text_of(block, "type"), "tool_use") != 0)
            continue;
        input = json_dumps(json_object_get(block, "input"), JSON_COMPACT);
        if (json_array_append_new(calls, call_json(block, input ? input : "{}")) < 0)
            return -ENOMEM;
    }
    message = json_pack("{s:s, s:s%}", "role", "assistant", "content", text.len ? (char *)text.data : "", text.len);
    if (json_array_size(calls))
        json_object_set(message, "tool_calls", calls);
    *ret = json_pack("{s:[{s:i, s:o, s:s}], s:o}", "choices", "index", 0, "message", message,
                     "finish_reason", finish_of(text_of(answer, "stop_reason")),
                     "usage", usage_json(tokens_in(usage), count(usage, "cache_read_input_tokens"),
                                         count(usage, "output_tokens")));
    if (*ret)
        stop_write(json_array_get(json_object_get(*ret, "choices"), 0), answer);
    return *ret ? 1 : -ENOMEM;
}
