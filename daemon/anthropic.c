/* Anthropic's Messages API, whole and streamed, in the shapes that its SDKs check, and its count of tokens. Bodies are
 * anthropic_in.c's. Any anthropic-version is taken. */
#include <errno.h>
#include <string.h>
#include "daemon/anthropic.h"

static json_t *anthropic_error(const struct request_error *e)
{
    static const struct { int status; const char *type; } types[] = {
        {401, "authentication_error"}, {402, "billing_error"}, {403, "permission_error"}, {404, "not_found_error"},
        {408, "timeout_error"}, {413, "request_too_large"}, {429, "rate_limit_error"}, {500, "api_error"},
        {502, "api_error"}, {503, "overloaded_error"}, {504, "timeout_error"},
    };
    const char *type = "invalid_request_error";

    for (size_t i = 0; i < ARRAY_SIZE(types); i++)
        if (types[i].status == e->http_status)
            type = types[i].type;
    return json_pack("{s:s, s:{s:s, s:s}}", "type", "error", "error", "type", type,
                     "message", e->message ? e->message : "failed");
}

static int parse(struct exchange *x, const json_t *body, struct chat_request **ret, struct request_error *e)
{
    const json_t *max_tokens = json_object_get(body, "max_tokens");

    if (!max_tokens || json_is_null(max_tokens))
        return anthropic_invalid(e, "max_tokens: expected a number of tokens, which this API requires");
    return anthropic_read(x, e, ret, body);
}

/* ---- How long a request is --------------------------------------------------------------------------------------- */

static int count_parse(struct exchange *x, const json_t *body, struct chat_request **ret, struct request_error *e)
{
    int r = anthropic_read(x, e, ret, body);

    if (r == 0)
        (*ret)->task = CHAT_TOKENIZE;
    return r;
}

static json_t *count_answer(struct exchange *x, const struct request_result *res)
{
    return json_pack("{s:I}", "input_tokens", (json_int_t)res->tokens_in);
}

const struct dialect anthropic_count = {
    .name = "anthropic-count", .id_header = "request-id", .parse = count_parse, .answer = count_answer,
    .error = anthropic_error,
};

/* ---- The answer -------------------------------------------------------------------------------------------------- */

static const char *stop_reason(const struct request_result *res)
{
    if (strcmp(res->finish, "length") == 0)
        return "max_tokens";
    if (strcmp(res->finish, "tool_calls") == 0)
        return "tool_use";
    if (strcmp(res->finish, "content_filter") == 0)
        return "refusal";
    return res->stop ? "stop_sequence" : "end_turn";
}

static json_t *usage(uint32_t in, uint32_t cached, uint32_t out)
{
    return json_pack("{s:I, s:I, s:i, s:I}", "input_tokens", (json_int_t)in - MIN(in, cached),
                     "cache_read_input_tokens", (json_int_t)cached, "cache_creation_input_tokens", 0,
                     "output_tokens", (json_int_t)out);
}

/* `content` and `used` are taken. */
static json_t *message(const struct exchange *x, json_t *content, const char *reason, const char *stop, json_t *used)
{
    char id[sizeof("msg_") + ID_BYTES];

    snprintf(id, sizeof(id), "msg_%s", x->id);
    return json_pack("{s:s, s:s, s:s, s:s, s:o, s:s?, s:s?, s:o}", "id", id, "type", "message", "role", "assistant",
                     "model", x->meta.model ? x->meta.model : "", "content", content, "stop_reason", reason,
                     "stop_sequence", stop, "usage", used);
}

static const char *text_of(const json_t *obj, const char *key)
{
    const char *s = json_string_value(json_object_get(obj, key));

    return s ? s : "";
}

/* A call that the token limit cut off has no readable input. */
static json_t *tool_use(const json_t *call)
{
    const char *arguments = text_of(json_object_get(call, "function"), "arguments");
    json_t *input = json_parse(arguments, strlen(arguments), NULL);

    return json_pack("{s:s, s:s, s:s, s:o}", "type", "tool_use", "id", text_of(call, "id"),
                     "name", text_of(json_object_get(call, "function"), "name"),
                     "input", input ? input : json_object());
}

