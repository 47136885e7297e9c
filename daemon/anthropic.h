/* What anthropic.c, which answers, and anthropic_in.c, which reads, share. */
#pragma once

#include "daemon/http.h"

int anthropic_invalid(struct request_error *e, const char *message);   /* -EINVAL, or -ENOMEM where message is NULL */
/* A body of /v1/messages, or of its count_tokens, at *ret. 0, -ENOMEM, -EINVAL with *e. */
int anthropic_read(struct exchange *x, struct request_error *e, struct chat_request **ret, const json_t *body);
