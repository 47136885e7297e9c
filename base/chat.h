/* The one request format between all tiers and dialects. A dialect parses its body into this; the local tier renders it
 * with the model's chat template; the cloud tier writes it in the upstream's dialect. Whatever a dialect cannot say here
 * does not exist, so a conversation can move between tiers turn by turn.
 *
 * `messages` is a JSON array in the shape of OpenAI's chat messages, already validated and normalised:
 *     {"role": "system"|"user"|"assistant"|"tool", "content": "text", ...}
 * content is always one string (text parts joined); other members (name, tool_calls, tool_call_id) are kept. */
#pragma once

#include <math.h>
#include "base/json.h"

#define CHAT_MAX_MESSAGES 2048            /* more is a mistake or an attack; each costs the loop some work */
#define CHAT_MAX_STOPS 4
#define CHAT_MAX_TOP_LOGPROBS 20

/* What the client asked of the sampler. A double that is NAN, or an int that is -1, was not given: the tier's default
 * holds. `stop` strings are owned. */
struct chat_params {
    int max_tokens;                 /* new tokens, >= 1; -1: the tier's default */
    double temperature;             /* 0..2 */
    double top_p;                   /* 0..1 */
    double min_p;                   /* 0..1 */
    double frequency_penalty;       /* -2..2 */
    double presence_penalty;        /* -2..2 */
    double repeat_penalty;          /* 0.1..10, llama.cpp's meaning over the last 64 tokens */
    int top_k;                      /* >= 0, 0: off */
    int64_t seed;                   /* >= 0; -1: random */
    bool logprobs;                  /* token log-probabilities wanted in the answer */
    int top_logprobs;               /* 0..CHAT_MAX_TOP_LOGPROBS alternatives a token */
    char *stop[CHAT_MAX_STOPS];
    size_t n_stop;
};

struct chat_request {
    json_t *messages;               /* owned; see above */
    struct chat_params params;
    char *model;                    /* owned: what the client asked for: "auto", a local model's name, a cloud alias, or NULL */
    bool stream;
    bool include_usage;             /* stream_options.include_usage */
};

struct chat_request *chat_request_new(void);          /* all params "not given"; NULL: no memory */
void chat_request_free(struct chat_request *r);
static inline void chat_request_freep(struct chat_request **r) { chat_request_free(*r); }

/* Bytes of all message contents, for features, limits and the audit row. */
size_t chat_content_bytes(const json_t *messages);
/* The last message with role "user", or NULL; borrowed. */
const char *chat_last_user(const json_t *messages);

/* {"messages":…, "max_tokens":…, …} with only the members that were given, OpenAI's names plus top_k, min_p and
 * repeat_penalty; and back. The engine's START payload and the base of an OpenAI-compatible upstream body. */
json_t *chat_request_to_json(const struct chat_request *r);               /* new reference; NULL: no memory */
/* Parse params and messages strictly (ranges of struct chat_params, 1 to CHAT_MAX_MESSAGES messages, known roles). Unknown members
 * are ignored. 0, -ENOMEM, or -EINVAL with *err naming the member and what was expected. Accepts max_completion_tokens
 * as max_tokens, stop as string or array, content as a string, null, or an array of {"type":"text","text":…} parts. */
int chat_request_from_json(struct chat_request **ret, const json_t *body, struct err *err);
