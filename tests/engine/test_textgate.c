/* What is shown, and when: stop strings over any cut of the tokens, whole characters, broken bytes. */
#include <criterion/criterion.h>
#include <string.h>

#include "engine/internal.h"

/* Push text in pieces of n bytes; true when a stop string was met. *out is what was shown, the end included. */
static bool feed(const char *text, size_t len, size_t n, char *const *stop, size_t n_stop, struct buf *out)
{
    struct textgate g;
    int r = 0;

    buf_clear(out);
    textgate_init(&g, stop, n_stop);
    for (size_t i = 0; i < len && r == 0; i += n) {
        r = textgate_push(&g, text + i, MIN(n, len - i), out);
        cr_assert_geq(r, 0);
    }
    if (r)
        cr_expect_eq(textgate_push(&g, "more", 4, out), 1);
    cr_assert_eq(textgate_flush(&g, out), 0);
    textgate_done(&g);
    return r;
}

static const struct { const char *text, *stop[4]; bool met; const char *shown; } cases[] = {
    { "hello", { NULL }, false, "hello" },
    { "hello", { "l" }, true, "he" },
    { "hello", { "lo" }, true, "hel" },
    { "hello", { "hello" }, true, "" },
    { "hello", { "hello!" }, false, "hello" },
    { "a stop word", { "STOP", "stop" }, true, "a " },
    { "aaab", { "aab" }, true, "a" },
    { "ababac", { "abac" }, true, "ab" },
    { "xabcx", { "abc", "b" }, true, "xa" },         /* complete first counts, not begun first */
    { "xabcx", { "bc", "abc" }, true, "x" },         /* of two that end together the longer */
    { "abd", { "abc" }, false, "abd" },
    { "line\n\nUser: no", { "\n\nUser:" }, true, "line" },
    { "\xe2\x82\xac and \xf0\x9f\xa6\x99", { "and" }, true, "\xe2\x82\xac " },
    { "\xe2\x82\xac and \xf0\x9f\xa6\x99", { NULL }, false, "\xe2\x82\xac and \xf0\x9f\xa6\x99" },
    { "caf\xc3\xa9", { "\xa9" }, true, "caf\xef\xbf\xbd" },
    { "a\xffz", { NULL }, false, "a\xef\xbf\xbdz" },
    { "a\xf0\x9f(", { NULL }, false, "a\xef\xbf\xbd(" },
    { "cut \xf0\x9f\xa6", { NULL }, false, "cut \xef\xbf\xbd" },
    { "\xed\xa0\x80", { NULL }, false, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" },
    { "", { "x" }, false, "" },
    { "anything", { "" }, false, "anything" },
};

Test(textgate, any_cut)
{
    cleanup(buf_done) struct buf out = { .max = 4096 };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        size_t n_stop = 0;
        while (n_stop < 4 && cases[i].stop[n_stop])
            n_stop++;
        for (size_t n = 1; n <= strlen(cases[i].text) + 1; n++) {
            bool met = feed(cases[i].text, strlen(cases[i].text), n, (char *const *)cases[i].stop, n_stop, &out);
            cr_expect_eq(met, cases[i].met, "case %zu by %zu", i, n);
            cr_expect_str_eq(out.len ? (char *)out.data : "", cases[i].shown, "case %zu by %zu", i, n);
        }
    }
}

/* Nothing is held that need not be. */
Test(textgate, prompt)
{
    static const struct { const char *piece, *shown; } steps[] = {
        { "Hel", "Hel" }, { "lo E", "lo " }, { "N", "" }, { "d", "ENd" }, { " \xf0\x9f", " " }, { "\xa6", "" },
        { "\x99!", "\xf0\x9f\xa6\x99!" }, { "E", "" }, { "E", "E" },
    };
    char *stop[] = { (char *)"END" };
    struct textgate g;

    textgate_init(&g, stop, 1);
    for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
        cleanup(buf_done) struct buf out = { .max = 4096 };
        cr_assert_eq(textgate_push(&g, steps[i].piece, strlen(steps[i].piece), &out), 0);
        cr_expect_str_eq(out.len ? (char *)out.data : "", steps[i].shown, "step %zu", i);
    }
    textgate_done(&g);
}

/* The plain meaning, for random texts over few letters: the shortest prefix that ends in a stop string, or all. */
Test(textgate, random_stops)
{
    cleanup(buf_done) struct buf out = { .max = 4096 };
    unsigned seed = 7;

    for (int round = 0; round < 20000; round++) {
        char text[13], stops[3][5], *stop[3], want[13];
        size_t n_stop = (size_t)rand_r(&seed) % 4, met = 0;
        for (size_t i = 0; i < 12; i++)
            text[i] = (char)('a' + rand_r(&seed) % 2);
        text[12] = '\0';
        for (size_t s = 0; s < n_stop; s++) {
            size_t len = 1 + (size_t)rand_r(&seed) % 4;
            for (size_t i = 0; i < len; i++)
                stops[s][i] = (char)('a' + rand_r(&seed) % 2);
            stops[s][len] = '\0';
            stop[s] = stops[s];
        }
        strcpy(want, text);
        for (size_t end = 1; end <= 12 && !met; end++)
            for (size_t s = 0; s < n_stop; s++) {
                size_t len = strlen(stop[s]);
                if (len <= end && memcmp(text + end - len, stop[s], len) == 0 && len > met) {
                    met = len;
                    strcpy(want, text);
                    want[end - len] = '\0';
                }
            }
        cr_assert_eq(feed(text, 12, 1 + (size_t)rand_r(&seed) % 12, stop, n_stop, &out), met > 0);
        cr_assert_str_eq(out.len ? (char *)out.data : "", want);
    }
}
