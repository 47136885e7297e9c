/* The buffer doubles as it grows and stops at its cap. One byte more than `len` is always allocated for the NUL, and
 * every function that fails leaves bytes, length and NUL as they were. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "base/buf.h"

void buf_init(struct buf *b, size_t max)
{
    *b = (struct buf) {.max = max};
}

void buf_done(struct buf *b)
{
    free(b->data);
    *b = (struct buf) {.max = b->max};
}

/* Make room for len more bytes and the NUL. */
static int buf_reserve(struct buf *b, size_t len)
{
    size_t need, cap;
    uint8_t *data;

    if (len > b->max - MIN(b->len, b->max))
        return -EMSGSIZE;
    if (!size_add(&need, b->len, len) || !size_add(&need, need, 1))
        return -ENOMEM;
    if (need <= b->cap)
        return 0;

    cap = MAX(need, (size_t)64);
    if (b->cap <= SIZE_MAX / 2)
        cap = MAX(cap, b->cap * 2);
    if (cap > b->max)
        cap = need > b->max ? need : b->max;
    data = realloc(b->data, cap);
    if (!data)
        return -ENOMEM;
    b->data = data;
    b->cap = cap;
    return 0;
}

int buf_append(struct buf *b, const void *data, size_t len)
{
    int r = buf_reserve(b, len);

    if (r < 0)
        return r;
    if (len)
        memcpy(b->data + b->len, data, len);
    b->len += len;
    b->data[b->len] = 0;
    return 0;
}

int buf_puts(struct buf *b, const char *s)
{
    return buf_append(b, s, strlen(s));
}

int buf_printf(struct buf *b, const char *fmt, ...)
{
    size_t room = b->cap - MIN(b->len, b->cap);
    va_list ap;
    int n, r;

    /* Into the room there is; what was there stays, should it not do. */
    va_start(ap, fmt);
    n = vsnprintf(room ? (char *)b->data + b->len : NULL, room, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < room && (size_t)n <= b->max - MIN(b->len, b->max)) {
        b->len += (size_t)n;
        return 0;
    }
    if (room)
        b->data[b->len] = 0;
    r = n < 0 ? -ENOMEM : buf_reserve(b, (size_t)n);
    if (r < 0)
        return r;
    va_start(ap, fmt);
    vsnprintf((char *)b->data + b->len, (size_t)n + 1, fmt, ap);
    va_end(ap);
    b->len += (size_t)n;
    return 0;
}

void buf_consume(struct buf *b, size_t n)
{
    assert(n <= b->len);
    b->len -= n;
    if (n)
        memmove(b->data, b->data + n, b->len + 1);
}

void buf_clear(struct buf *b)
{
    b->len = 0;
    if (b->data)
        b->data[0] = 0;
}

char *buf_take(struct buf *b)
{
    char *text = b->data ? (char *)TAKE(b->data) : strdup("");

    if (text)
        b->len = b->cap = 0;
    return text;
}
