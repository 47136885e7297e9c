/* OpenAI's Chat Completions, whole and streamed, in the shapes that its SDKs check. What cannot be done (n > 1, sound,
 * biased tokens) is refused by name: a request never gets less than it asked for without being told. */
#include <errno.h>
#include <string.h>
#include "daemon/openai.h"

static int parse(struct exchange *x, const json_t *body, struct chat_request **ret, struct request_error *e)
{
    static const char *const unsupported[] = {
        "functions", "function_call", "logit_bias", "audio", "prediction", "web_search_options",
    };
    const json_t *n = json_object_get(body, "n");

    if (openai_is_given(n) && !(json_is_integer(n) && json_integer_value(n) == 1))
        return openai_invalid(e, "n", "unsupported_value", "n: only one choice is made; expected 1");
    if (openai_unsupported(x, body, unsupported, ARRAY_SIZE(unsupported), e) < 0)
        return -EINVAL;
    return openai_chat_request(x, body, ret, e);
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
                     "system_fingerprint", OPENAI_FINGERPRINT, "choices", choices);
}

static json_t *answer(struct exchange *x, const struct request_result *res)
{
    json_t *content = x->calls && !x->text.len ? json_null() :
                      json_stringn(x->text.len ? (char *)x->text.data : "", x->text.len);
    json_t *message = json_pack("{s:s, s:o, s:n}", "role", "assistant", "content", content, "refusal");
    json_t *body;

    if (x->calls)
        json_object_set(message, "tool_calls", x->calls);
    body = envelope(x, "chat.completion", json_pack("[{s:i, s:o, s:o, s:s}]", "index", 0, "message", message,
                                                    "logprobs", logprobs(x->logprobs), "finish_reason", res->finish));
    json_object_set_new(body, "usage", openai_usage(res));
    return body;
}

/* `delta` and `probs` are taken. */
static void chunk(struct exchange *x, json_t *delta, json_t *probs, const char *finish)
{
    json_t *data = envelope(x, "chat.completion.chunk", json_pack("[{s:i, s:o, s:o, s:s?}]", "index", 0, "delta", delta,
                                                                  "logprobs", probs, "finish_reason", finish));

    if (x->include_usage)
        json_object_set_new(data, "usage", json_null());
    openai_event(x, NULL, data);
}

static void begin(struct exchange *x)
{
    chunk(x, json_pack("{s:s, s:s, s:n}", "role", "assistant", "content", "", "refusal"), json_null(), NULL);
}

static json_t *delta_json(const struct request_delta *d)
{
    switch (d->channel) {
    case ANSWER_TOOL_NAME:
        return json_pack("{s:[{s:i, s:s, s:s, s:{s:s%, s:s}}]}", "tool_calls", "index", (int)d->call, "id", d->call_id,
                         "type", "function", "function", "name", d->text, d->text_len, "arguments", "");
    case ANSWER_TOOL_ARGUMENTS:
        return json_pack("{s:[{s:i, s:{s:s%}}]}", "tool_calls", "index", (int)d->call, "function",
                         "arguments", d->text, d->text_len);
    default:
        return json_pack("{s:s%}", "content", d->text_len ? d->text : "", d->text_len);
    }
}

static void delta(struct exchange *x, const struct request_delta *d)
{
    if (d->text_len || d->logprobs)
        chunk(x, delta_json(d), logprobs(d->logprobs), NULL);
}

static void end(struct exchange *x, const struct request_result *res)
{
    json_t *data;

    chunk(x, json_object(), json_null(), res->finish);
    if (x->include_usage) {
        data = envelope(x, "chat.completion.chunk", json_array());
        json_object_set_new(data, "usage", openai_usage(res));
        openai_event(x, NULL, data);
    }
    openai_cost(x, res);
    openai_done(x);
}

const struct dialect openai_chat = {
    .name = "openai-chat", .stream_type = OPENAI_STREAM, .ping = OPENAI_PING, .parse = parse, .begin = begin,
    .delta = delta, .end = end, .fail = openai_fail, .answer = answer, .error = openai_error,
};
