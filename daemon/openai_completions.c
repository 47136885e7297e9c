/* OpenAI's older Completions: one prompt, one text. The prompt stands as a user's message, since what answers is trained
 * to answer messages. Going on with a text (suffix), repeating it (echo) and choosing the best of several are refused by
 * name, as are prompts in ids. */
#include <errno.h>
#include <string.h>
#include "daemon/openai.h"

static int prompt_read(json_t **ret, const json_t *body, struct request_error *e)
{
    json_t *prompt = json_object_get(body, "prompt");

    if (json_array_size(prompt) == 1)
        prompt = json_array_get(prompt, 0);
    if (!json_is_string(prompt))
        return openai_invalid(e, "prompt", "invalid_value", "prompt: expected one string");
    *ret = json_pack("[{s:s, s:O}]", "role", "user", "content", prompt);
    return *ret ? 0 : -ENOMEM;
}

static int parse(struct exchange *x, const json_t *body, struct chat_request **ret, struct request_error *e)
{
    static const char *const unsupported[] = {"suffix", "logprobs", "logit_bias"}, *const ones[] = {"n", "best_of"};
    cleanup(json_decrefp) json_t *chat = json_copy((json_t *)body);
    json_t *messages = NULL;
    int r;

    for (size_t i = 0; i < ARRAY_SIZE(ones); i++) {
        const json_t *v = json_object_get(body, ones[i]);

        if (openai_is_given(v) && !(json_is_integer(v) && json_integer_value(v) == 1))
            return openai_invalid(e, ones[i], "unsupported_value",
                                  arena_printf(&x->arena, "%s: only one text is made; expected 1", ones[i]));
    }
    if (openai_is_given(json_object_get(body, "echo")) && !json_is_false(json_object_get(body, "echo")))
        return openai_invalid(e, "echo", "unsupported_value", "echo: the prompt is not repeated; expected false");
    if (openai_unsupported(x, body, unsupported, ARRAY_SIZE(unsupported), e) < 0)
        return -EINVAL;
    r = prompt_read(&messages, body, e);
    if (r < 0)
        return r;
    json_object_del(chat, "tools");
    json_object_del(chat, "response_format");
    json_object_del(chat, "tool_choice");
    if (json_object_set_new(chat, "messages", messages) < 0)
        return -ENOMEM;
    return openai_chat_request(x, chat, ret, e);
}

/* A piece of the answer, or all of it, in its envelope. */
static json_t *envelope(const struct exchange *x, const char *text, size_t len, const char *finish)
{
    char id[sizeof("cmpl-") + ID_BYTES];

    snprintf(id, sizeof(id), "cmpl-%s", x->id);
    return json_pack("{s:s, s:s, s:I, s:s, s:s, s:[{s:s%, s:i, s:n, s:s?}]}", "id", id, "object", "text_completion",
                     "created", (json_int_t)x->meta.created_sec, "model", x->meta.model ? x->meta.model : "",
                     "system_fingerprint", OPENAI_FINGERPRINT, "choices", "text", text, len, "index", 0, "logprobs",
                     "finish_reason", finish);
}

static json_t *answer(struct exchange *x, const struct request_result *res)
{
    json_t *body = envelope(x, x->text.len ? (char *)x->text.data : "", x->text.len, res->finish);

    json_object_set_new(body, "usage", openai_usage(res));
    return body;
}

static void chunk(struct exchange *x, const char *text, size_t len, const char *finish)
{
    json_t *data = envelope(x, text, len, finish);

    if (x->include_usage)
        json_object_set_new(data, "usage", json_null());
    openai_event(x, NULL, data);
}

static void begin(struct exchange *x)
{
}

static void delta(struct exchange *x, const struct request_delta *d)
{
    if (d->channel == ANSWER_TEXT && d->text_len)
        chunk(x, d->text, d->text_len, NULL);
}

static void end(struct exchange *x, const struct request_result *res)
{
    json_t *data;

    chunk(x, "", 0, res->finish);
    if (x->include_usage) {
        data = envelope(x, "", 0, NULL);
        json_object_set_new(data, "choices", json_array());
        json_object_set_new(data, "usage", openai_usage(res));
        openai_event(x, NULL, data);
    }
    openai_cost(x, res);
    openai_done(x);
}

const struct dialect openai_completions = {
    .name = "openai-completions", .stream_type = OPENAI_STREAM, .ping = OPENAI_PING, .parse = parse, .begin = begin,
    .delta = delta, .end = end, .fail = openai_fail, .answer = answer, .error = openai_error,
};
