/* Server-sent events out of bytes, after the WHATWG specification's "Interpreting an event stream". A line is gathered
 * until CR, LF or CRLF ends it, wherever the bytes were split; `cr` remembers that a CR ended the last one, so that an
 * LF that follows belongs to it. An event is dispatched by its blank line and never before: one that the end of the
 * stream leaves unfinished is dropped, as the specification has it. */
#include <errno.h>
#include <string.h>
#include "base/sse.h"

#define FIELD_BYTES 64   /* room in a line for "data: " and for other fields beside a full event */

void sse_init(struct sse *s, size_t max_event, int (*on_event)(void *arg, const uint8_t *data, size_t len), void *arg)
{
    *s = (struct sse) {.on_event = on_event, .arg = arg};
    buf_init(&s->line, max_event + FIELD_BYTES);
    buf_init(&s->data, max_event);
}

void sse_done(struct sse *s)
{
    buf_done(&s->line);
    buf_done(&s->data);
}

static int event_dispatch(struct sse *s)
{
    int r = s->has_data ? s->on_event(s->arg, s->data.data, s->data.len) : 0;

    buf_clear(&s->data);
    s->has_data = false;
    return r;
}

/* One whole line without its end. Only "data" and "data:…" matter; one space after the colon is not of the value. */
static int line_take(struct sse *s)
{
    const uint8_t *p = s->line.data;
    size_t n = s->line.len, skip;
    int r;

    if (n == 0)
        return event_dispatch(s);
    if (n < 4 || memcmp(p, "data", 4) != 0 || (n > 4 && p[4] != ':'))
        return 0;
    skip = MIN(n, (size_t)5);
    if (n > skip && p[skip] == ' ')
        skip++;

    r = s->has_data ? buf_append(&s->data, "\n", 1) : 0;
    if (r == 0)
        r = buf_append(&s->data, p + skip, n - skip);
    s->has_data = true;
    return r;
}

static size_t until_line_end(const uint8_t *p, size_t len)
{
    size_t n = 0;

    while (n < len && p[n] != '\r' && p[n] != '\n')
        n++;
    return n;
}

int sse_push(struct sse *s, const void *bytes, size_t len)
{
    const uint8_t *p = bytes, *end = p + len;

    while (p < end) {
        size_t n;
        int r;

        if (s->cr) {
            s->cr = false;
            if (*p == '\n') {
                p++;
                continue;
            }
        }

        n = until_line_end(p, (size_t)(end - p));
        r = buf_append(&s->line, p, n);
        if (r < 0)
            return r;
        p += n;
        if (p == end)
            break;

        s->cr = *p++ == '\r';
        r = line_take(s);
        buf_clear(&s->line);
        if (r < 0)
            return r;
    }
    return 0;
}
