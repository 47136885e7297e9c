/* The table of dialects that clouds speak, and OpenAI's, which is the router's own shape. */
#include "base/util.h"
#include "router/upstream.h"

/* Empty words beside a call, which some servers refuse, are none there. */
static json_t *openai_messages(const json_t *messages)
{
    json_t *list = json_array(), *m;
    size_t i;
    int r = 0;

    json_array_foreach(messages, i, m) {
        bool mute = json_object_get(m, "tool_calls") && !json_string_length(json_object_get(m, "content"));
        json_t *copy = mute ? json_copy(m) : json_incref(m);

        r |= mute ? json_object_set_new(copy, "content", json_null()) : 0;
        r |= json_array_append_new(list, copy);
    }
    if (r == 0)
        return list;
    json_decref(list);
    return NULL;
}

/* The request, less what OpenAI's API does not know and strict servers refuse. */
static json_t *openai_body(const json_t *request, const char *model)
{
    static const char *const ours[] = {"top_k", "min_p", "repeat_penalty"};
    cleanup(json_decrefp) json_t *body = json_copy((json_t *)request);
    int r = 0;

    for (size_t i = 0; i < ARRAY_SIZE(ours); i++)
        json_object_del(body, ours[i]);
    r |= json_object_set_new(body, "model", json_string(model));
    r |= json_object_set_new(body, "messages", openai_messages(json_object_get(request, "messages")));
    r |= json_object_set_new(body, "stream", json_true());
    r |= json_object_set_new(body, "stream_options", json_pack("{s:b}", "include_usage", 1));
    return r < 0 ? NULL : TAKE(body);
}

const struct upstream *upstream_of(enum upstream_dialect dialect)
{
    static const struct upstream upstreams[] = {
        [UPSTREAM_OPENAI] = {
            .path = "/chat/completions", .key_header = "Authorization: Bearer ", .body = openai_body,
        },
        [UPSTREAM_ANTHROPIC] = {
            .path = "/messages", .key_header = "x-api-key: ", .version_header = "anthropic-version: 2023-06-01",
            .body = anthropic_body, .event = anthropic_event, .answer = anthropic_answer,
        },
    };

    return &upstreams[dialect];
}

void upstream_stream_done(struct upstream_stream *s)
{
    json_decref(s->input);
    *s = (struct upstream_stream) {0};
}
