/* From the pieces of tokens to text that may be shown: whole UTF-8 characters, nothing of a stop string.
 *
 * What is held is the shortest tail that could still become a stop string or a character, so a few bytes. Of several
 * stop strings the one that is complete first counts, the longest if two end together; so the answer does not depend on
 * where the tokens were cut. */
#include <errno.h>
#include <string.h>

#include "engine/internal.h"
#include "engine/utf8.h"

#define HELD_MAX (1u << 24)

void textgate_init(struct textgate *g, char *const *stop, size_t n_stop)
{
    *g = (struct textgate){ .stop = stop, .n_stop = n_stop };
    buf_init(&g->held, HELD_MAX);
}

void textgate_done(struct textgate *g)
{
    buf_done(&g->held);
}

/* Where the stop string that ends first begins, or -1. */
static ssize_t find_stop(struct textgate *g)
{
    size_t best_end = SIZE_MAX;
    ssize_t start = -1;

    for (size_t i = 0; i < g->n_stop; i++) {
        size_t len = strlen(g->stop[i]);
        const uint8_t *hit = len && g->held.len ? memmem(g->held.data, g->held.len, g->stop[i], len) : NULL;
        if (!hit)
            continue;
        size_t end = (size_t)(hit - g->held.data) + len;
        if (end < best_end || (end == best_end && hit - g->held.data < start)) {
            best_end = end;
            start = hit - g->held.data;
            g->met = i;
        }
    }
    return start;
}

/* How many bytes at the end may be the beginning of a stop string. */
static size_t stop_tail(const struct textgate *g)
{
    size_t tail = 0;

    for (size_t i = 0; i < g->n_stop; i++)
        for (size_t n = MIN(strlen(g->stop[i]), g->held.len + 1); n-- > tail + 1;)
            if (memcmp(g->held.data + g->held.len - n, g->stop[i], n) == 0)
                tail = n;
    return tail;
}

/* Move the first n held bytes to out, as whole characters. One that is only begun stays, unless this is the end. */
static int show(struct textgate *g, size_t n, bool end, struct buf *out)
{
    const char *s = (const char *)g->held.data;
    size_t at = 0;
    int r = 0;

    while (at < n && r == 0) {
        int k = utf8_scan(s + at, n - at, NULL);
        if (k == 0 && !end)
            break;
        r = k > 0 ? buf_append(out, s + at, (size_t)k) : buf_puts(out, "\uFFFD");
        at += k > 0 ? (size_t)k : k < 0 ? (size_t)-k : n - at;
    }
    if (at)
        buf_consume(&g->held, at);
    return r < 0 ? -ENOMEM : 0;
}

int textgate_push(struct textgate *g, const char *piece, size_t len, struct buf *out)
{
    ssize_t stop;
    int r;

    if (g->stopped)
        return 1;
    if (buf_append(&g->held, piece, len) < 0)
        return -ENOMEM;
    stop = find_stop(g);
    if (stop < 0)
        return show(g, g->held.len - stop_tail(g), false, out);
    g->stopped = true;
    r = show(g, (size_t)stop, true, out);
    buf_clear(&g->held);
    return r < 0 ? r : 1;
}

int textgate_flush(struct textgate *g, struct buf *out)
{
    return show(g, g->held.len, true, out);
}
