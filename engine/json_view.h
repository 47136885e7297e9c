/* JSON read where it lies, without a tree: for files of many megabytes from outside, of which little is kept. The text
 * is checked once as a whole; a view of it, or of a value inside it, can then be walked without failing. Nothing is
 * allocated. Walking past a value costs its length. */
#pragma once

#include <stdbool.h>
#include "base/err.h"

struct json_view { const char *s; size_t len; };         /* one value, without the space around it; borrowed */

/* Check that the bytes are one JSON value in UTF-8, at most 32 levels deep, and nothing else. `name` is the file's, for
 * *err, which gives the byte. 0 or -EINVAL. */
int json_view_open(struct json_view *ret, const void *data, size_t size, const char *name, struct err *err);

/* '{', '[', '"', 't', 'f', 'n', or '0' for a number. */
static inline char json_view_kind(struct json_view v)
{
    return *v.s == '-' || (*v.s >= '0' && *v.s <= '9') ? '0' : *v.s;
}

/* The members of an object or array, in order; none of any other value:
 *     for (struct json_walk w = json_walk(v); json_walk_next(&w);) use(w.key, w.value); */
struct json_walk { struct json_view key, value; const char *at, *end; bool object; };
struct json_walk json_walk(struct json_view v);
bool json_walk_next(struct json_walk *w);

/* The member of an object. 1; 0: absent or null, or v is no object; -EINVAL: the key stands twice. */
int json_view_get(struct json_view v, const char *key, struct json_view *ret, struct err *err);
size_t json_view_count(struct json_view v);               /* members of an object or array */

/* False: the value is of another kind, or no integer from 0 to 2^64-1, or is not finite. */
bool json_view_u64(struct json_view v, uint64_t *ret);
bool json_view_double(struct json_view v, double *ret);
bool json_view_bool(struct json_view v, bool *ret);
/* A string's text, unescaped. Writes at most v.len bytes, no NUL behind them, and returns how many. */
size_t json_view_text(struct json_view v, char *out);
bool json_view_is(struct json_view v, const char *text);  /* is the string `text` */
