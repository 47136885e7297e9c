/* What the files of OpenAI's API share: openai.c holds it, openai_chat.c, openai_responses.c, openai_completions.c,
 * openai_embeddings.c and openai_tokens.c are one path each. */
#pragma once

#include "daemon/http.h"

#define OPENAI_STREAM "text/event-stream; charset=utf-8"
#define OPENAI_FINGERPRINT "tern-" TERN_VERSION
#define OPENAI_PING ": ping\n\n"

/* A 400 in *e; strings static or of the exchange's arena. Always -EINVAL. */
int openai_invalid(struct request_error *e, const char *param, const char *code, const char *message);
/* Is the member there, and neither null nor empty? */
bool openai_is_given(const json_t *v);
/* Refuse each of n members that is given, by its name. 0 or -EINVAL. */
int openai_unsupported(struct exchange *x, const json_t *body, const char *const *names, size_t n,
                       struct request_error *e);
/* chat_request_from_json(), with the member that its fault begins with as param. */
int openai_chat_request(struct exchange *x, const json_t *body, struct chat_request **ret, struct request_error *e);

/* One event of a stream; data is taken. NULL, or no memory for it, marks the stream as lost. A name stands on a line of
 * its own before it. */
void openai_event(struct exchange *x, const char *name, json_t *data);
/* What a cloud's answer cost, as a comment at the end: the headers were out before it was known. */
void openai_cost(struct exchange *x, const struct request_result *res);
void openai_done(struct exchange *x);                        /* "[DONE]" */
void openai_fail(struct exchange *x, const struct request_error *e);
json_t *openai_usage(const struct request_result *res);      /* prompt_tokens, completion_tokens, … */
