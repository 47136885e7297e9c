/* The options table and what can be done with one row: shared by options.c, which holds it, and config.c, which fills
 * a struct config through it. */
#pragma once

#include "daemon/config.h"

enum option_type {
    OPTION_STRING, OPTION_BOOL, OPTION_UINT, OPTION_SIZE, OPTION_DOUBLE, OPTION_MSEC, OPTION_USEC, OPTION_ENUM,
    OPTION_LABELS, OPTION_PII, OPTION_SET, OPTION_LIST, OPTION_PRICE, OPTION_SHA256,
};

/* Which struct the offset counts from. The last two are the named sections, one struct for each name. */
enum option_home { HOME_CONFIG, HOME_ROUTER, HOME_CLOUD, HOME_KEY };

struct config_option {
    const char *section, *key;
    enum option_home home;
    enum option_type type;
    const char *standard;          /* default, as one would write it; NULL: must be given */
    double min, max;               /* of numbers; sizes in bytes, durations in seconds */
    const char *const *names;      /* OPTION_ENUM, OPTION_SET: the words, the index is the value or bit; NULL-terminated */
    bool reload;                   /* a reload applies it; else it needs a restart */
    bool secret;                   /* its value is never quoted */
    size_t offset, size;           /* the member */
    size_t count_offset;           /* OPTION_LIST: size_t, how many; OPTION_ENUM: bool, was it given; 0: none */
    int (*check)(const char *value, struct err *err);   /* OPTION_STRING: what else it has to be; NULL: nothing */
    const char *about;             /* the manual's sentence; mdoc has no special meaning in it */
    const char *example;           /* shown where there is no default */
};

extern const struct config_option options[];
extern const size_t n_options;

/* Section by its first word ("cloud" for "cloud NAME"): is there one, is it named? 1 plain, 2 named, 0 unknown. */
int option_section(const char *section);
const struct config_option *option_find(const char *section, const char *key);   /* NULL: unknown */
/* The known key most like `key` (NULL: the section most like `section`), or NULL when none is. */
const char *option_nearest(const char *section, const char *key);

/* Parse `value` into the member inside `home_struct`. 0, or -EINVAL with *err saying what was found and expected. */
int option_set(const struct config_option *o, void *home_struct, const char *value, struct err *err);
bool option_equal(const struct config_option *o, const void *a, const void *b);
