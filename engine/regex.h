/* A regular expression as a tree; what regex.c reads and pattern.c makes a table of. */
#pragma once

#include "base/arena.h"
#include "base/err.h"

#define REGEX_ENDLESS UINT32_MAX

enum regex_kind { REGEX_SET, REGEX_SEQUENCE, REGEX_ANY_OF, REGEX_REPEAT };
struct regex_range { uint32_t lo, hi; };           /* code points, both included */
struct regex {
    enum regex_kind kind;
    struct regex *first, *next;                    /* what is inside; what stands behind this */
    struct regex_range *ranges;                    /* of a set; without surrogates */
    unsigned n_ranges, cap_ranges;
    unsigned min, max;                             /* of a repetition */
};
/* Everything lives in `a`; *work is counted down. 0, -ENOMEM, or -EINVAL with words in *err. */
int regex_parse(struct regex **ret, const char *text, struct arena *a, size_t *work, struct err *err);