static json_t *answer(struct exchange *x, const struct request_result *res)
{
    json_t *content = json_array(), *call;
    size_t i;

    /* Clients read the first block without looking whether there is one. */
    if (x->text.len || !json_array_size(x->calls))
        json_array_append_new(content, json_pack("{s:s, s:s%}", "type", "text", "text",
                                                 x->text.len ? (char *)x->text.data : "", x->text.len));
    json_array_foreach(x->calls, i, call)
        json_array_append_new(content, tool_use(call));
    return message(x, content, stop_reason(res), res->stop,
                   usage(res->tokens_in, res->tokens_cached, res->tokens_out));
}

/* A stream: blocks one after another, each begun and ended. */
struct state {
    enum { BLOCK_NONE, BLOCK_TEXT, BLOCK_CALL } open;
    unsigned n_blocks;                 /* begun */
};

static void event(struct exchange *x, const char *name, json_t *data)
{
    cleanup(freep) char *text = data ? json_dumps(data, JSON_COMPACT) : NULL;
    cleanup(buf_done) struct buf line = {.max = SIZE_MAX};

    json_decref(data);
    if (text && buf_printf(&line, "event: %s\ndata: %s\n\n", name, text) == 0)
        exchange_write(x, line.data, line.len);
    else
        x->lost = true;
}

static void block_stop(struct exchange *x, struct state *s)
{
    if (s->open != BLOCK_NONE)
        event(x, "content_block_stop", json_pack("{s:s, s:i}", "type", "content_block_stop", "index",
                                                 (int)s->n_blocks - 1));
    s->open = BLOCK_NONE;
}

static void block_start(struct exchange *x, struct state *s, int kind, json_t *block)
{
    block_stop(x, s);
    event(x, "content_block_start", json_pack("{s:s, s:i, s:o}", "type", "content_block_start", "index",
                                              (int)s->n_blocks++, "content_block", block));
    s->open = kind;
}

static void block_delta(struct exchange *x, const struct state *s, const char *type, const char *member,
                        const struct request_delta *d)
{
    event(x, "content_block_delta", json_pack("{s:s, s:i, s:{s:s, s:s%}}", "type", "content_block_delta",
        "index", (int)s->n_blocks - 1, "delta", "type", type, member, d->text, d->text_len));
}

static void text_start(struct exchange *x, struct state *s)
{
    block_start(x, s, BLOCK_TEXT, json_pack("{s:s, s:s}", "type", "text", "text", ""));
}

static void begin(struct exchange *x)
{
    x->state = arena_alloc(&x->arena, sizeof(struct state));
    x->lost |= !x->state;
    event(x, "message_start", json_pack("{s:s, s:o}", "type", "message_start", "message",
                                        message(x, json_array(), NULL, NULL, usage(x->meta.tokens_in, 0, 0))));
}

static void delta(struct exchange *x, const struct request_delta *d)
{
    struct state *s = x->state;

    if (!s)
        return;
    switch (d->channel) {
    case ANSWER_TEXT:
        if (!d->text_len)
            return;
        if (s->open != BLOCK_TEXT)
            text_start(x, s);
        block_delta(x, s, "text_delta", "text", d);
        break;
    case ANSWER_TOOL_NAME:
        block_start(x, s, BLOCK_CALL, json_pack("{s:s, s:s, s:s%, s:{}}", "type", "tool_use", "id", d->call_id, "name",
                                                d->text, d->text_len, "input"));
        break;
    case ANSWER_TOOL_ARGUMENTS:
        block_delta(x, s, "input_json_delta", "partial_json", d);
        break;
    }
}

static void end(struct exchange *x, const struct request_result *res)
{
    struct state *s = x->state;

    if (s && !s->n_blocks)
        text_start(x, s);
    if (s)
        block_stop(x, s);
    event(x, "message_delta", json_pack("{s:s, s:{s:s, s:s?}, s:o}", "type", "message_delta", "delta",
        "stop_reason", stop_reason(res), "stop_sequence", res->stop,
        "usage", usage(res->tokens_in, res->tokens_cached, res->tokens_out)));
    event(x, "message_stop", json_pack("{s:s}", "type", "message_stop"));
}

static void fail(struct exchange *x, const struct request_error *e)
{
    event(x, "error", anthropic_error(e));
}

const struct dialect anthropic_messages = {
    .name = "anthropic-messages", .stream_type = "text/event-stream; charset=utf-8", .id_header = "request-id",
    .ping = "event: ping\ndata: {\"type\": \"ping\"}\n\n", .parse = parse,
    .begin = begin, .delta = delta, .end = end, .fail = fail, .answer = answer, .error = anthropic_error,
};
