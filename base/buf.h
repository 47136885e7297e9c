/* A growing byte buffer with a cap, for bytes that come from outside (curl's dynbuf with its `toobig`).
 * Not thread-safe. Always NUL-terminated one past `len` once anything was appended, so text can be used in place. */
#pragma once

#include <stdarg.h>
#include "base/util.h"

struct buf {
    uint8_t *data;   /* NULL until the first append */
    size_t len;      /* bytes used */
    size_t cap;      /* bytes allocated */
    size_t max;      /* never hold more than this many bytes */
};

void buf_init(struct buf *b, size_t max);
void buf_done(struct buf *b);                                         /* frees; safe on a zeroed struct */
int buf_append(struct buf *b, const void *data, size_t len);          /* 0, -ENOMEM, or -EMSGSIZE over max (b unchanged) */
int buf_puts(struct buf *b, const char *s);                           /* as buf_append */
int buf_printf(struct buf *b, const char *fmt, ...) PRINTF_LIKE(2, 3);/* as buf_append */
void buf_consume(struct buf *b, size_t n);                            /* drop n leading bytes, n <= len */
void buf_clear(struct buf *b);                                        /* len = 0, memory kept */
char *buf_take(struct buf *b);   /* hand the NUL-terminated memory to the caller, who frees it; "" is allocated if empty; NULL: no memory */
