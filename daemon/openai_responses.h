/* What the two files of OpenAI's Responses share: openai_responses_in.c reads a request, openai_responses.c answers. */
#pragma once

#include "daemon/openai.h"

/* struct dialect's parse. Also sets x->keep to the members of a response that repeat the request. */
int responses_parse(struct exchange *x, const json_t *body, struct chat_request **ret, struct request_error *e);
