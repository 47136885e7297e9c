/* What ollama.c, which answers, and ollama_api.c, which tells of models, share. */
#pragma once

#include "daemon/http.h"

json_t *ollama_error(const struct request_error *e);
int ollama_invalid(struct request_error *e, const char *message);      /* -EINVAL, or -ENOMEM where message is NULL */
/* The model that a body's member names, without Ollama's ":latest", in the arena; NULL: none. */
const char *ollama_model_name(struct exchange *x, const json_t *body, const char *member);
/* 0, or -EINVAL with *e: there is no such model. */
int ollama_model_check(struct exchange *x, const char *name, struct request_error *e);
