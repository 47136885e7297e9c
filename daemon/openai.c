/* What all paths of OpenAI's API do alike: the shape of errors, refusing by name what is not supported, events. */
#include <errno.h>
#include <string.h>
#include "daemon/openai.h"

json_t *openai_error(const struct request_error *e)
{
    return json_pack("{s:{s:s, s:s, s:s?, s:s?}}", "error", "message", e->message ? e->message : "failed",
                     "type", e->type ? e->type : "server_error", "param", e->param, "code", e->code);
}

/* ---- Requests ---------------------------------------------------------------------------------------------------- */

int openai_invalid(struct request_error *e, const char *param, const char *code, const char *message)
{
    *e = (struct request_error){
        .http_status = 400, .type = "invalid_request_error", .code = code, .param = param, .message = message};
    return -EINVAL;
}

bool openai_is_given(const json_t *v)
{
    return v && !json_is_null(v) && !(json_is_array(v) && !json_array_size(v)) &&
           !(json_is_object(v) && !json_object_size(v));
}

int openai_unsupported(struct exchange *x, const json_t *body, const char *const *names, size_t n,
                       struct request_error *e)
{
    for (size_t i = 0; i < n; i++)
        if (openai_is_given(json_object_get(body, names[i])))
            return openai_invalid(e, names[i], "unsupported_parameter",
                                  arena_printf(&x->arena, "%s: not supported by this version", names[i]));
    return 0;
}

int openai_chat_request(struct exchange *x, const json_t *body, struct chat_request **ret, struct request_error *e)
{
    struct err err;
    const char *message;
    size_t n;
    int r = chat_request_from_json(ret, body, &err);

    if (r != -EINVAL)
        return r;
    /* "messages[0].role: expected …" names the member. */
    message = arena_strdup(&x->arena, err.msg);
    n = message ? strcspn(message, ": ") : 0;
    return openai_invalid(e, message && message[n] == ':' ? arena_strndup(&x->arena, message, n) : NULL,
                          "invalid_value", message);
}

/* ---- Answers ----------------------------------------------------------------------------------------------------- */

json_t *openai_usage(const struct request_result *res)
{
    json_int_t in = res->tokens_in, out = res->tokens_out;

    return json_pack("{s:I, s:I, s:I, s:{s:I}}", "prompt_tokens", in, "completion_tokens", out,
                     "total_tokens", in + out, "prompt_tokens_details", "cached_tokens", (json_int_t)res->tokens_cached);
}

void openai_event(struct exchange *x, const char *name, json_t *data)
{
    cleanup(freep) char *text = data ? json_dumps(data, JSON_COMPACT) : NULL;
    cleanup(buf_done) struct buf lines = {.max = SIZE_MAX};

    json_decref(data);
    if (text && (!name || buf_printf(&lines, "event: %s\n", name) == 0) &&
        buf_printf(&lines, "data: %s\n\n", text) == 0)
        exchange_write(x, lines.data, lines.len);
    else
        x->lost = true;
}

void openai_cost(struct exchange *x, const struct request_result *res)
{
    char cost[COST_BYTES], line[COST_BYTES + 32];

    if (x->meta.route != ROUTE_CLOUD)
        return;
    cost_text(cost, res->cost_microusd);
    snprintf(line, sizeof(line), ": x-tern-cost-usd %s\n\n", cost);
    exchange_write(x, line, strlen(line));
}

void openai_done(struct exchange *x)
{
    static const char done[] = "data: [DONE]\n\n";

    exchange_write(x, done, strlen(done));
}

void openai_fail(struct exchange *x, const struct request_error *e)
{
    openai_event(x, NULL, openai_error(e));
}
