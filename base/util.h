/* The few idioms every folder uses. */
#pragma once

#include <stdint.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

/* Run `fn` on the variable's address when it goes out of scope: cleanup(buf_done) struct buf b = {0}; */
#define cleanup(fn) __attribute__((cleanup(fn)))
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

#define USEC_PER_SEC  1000000ULL
#define USEC_PER_MSEC 1000ULL

/* Hand a pointer on and forget it: *ret = TAKE(m); */
#define TAKE(p) ({ __typeof__(p) take_ = (p); (p) = NULL; take_; })

static inline void freep(void *p) { free(*(void **)p); }
static inline void closep(const int *fd) { if (*fd >= 0) close(*fd); }

/* Bounded arithmetic for sizes read from outside: false, and *r untouched, on overflow. */
static inline int size_mul(size_t *r, size_t a, size_t b)
{
    size_t v;
    if (__builtin_mul_overflow(a, b, &v))
        return 0;
    *r = v;
    return 1;
}
static inline int size_add(size_t *r, size_t a, size_t b)
{
    size_t v;
    if (__builtin_add_overflow(a, b, &v))
        return 0;
    *r = v;
    return 1;
}
