/* sse.c: the same stream gives the same events for every split and every kind of line end, and never more memory. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "base/sse.h"

#define MAX_EVENT 64

/* Events are written down one after another, each between brackets. */
static int note(void *arg, const uint8_t *data, size_t len)
{
    struct buf *seen = arg;

    cr_assert_eq(data[len], 0);
    if (len == 4 && memcmp(data, "FAIL", 4) == 0)
        return -EPERM;
    return buf_printf(seen, "[%.*s]", (int)len, (const char *)data);
}

/* Push `text` in pieces cut at a and b. */
static int push(struct buf *seen, const char *text, size_t len, size_t a, size_t b)
{
    struct sse s;
    int r;

    sse_init(&s, MAX_EVENT, note, seen);
    r = sse_push(&s, text, a);
    if (r == 0)
        r = sse_push(&s, text + a, b - a);
    if (r == 0)
        r = sse_push(&s, text + b, len - b);
    sse_done(&s);
    return r;
}

static const struct { const char *text, *events; } streams[] = {
    {"data: a\n\ndata: b\n\n", "[a][b]"},
    {"data:a\n\ndata:  b\n\n", "[a][ b]"},
    {"data: one\ndata: two\ndata:\n\n", "[one\ntwo\n]"},
    {"data\n\n", "[]"},
    {"data:\n\n\n\n", "[]"},
    {": comment\n\n: again\ndata: x\n\n", "[x]"},
    {"event: e\nid: 7\nretry: 10\ndata: x\ndatax: y\nda: z\n\n", "[x]"},
    {"event: nothing\n\n", ""},
    {"data: {\"a\":\"b: c\"}\n\n", "[{\"a\":\"b: c\"}]"},
    {"data: gr\xc3\xbc\xc3\x9f\n\n", "[gr\xc3\xbc\xc3\x9f]"},
    {"data: unfinished\n", ""},
    {"\n\n\ndata: [DONE]\n\n", "[[DONE]]"},
};

/* Write every "\n" of `text` as `end`. */
static char *with_line_ends(const char *text, const char *end)
{
    struct buf b;

    buf_init(&b, 4096);
    for (; *text; text++)
        cr_assert_eq(*text == '\n' ? buf_puts(&b, end) : buf_append(&b, text, 1), 0);
    return buf_take(&b);
}

Test(sse, every_split_and_line_end)
{
    static const char *const ends[] = {"\n", "\r", "\r\n"};

    for (size_t i = 0; i < ARRAY_SIZE(streams); i++)
        for (size_t e = 0; e < ARRAY_SIZE(ends); e++) {
            cleanup(freep) char *text = with_line_ends(streams[i].text, ends[e]);
            size_t len = strlen(text);

            for (size_t a = 0; a <= len; a++)
                for (size_t b = a; b <= len; b++) {
                    cleanup(buf_done) struct buf seen;

                    buf_init(&seen, 4096);
                    cr_assert_eq(buf_puts(&seen, ""), 0);
                    cr_assert_eq(push(&seen, text, len, a, b), 0);
                    cr_assert_str_eq((char *)seen.data, streams[i].events,
                                     "stream %zu, line end %zu, cut %zu %zu", i, e, a, b);
                }
        }
}

Test(sse, line_ends_mixed)
{
    static const char text[] = "data: a\r\ndata: b\rdata: c\n\r\ndata: d\r\r\ndata: e\n\n";
    cleanup(buf_done) struct buf seen;

    buf_init(&seen, 4096);
    cr_assert_eq(push(&seen, text, strlen(text), 0, 0), 0);
    cr_assert_str_eq((char *)seen.data, "[a\nb\nc][d][e]");
}

/* Exactly max_event passes; one more, in one line or over many, in one push or byte by byte, does not. */
Test(sse, oversized)
{
    char text[4096];
    cleanup(buf_done) struct buf seen;

    buf_init(&seen, 4096);
    snprintf(text, sizeof(text), "data: %0*d\n\n", MAX_EVENT, 1);
    cr_assert_eq(push(&seen, text, strlen(text), 3, 9), 0);
    cr_assert_eq(seen.len, MAX_EVENT + 2);

    snprintf(text, sizeof(text), "data: %0*d\n\n", MAX_EVENT + 1, 1);
    cr_assert_eq(push(&seen, text, strlen(text), 3, 9), -EMSGSIZE);

    text[0] = 0;
    for (int i = 0; i < MAX_EVENT; i++)
        strcat(text, "data: x\n");
    cr_assert_eq(push(&seen, text, strlen(text), 3, 9), -EMSGSIZE);

    /* A comment that never ends is bounded as well. */
    struct sse s;
    int r = 0;
    size_t n = 0;

    sse_init(&s, MAX_EVENT, note, &seen);
    for (r = sse_push(&s, ":", 1); r == 0 && n < 10000; n++)
        r = sse_push(&s, "x", 1);
    cr_assert_eq(r, -EMSGSIZE);
    cr_assert_leq(s.line.cap, 2 * (MAX_EVENT + 128));
    sse_done(&s);
}

Test(sse, callback_failure_is_passed_up)
{
    static const char text[] = "data: a\n\ndata: FAIL\n\ndata: never\n\n";
    cleanup(buf_done) struct buf seen;

    buf_init(&seen, 4096);
    cr_assert_eq(push(&seen, text, strlen(text), 0, 0), -EPERM);
    cr_assert_str_eq((char *)seen.data, "[a]");
}
