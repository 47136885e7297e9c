/* An arena is a list of blocks, newest first; an allocation is cut from the newest one that is open. Blocks come from
 * calloc() and no byte is given out twice, which is why what arena_alloc() returns is zeroed. What would not fit a
 * fresh block gets one of its own, put behind the head so that the room left in the head is not lost. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "base/arena.h"

#define BLOCK_BYTES 8192
#define ALIGN 16

struct arena_block {
    struct arena_block *next;
    size_t used, size;
    _Alignas(ALIGN) uint8_t data[];
};

void arena_init(struct arena *a)
{
    a->head = NULL;
}

void arena_done(struct arena *a)
{
    while (a->head) {
        struct arena_block *b = a->head;
        a->head = b->next;
        free(b);
    }
}

static struct arena_block *block_new(size_t size)
{
    struct arena_block *b;
    size_t bytes;

    if (!size_add(&bytes, sizeof(*b), size))
        return NULL;
    b = calloc(1, bytes);
    if (b)
        b->size = size;
    return b;
}

void *arena_alloc(struct arena *a, size_t n)
{
    struct arena_block *b = a->head;
    size_t bytes;

    if (!size_add(&bytes, MAX(n, (size_t)1), ALIGN - 1))
        return NULL;
    bytes &= ~(size_t)(ALIGN - 1);

    if (!b || b->size - b->used < bytes) {
        b = block_new(MAX(bytes, (size_t)BLOCK_BYTES));
        if (!b)
            return NULL;
        if (a->head && bytes > BLOCK_BYTES) {
            b->next = a->head->next;
            a->head->next = b;
        } else {
            b->next = a->head;
            a->head = b;
        }
    }
    b->used += bytes;
    return b->data + b->used - bytes;
}

char *arena_strdup(struct arena *a, const char *s)
{
    return s ? arena_strndup(a, s, strlen(s)) : NULL;
}

char *arena_strndup(struct arena *a, const char *s, size_t n)
{
    size_t len, bytes;
    char *copy;

    if (!s)
        return NULL;
    len = strnlen(s, n);
    copy = size_add(&bytes, len, 1) ? arena_alloc(a, bytes) : NULL;
    return copy ? memcpy(copy, s, len) : NULL;
}

char *arena_printf(struct arena *a, const char *fmt, ...)
{
    va_list ap;
    char *s;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0)
        return NULL;

    s = arena_alloc(a, (size_t)n + 1);
    if (!s)
        return NULL;
    va_start(ap, fmt);
    vsnprintf(s, (size_t)n + 1, fmt, ap);
    va_end(ap);
    return s;
}
