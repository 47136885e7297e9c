/* Labels: what of a request may leave the device, in the order public < internal < private < secret. Anything that
 * cannot be understood is private at least. */
#include "policy/policy.h"

#include <errno.h>
#include <string.h>
#include <strings.h>

static const char *const names[LABEL_COUNT] = {
    [LABEL_PUBLIC] = "public",
    [LABEL_INTERNAL] = "internal",
    [LABEL_PRIVATE] = "private",
    [LABEL_SECRET] = "secret",
};

const char *label_name(enum label l)
{
    return names[(unsigned)l < LABEL_COUNT ? l : LABEL_PRIVATE];
}

static int label_from_span(enum label *ret, const char *s, size_t len)
{
    for (unsigned l = 0; l < LABEL_COUNT; l++) {
        if (strlen(names[l]) == len && strncasecmp(names[l], s, len) == 0) {
            *ret = (enum label)l;
            return 0;
        }
    }
    return -EINVAL;
}

int label_from_string(enum label *ret, const char *s)
{
    return label_from_span(ret, s, strlen(s));
}

int label_set_from_string(unsigned *ret, const char *s)
{
    unsigned set = 0;

    s += strspn(s, " \t");
    while (*s) {
        const char *end = s + strcspn(s, ", \t");
        enum label l;
        int r;

        r = label_from_span(&l, s, (size_t)(end - s));
        if (r < 0)
            return r;
        set |= 1u << l;

        s = end + strspn(end, " \t");
        if (*s == ',') {
            s++;
            s += strspn(s, " \t");
            if (!*s)
                return -EINVAL;
        } else if (*s)
            return -EINVAL;
    }

    *ret = set;
    return 0;
}

const char *label_source_name(enum label_source s)
{
    static const char *const sources[] = {
        [LABEL_FROM_DEFAULT] = "default",
        [LABEL_FROM_KEY] = "key",
        [LABEL_FROM_HEADER] = "header",
        [LABEL_FROM_DETECTOR] = "detector",
        [LABEL_FROM_ERROR] = "error",
    };
    return sources[(unsigned)s < ARRAY_SIZE(sources) ? s : LABEL_FROM_ERROR];
}

/* A label that came as a number: out of range is an error, hence private. */
static struct label_result checked(enum label l, enum label_source source)
{
    if ((unsigned)l < LABEL_COUNT)
        return (struct label_result){ l, source };
    return (struct label_result){ LABEL_PRIVATE, LABEL_FROM_ERROR };
}

struct label_result policy_label(enum label default_label, const enum label *key_label, const char *header)
{
    struct label_result by_key, by_header = { LABEL_PRIVATE, LABEL_FROM_ERROR };
    enum label l;

    if (!key_label && !header)
        return checked(default_label, LABEL_FROM_DEFAULT);
    if (header && label_from_string(&l, header) == 0)
        by_header = (struct label_result){ l, LABEL_FROM_HEADER };
    if (!key_label)
        return by_header;
    by_key = checked(*key_label, LABEL_FROM_KEY);
    return !header || by_key.label > by_header.label ? by_key : by_header;
}

struct label_result policy_label_found(struct label_result l, int scan, unsigned found, enum label raise)
{
    if (scan < 0 && l.label < LABEL_PRIVATE)
        return (struct label_result){ LABEL_PRIVATE, LABEL_FROM_ERROR };
    if (scan >= 0 && found && l.label < checked(raise, LABEL_FROM_DETECTOR).label)
        return checked(raise, LABEL_FROM_DETECTOR);
    return l;
}
