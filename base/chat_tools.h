/* What chat.c needs of chat_tools.c: tools, the choice among them, their calls, and the answer's format. */
#pragma once

#include "base/chat.h"

/* Read tools, tool_choice, parallel_tool_calls and response_format of a body. 0, -ENOMEM, or -EINVAL with *err. */
int chat_tools_read(struct chat_request *r, const json_t *body, struct err *err);
int chat_tools_write(json_t *body, const struct chat_request *r);      /* the same, what was given; 0 or negative */
void chat_tools_done(struct chat_request *r);
/* A normalised copy of a message's tool_calls, or NULL where it has none. `at` is the message's place, for *err. */
int chat_calls_read(json_t **ret, const json_t *message, size_t at, struct err *err);
