/* Server-sent events out of bytes, for everything that reads a stream: egress and ternctl.
 * Feed any split of the stream; `on_event` gets each event's data (lines joined by \n), in order, for LF, CR, CRLF. Comments
 * and other fields are skipped. Memory is bounded by max_event. */
#pragma once

#include <stdbool.h>
#include "base/buf.h"

struct sse {
    struct buf line, data;
    bool cr, has_data;
    int (*on_event)(void *arg, const uint8_t *data, size_t len);    /* 0, or a negative errno that sse_push passes up */
    void *arg;
};
void sse_init(struct sse *s, size_t max_event, int (*on_event)(void *arg, const uint8_t *data, size_t len), void *arg);
void sse_done(struct sse *s);
int sse_push(struct sse *s, const void *bytes, size_t len);         /* 0, -EMSGSIZE, -ENOMEM, or on_event's */
