/* Small helpers over jansson: typed reads with one error shape, so that no caller walks types by hand. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include "base/err.h"

/* cleanup(json_decrefp) is jansson's own. */

/* Parse len bytes that came from outside: duplicate keys and trailing bytes refused, nesting bounded by jansson.
 * NULL and *err ("line L column C: ..." without quoting the text) when it is not JSON. Caller owns the result. */
json_t *json_parse(const void *data, size_t len, struct err *err);

/* Read member `key` of `obj` when present and not null: 1 read, 0 absent, -EINVAL with *err naming key and the expected
 * type or range. *ret is untouched unless 1. Strings are borrowed from obj. */
int json_read_string(const json_t *obj, const char *key, const char **ret, struct err *err);
int json_read_int(const json_t *obj, const char *key, int64_t min, int64_t max, int64_t *ret, struct err *err);
int json_read_number(const json_t *obj, const char *key, double min, double max, double *ret, struct err *err);
int json_read_bool(const json_t *obj, const char *key, bool *ret, struct err *err);

/* Compact text with sorted keys (the canonical form that digests are taken over). Caller frees; NULL: no memory. */
char *json_canonical(const json_t *j);
