/* One event of a cloud's answer: a chunk of OpenAI's chat completions, or a completion that came whole, read strictly as
 * JSON and tolerantly as a chunk. Servers differ most in how they tell calls apart, so a call begins where anything says
 * so: a greater index, another id, or a name without an id. A server that goes back to an earlier call is not followed. */
#include <errno.h>
#include <string.h>
#include "router/internal.h"

#define TOKENS_MAX 100000000               /* of one answer; a usage beyond it is not believed */

static const char *finish_known(const char *s)
{
    static const char *const known[] = {"stop", "length", "content_filter", "tool_calls"};

    for (size_t i = 0; i < ARRAY_SIZE(known); i++)
        if (strcmp(known[i], s) == 0)
            return known[i];
    return known[0];
}

static void usage_take(struct request *q, const json_t *usage)
{
    int64_t in, out, cached = 0;

    if (json_read_int(usage, "prompt_tokens", 0, TOKENS_MAX, &in, NULL) != 1 ||
        json_read_int(usage, "completion_tokens", 0, TOKENS_MAX, &out, NULL) != 1)
        return;
    json_read_int(json_object_get(usage, "prompt_tokens_details"), "cached_tokens", 0, in, &cached, NULL);
    q->answer.tokens_in = (uint32_t)in;
    q->answer.tokens_out = (uint32_t)out;
    q->answer.tokens_cached = (uint32_t)cached;
    q->attempt.usage_known = true;
}

/* Does this part of a call begin one? -EPROTO: it belongs to one that is over. */
static int call_begins(struct request *q, const char *id, const char *name, int64_t index)
{
    const struct attempt *a = &q->attempt;

    if (!q->answer.n_calls || index > a->call_index || (*id && strcmp(id, a->call_id) != 0) || (!*id && *name))
        return 1;
    return index >= 0 && index < a->call_index ? -EPROTO : 0;
}

/* `whole`: of a completion that came whole, where every entry is a call. */
static int call_take(struct request *q, const json_t *call, bool whole)
{
    const json_t *f = json_object_get(call, "function");
    const char *id = "", *name = "", *arguments = "";
    struct attempt *a = &q->attempt;
    int64_t index = -1;
    int r;

    if (json_read_string(call, "id", &id, NULL) < 0 || json_read_string(f, "name", &name, NULL) < 0 ||
        json_read_string(f, "arguments", &arguments, NULL) < 0 ||
        json_read_int(call, "index", 0, INT32_MAX, &index, NULL) < 0)
        return -EPROTO;
    r = whole ? 1 : call_begins(q, id, name, index);
    if (r < 0)
        return r;
    if (r > 0) {
        if (!*name || q->answer.n_calls >= CHAT_MAX_TOOLS)
            return -EPROTO;
        if (strlen(id) > CHAT_MAX_CALL_ID)      /* it could not be sent back to us */
            id = "";
        a->call_id = arena_strdup(&q->arena, id);
        a->call_index = MAX(index, 0);
        r = a->call_id ? attempt_call(q, ANSWER_TOOL_NAME, id, name, strlen(name)) : -ENOMEM;
        if (r < 0)
            return r;
    }
    return attempt_call(q, ANSWER_TOOL_ARGUMENTS, NULL, arguments, strlen(arguments));
}

/* Which stop string ended the answer, where the upstream tells: Anthropic's does, and some servers of OpenAI's API. */
static void stop_take(struct request *q, const json_t *choice)
{
    const char *stop = json_string_value(json_object_get(choice, "stop_reason"));

    for (size_t i = 0; stop && i < q->chat->params.n_stop; i++)
        if (strcmp(q->chat->params.stop[i], stop) == 0)
            q->answer.stop = q->chat->params.stop[i];
}

/* A chunk has `delta`; a completion that came whole has `message`. A refusal is words like others. */
static int choice_take(struct request *q, const json_t *choice)
{
    const json_t *delta = json_object_get(choice, "delta"), *calls, *call,
                 *said = delta ? delta : json_object_get(choice, "message");
    json_t *logprobs = json_object_get(json_object_get(choice, "logprobs"), "content");
    const char *text = "", *refusal = "", *finish;
    size_t i;
    int r;

    if (json_read_string(said, "content", &text, NULL) < 0 || json_read_string(said, "refusal", &refusal, NULL) < 0)
        return -EPROTO;
    if (!q->chat->params.logprobs || !json_is_array(logprobs))
        logprobs = NULL;
    attempt_text(q, text, strlen(text), json_incref(logprobs));
    attempt_text(q, refusal, strlen(refusal), NULL);

    calls = json_object_get(said, "tool_calls");
    if (calls && !json_is_null(calls) && !json_is_array(calls))
        return -EPROTO;
    json_array_foreach(calls, i, call) {
        r = call_take(q, call, !delta);
        if (r < 0)
            return r;
    }

    stop_take(q, choice);
    r = json_read_string(choice, "finish_reason", &finish, NULL);
    if (r == 1)
        q->answer.finish = finish_known(finish);
    /* Some say "stop" after the call that they were told to make. */
    if (q->answer.n_calls && q->answer.finish == finish_known("stop"))
        q->answer.finish = finish_known("tool_calls");
    return r < 0 ? -EPROTO : 0;
}

int chunk_take(struct request *q, const uint8_t *data, size_t len)
{
    cleanup(json_decrefp) json_t *event = NULL;
    const json_t *choices, *error;

    if (len == 6 && memcmp(data, "[DONE]", 6) == 0)
        return 0;
    event = json_parse(data, len, NULL);
    if (!json_is_object(event))
        return -EPROTO;
    error = json_object_get(event, "error");
    if (error && !json_is_null(error))
        return -EIO;

    usage_take(q, json_object_get(event, "usage"));
    choices = json_object_get(event, "choices");
    if (choices && !json_is_null(choices) && !json_is_array(choices))
        return -EPROTO;
    return json_array_size(choices) ? choice_take(q, json_array_get(choices, 0)) : 0;
}
