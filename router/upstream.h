/* The dialects that clouds speak. Inside the router there is one shape, OpenAI's chat completions: a body is written by
 * its dialect from that shape just before it is recorded and sent, and what comes back is turned into chunks of that
 * shape by the egress worker, before anyone else sees it. A dialect is one row of the table and, where it differs, one
 * file. Pure: JSON in, JSON out. */
#pragma once

#include "base/json.h"

enum upstream_dialect { UPSTREAM_OPENAI, UPSTREAM_ANTHROPIC };

/* What has to be kept between the events of one answer; zeroed at its start. */
struct upstream_stream {
    int64_t tokens_in, tokens_cached;
    unsigned n_calls;                  /* tool calls begun; the last one is being written while in_call */
    bool in_call, has_arguments;
    json_t *input;                     /* its arguments as they stood in its first event, owned, or NULL */
    bool over;                         /* set by the event that ends the answer */
};

struct upstream {
    const char *path;                  /* added to the endpoint's url */
    const char *key_header;            /* up to the key */
    const char *version_header;        /* whole, or NULL */
    /* The body for `request`, which is chat_request_to_json()'s and is borrowed. It always asks for a stream and for
     * usage. New reference; NULL: no memory. */
    json_t *(*body)(const json_t *request, const char *model);
    /* One event, borrowed, into one chunk: 1 with *ret a new reference, 0 when the event says nothing, -ENOMEM,
     * -EPROTO. NULL: the event is a chunk. An event with an `error` member does not come here. */
    int (*event)(json_t **ret, struct upstream_stream *s, const json_t *event);
    /* A whole answer, borrowed, into a chat completion: as `event`. NULL: it is one. */
    int (*answer)(json_t **ret, const json_t *answer);
};

const struct upstream *upstream_of(enum upstream_dialect dialect);
void upstream_stream_done(struct upstream_stream *s);

/* upstream_anthropic.c */
json_t *anthropic_body(const json_t *request, const char *model);
int anthropic_event(json_t **ret, struct upstream_stream *s, const json_t *event);
int anthropic_answer(json_t **ret, const json_t *answer);
