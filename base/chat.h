/* The one request format between all tiers and dialects. A dialect parses its body into this; the local tier renders it
 * with the model's chat template; the cloud tier writes it in the upstream's dialect. Whatever a dialect cannot say here
 * does not exist, so a conversation can move between tiers turn by turn.
 *
 * `messages` is a JSON array in the shape of OpenAI's chat messages, already validated and normalised:
 *     {"role": "system"|"user", "content": "text", "name": "…"}
 *     {"role": "assistant", "content": "text", "tool_calls": [{"id": "…", "type": "function",
 *         "function": {"name": "…", "arguments": "a text, JSON if the model kept to it"}}]}
 *     {"role": "tool", "content": "the call's result", "tool_call_id": "…"}
 * content is always one string (text parts joined); name and tool_calls are there only when given, tool_calls never
 * empty. Nothing else is in a message: what a client's library adds ends here. */
#pragma once

#include <math.h>
#include "base/json.h"

#define CHAT_MAX_MESSAGES 2048            /* more is a mistake or an attack; each costs the loop some work */
#define CHAT_MAX_STOPS 4
#define CHAT_MAX_TOP_LOGPROBS 20
#define CHAT_MAX_TOOLS 128                /* definitions, and calls in one message */
#define CHAT_MAX_CALL_ID 256              /* bytes of a call's id */

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

enum chat_tool_choice { CHAT_TOOL_AUTO, CHAT_TOOL_NONE, CHAT_TOOL_REQUIRED, CHAT_TOOL_NAMED };

/* response_format. Strings and schema are owned, and NULL but for json_schema, where name and schema (an object) are
 * there. */
struct chat_format {
    enum chat_format_type { CHAT_FORMAT_TEXT, CHAT_FORMAT_JSON_OBJECT, CHAT_FORMAT_JSON_SCHEMA } type;
    char *name, *description;
    json_t *schema;
    bool strict;
};

/* What is wanted. All but an answer is the local model's alone to do: vectors of texts, a text's or a prompt's ids, and the
 * text of ids. */
enum chat_task { CHAT_ANSWER, CHAT_EMBED, CHAT_TOKENIZE, CHAT_DETOKENIZE };

struct chat_request {
    enum chat_task task;
    json_t *messages;               /* owned; see above. NULL with an input */
    json_t *input;                  /* owned: of a task, instead of messages: ENGINE_EMBED's, ENGINE_TOKENIZE's or
                                       ENGINE_DETOKENIZE's payload (engine/engine.h) */
    struct chat_params params;
    /* Owned; NULL: none, else [{"type": "function", "function": {"name": "…", "description": "…", "parameters": {…},
     * "strict": true}}]: names match ^[A-Za-z0-9_-]{1,64}$ and differ; parameters is always there, an object;
     * description and strict when given. */
    json_t *tools;
    enum chat_tool_choice tool_choice;   /* REQUIRED and NAMED only with tools */
    char *tool_name;                /* owned: of CHAT_TOOL_NAMED, one of the tools; else NULL */
    int parallel_tool_calls;        /* 0, 1; -1: not given */
    struct chat_format format;
    char *model;                    /* owned: what the client asked for: "auto", a local model's name, a cloud alias, or NULL */
    bool stream;
    bool include_usage;             /* stream_options.include_usage */
};

struct chat_request *chat_request_new(void);          /* all params "not given"; NULL: no memory */
/* The same for a task. Takes input, in any case; NULL: no memory. CHAT_TOKENIZE of a prompt: set `task` of a request instead. */
struct chat_request *chat_task_new(enum chat_task task, json_t *input);
void chat_request_free(struct chat_request *r);
static inline void chat_request_freep(struct chat_request **r) { chat_request_free(*r); }

/* Bytes of all message contents and calls' arguments, for features, limits and the audit row. */
size_t chat_content_bytes(const json_t *messages);
/* The last message with role "user", or NULL; borrowed. */
const char *chat_last_user(const json_t *messages);

/* What a piece of an answer belongs to: its words, or a call: first the name, in one piece, then the arguments, the
 * text of a JSON object, in as many pieces as it takes. A call is over when another begins or words follow it. */
enum answer_channel { ANSWER_TEXT, ANSWER_TOOL_NAME, ANSWER_TOOL_ARGUMENTS };

/* {"messages":…, "max_tokens":…, …} with only the members that were given, OpenAI's names plus top_k, min_p and
 * repeat_penalty; and back. The engine's START payload and the base of an OpenAI-compatible upstream body. */
json_t *chat_request_to_json(const struct chat_request *r);               /* new reference; NULL: no memory */
/* Parse params, messages, tools and response_format strictly (ranges of struct chat_params, 1 to CHAT_MAX_MESSAGES
 * messages, known roles). Unknown members are ignored. 0, -ENOMEM, or -EINVAL with *err naming the member and what was
 * expected. Accepts max_completion_tokens as max_tokens, stop as string or array, content as a string, null beside
 * tool_calls, or an array of {"type":"text","text":…} parts; a known part of another kind (an image, sound, a file) is
 * refused by its name. */
int chat_request_from_json(struct chat_request **ret, const json_t *body, struct err *err);
