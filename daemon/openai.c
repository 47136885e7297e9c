/* OpenAI's Chat Completions, whole and streamed, in the shapes that its SDKs check. What cannot be done yet (tools, n
 * > 1, forced formats) is refused by name: a request never gets less than it asked for without being told. */
#include <errno.h>
#include <string.h>
#include "daemon/http.h"

#define FINGERPRINT "tern-" TERN_VERSION

json_t *openai_error(const struct request_error *e)
{
    return json_pack("{s:{s:s, s:s, s:s?, s:s?}}", "error", "message", e->message ? e->message : "failed",
                     "type", e->type ? e->type : "server_error", "param", e->param, "code", e->code);
}

/* ---- The request ------------------------------------------------------------------------------------------------- */

static int invalid(struct request_error *e, const char *param, const char *code, const char *message)
{
    *e = (struct request_error){
        .http_status = 400, .type = "invalid_request_error", .code = code, .param = param, .message = message};
    return -EINVAL;
}

static bool is_given(const json_t *v)
{
    return v && !json_is_null(v) && !(json_is_array(v) && !json_array_size(v)) &&
           !(json_is_object(v) && !json_object_size(v));
}

static bool is_word(const json_t *v, const char *a, const char *b)
{
    const char *s = json_string_value(v);

    return s && (strcmp(s, a) == 0 || (b && strcmp(s, b) == 0));
}

static int check_unsupported(struct exchange *x, const json_t *body, struct request_error *e)
{
    static const char *const members[] = {"tools", "functions", "logit_bias", "audio", "prediction",
                                          "web_search_options"};
    const json_t *n = json_object_get(body, "n"), *choice = json_object_get(body, "tool_choice"),
                 *format = json_object_get(body, "response_format");

    if (is_given(n) && !(json_is_integer(n) && json_integer_value(n) == 1))
        return invalid(e, "n", "unsupported_value", "n: only one choice is made; expected 1");
    for (size_t i = 0; i < ARRAY_SIZE(members); i++)
        if (is_given(json_object_get(body, members[i])))
            return invalid(e, members[i], "unsupported_parameter",
                           arena_printf(&x->arena, "%s: not supported by this version", members[i]));
    if (is_given(choice) && !is_word(choice, "none", "auto"))
        return invalid(e, "tool_choice", "unsupported_parameter",
                       "tool_choice: not supported by this version; expected none or auto");
    if (is_given(format) && !is_word(json_object_get(format, "type"), "text", NULL))
        return invalid(e, "response_format", "unsupported_parameter",
                       "response_format: only text is supported by this version");
    return 0;
}

static int parse(struct exchange *x, const json_t *body, struct chat_request **ret, struct request_error *e)
{
    struct err err;
    const char *message;
    size_t n;
    int r;

    r = check_unsupported(x, body, e);
    if (r < 0)
        return r;
    r = chat_request_from_json(ret, body, &err);
    if (r != -EINVAL)
        return r;
    /* "messages[0].role: expected …" names the member. */
    message = arena_strdup(&x->arena, err.msg);
    n = message ? strcspn(message, ": ") : 0;
    return invalid(e, message && message[n] == ':' ? arena_strndup(&x->arena, message, n) : NULL, "invalid_value",
                   message);
}

/* ---- The answer -------------------------------------------------------------------------------------------------- */

static json_t *usage(const struct request_result *res)
{
    json_int_t in = res->tokens_in, out = res->tokens_out;

    return json_pack("{s:I, s:I, s:I}", "prompt_tokens", in, "completion_tokens", out, "total_tokens", in + out);
}

/* {"content":[…],"refusal":null}, or null where none were asked. */
static json_t *logprobs(json_t *list)
{
    return list ? json_pack("{s:O, s:n}", "content", list, "refusal") : json_null();
}

/* What stands in front of an answer and each of its chunks; `choices` is taken. */
static json_t *envelope(const struct exchange *x, const char *object, json_t *choices)
{
    char id[sizeof("chatcmpl-") + ID_BYTES];

    snprintf(id, sizeof(id), "chatcmpl-%s", x->id);
    return json_pack("{s:s, s:s, s:I, s:s, s:s, s:o}", "id", id, "object", object,
                     "created", (json_int_t)x->meta.created_sec, "model", x->meta.model ? x->meta.model : "",
                     "system_fingerprint", FINGERPRINT, "choices", choices);
}

static json_t *answer(struct exchange *x, const struct request_result *res)
{
    json_t *choices = json_pack("[{s:i, s:{s:s, s:s%, s:n}, s:o, s:s}]", "index", 0, "message", "role", "assistant",
                                "content", x->text.len ? (char *)x->text.data : "", x->text.len, "refusal",
                                "logprobs", logprobs(x->logprobs), "finish_reason", res->finish);
    json_t *body = envelope(x, "chat.completion", choices);

    json_object_set_new(body, "usage", usage(res));
    return body;
}

static void event(struct exchange *x, json_t *data)
{
    cleanup(freep) char *text = data ? json_dumps(data, JSON_COMPACT) : NULL;
    cleanup(buf_done) struct buf line = {.max = SIZE_MAX};

    json_decref(data);
    if (text && buf_printf(&line, "data: %s\n\n", text) == 0)
        exchange_write(x, line.data, line.len);
    else
        x->lost = true;
}

/* `delta` and `probs` are taken. */
static void chunk(struct exchange *x, json_t *delta, json_t *probs, const char *finish)
{
    json_t *data = envelope(x, "chat.completion.chunk", json_pack("[{s:i, s:o, s:o, s:s?}]", "index", 0, "delta", delta,
                                                                  "logprobs", probs, "finish_reason", finish));

    if (x->include_usage)
        json_object_set_new(data, "usage", json_null());
    event(x, data);
}

static void begin(struct exchange *x)
{
    chunk(x, json_pack("{s:s, s:s, s:n}", "role", "assistant", "content", "", "refusal"), json_null(), NULL);
}

static void delta(struct exchange *x, const struct request_delta *d)
{
    if (d->text_len || d->logprobs)
        chunk(x, json_pack("{s:s%}", "content", d->text_len ? d->text : "", d->text_len), logprobs(d->logprobs), NULL);
}

static void end(struct exchange *x, const struct request_result *res)
{
    static const char done[] = "data: [DONE]\n\n";
    char cost[COST_BYTES], line[COST_BYTES + 32];
    json_t *data;

    chunk(x, json_object(), json_null(), res->finish);
    if (x->include_usage) {
        data = envelope(x, "chat.completion.chunk", json_array());
        json_object_set_new(data, "usage", usage(res));
        event(x, data);
    }
    /* The headers went out before it was known what a cloud's answer would cost. */
    if (x->meta.route == ROUTE_CLOUD) {
        cost_text(cost, res->cost_microusd);
        snprintf(line, sizeof(line), ": x-tern-cost-usd %s\n\n", cost);
        exchange_write(x, line, strlen(line));
    }
    exchange_write(x, done, strlen(done));
}

static void fail(struct exchange *x, const struct request_error *e)
{
    event(x, openai_error(e));
}

const struct dialect openai_chat = {
    .name = "openai-chat", .stream_type = "text/event-stream; charset=utf-8", .ping = ": ping\n\n", .parse = parse,
    .begin = begin, .delta = delta, .end = end, .fail = fail, .answer = answer, .error = openai_error,
};
