/* What was read is not read again: how much is found, that answers stay the same to the bit, that nobody finds what is
 * another's, and that what is kept stays within its limit. */
#include <criterion/criterion.h>
#include <string.h>

#include "tests/engine/process.h"

#define LONG_TEXT "please remember that the red box is in the kitchen, the blue box is in the garden, the green one is " \
                  "under the table and the small key is in the big drawer next to the window of the first room "

/* One user's text, under a system prompt of n sentences, for a client. */
static char *order(const char *client, unsigned n, const char *text)
{
    char *s;
    char system[2048] = "";

    for (unsigned i = 0; i < n; i++)
        strcat(system, LONG_TEXT);
    if (asprintf(&s, "{\"messages\":[{\"role\":\"system\",\"content\":\"%s\"},{\"role\":\"user\",\"content\":\"%s\"}],"
                     "\"client\":\"%s\",\"max_tokens\":60,\"repeat_penalty\":0.5,\"logprobs\":true,\"top_logprobs\":5}",
                 system, text, client) < 0)
        abort();
    return s;
}

static struct answer converse(struct engine *e, const char *client, unsigned n, const char *text)
{
    cleanup(freep) char *s = order(client, n, text);
    struct answer a = { 0 };

    send_frame(e, ENGINE_START, 1, s);
    finish(e, &a, 1);
    cr_assert(a.ended, "%s", a.message);
    return a;
}

static void expect_same(const struct answer *a, const struct answer *b)
{
    cr_expect_eq(a->n, b->n);
    cr_expect_eq(memcmp(a->ids, b->ids, a->n * sizeof(a->ids[0])), 0);
    cr_expect_eq(memcmp(a->logprobs, b->logprobs, a->n * sizeof(a->logprobs[0])), 0);
    cr_expect_str_eq(a->text, b->text);
}

Test(prefix, second_turn)
{
    struct engine_config cfg = config(2, 0), plain = config(2, 0);
    struct engine e = engine_start(&cfg), without;
    struct answer first, again, other, alike, expected;

    plain.prefix_bytes = 0;
    without = engine_start(&plain);
    expect_ready(&e);
    expect_ready(&without);
    first = converse(&e, "key a", 2, "what is 12 + 7");
    cr_expect_eq(first.prompt.n_cached, 0u);
    cr_assert_gt(first.end.n_prompt, 130u);

    /* Again: all but the token that must be read. One that begins alike: up to where it differs, within a page too. */
    again = converse(&e, "key a", 2, "what is 12 + 7");
    cr_expect_eq(again.prompt.n_cached, again.end.n_prompt - 1);
    expect_same(&first, &again);
    alike = converse(&e, "key a", 2, "what is 12 + 9 and why");
    cr_expect(alike.prompt.n_cached > 120 && alike.prompt.n_cached % 64 && alike.prompt.n_cached < alike.end.n_prompt - 1,
              "%u of %u", alike.prompt.n_cached, alike.end.n_prompt);
    expected = converse(&without, "key a", 2, "what is 12 + 9 and why");
    cr_expect_eq(expected.prompt.n_cached, 0u);
    expect_same(&alike, &expected);

    /* Of another client: nothing. */
    other = converse(&e, "key b", 2, "what is 12 + 7");
    cr_expect_eq(other.prompt.n_cached, 0u);
    expect_same(&first, &other);
    other = converse(&e, "key", 2, "what is 12 + 7");
    cr_expect_eq(other.prompt.n_cached, 0u);
    engine_stop(&e);
    engine_stop(&without);
}

/* The answer is part of what is known when the next turn brings it along, where its text is cut to the same tokens. */
Test(prefix, answers_are_kept)
{
    struct engine_config cfg = config(1, 0);
    struct engine e = engine_start(&cfg);
    struct answer a[2] = { 0 };
    char next[8192];

    expect_ready(&e);
    send_frame(&e, ENGINE_START, 1, "{\"messages\":[{\"role\":\"user\",\"content\":\"what is 12 + 7\"}]}");
    finish(&e, a, 1);
    snprintf(next, sizeof(next), "{\"messages\":[{\"role\":\"user\",\"content\":\"what is 12 + 7\"},"
             "{\"role\":\"assistant\",\"content\":\"%s\"},{\"role\":\"user\",\"content\":\"and what is 12 + 7\"}]}", a[0].text);
    send_frame(&e, ENGINE_START, 2, next);
    finish(&e, a, 2);
    cr_expect_geq(a[1].prompt.n_cached, a[0].end.n_prompt + a[0].end.n_tokens - 1, "%u of %u + %u", a[1].prompt.n_cached, a[0].end.n_prompt, a[0].end.n_tokens);
    engine_stop(&e);
}

/* Pages go, oldest use first, and a second request running beside shares what the first has read. */
Test(prefix, limit)
{
    struct engine_config cfg = config(2, 0);
    struct engine e;
    struct answer a, b[2] = { 0 };
    cleanup(freep) char *one = order("a", 2, "tell me"), *two = order("a", 2, "tell me more");

    cfg.kv = KV_F32;
    cfg.prefix_bytes = 4 * 64 * 4 * 2 * 2 * 64 * 4;      /* four pages: tokens, layers, heads, keys and values, floats */
    e = engine_start(&cfg);
    expect_ready(&e);
    a = converse(&e, "a", 2, "what is 1 + 1");
    cr_assert_lt(a.end.n_prompt + a.n, 3u * 64u + 60u);
    a = converse(&e, "b", 2, "what is 1 + 1");
    a = converse(&e, "b", 2, "what is 1 + 1");
    cr_expect_eq(a.prompt.n_cached, a.end.n_prompt - 1);
    a = converse(&e, "a", 2, "what is 1 + 1");
    cr_expect_lt(a.prompt.n_cached, a.end.n_prompt - 1);

    send_frame(&e, ENGINE_START, 1, one);
    while (!b[0].n)
        take(&e, b);
    send_frame(&e, ENGINE_START, 2, two);
    finish(&e, b, 2);
    cr_expect_gt(b[1].prompt.n_cached, 100u);
    engine_stop(&e);
}

/* Four conversations in the memory of one: whoever is parked says the same, only later. */
Test(prefix, memory)
{
    struct engine_config cfg = config(4, 0), large = config(4, 0);
    struct engine e, roomy;
    struct answer got[4] = { 0 }, want[4] = { 0 };

    cfg.kv_bytes = 1;                 /* one context, at least */
    e = engine_start(&cfg);
    roomy = engine_start(&large);
    expect_ready(&e);
    expect_ready(&roomy);
    for (uint64_t i = 0; i < 4; i++) {
        char text[32];
        cleanup(freep) char *s = NULL;

        snprintf(text, sizeof(text), "tell me about %d", (int)i);
        s = order("a", 2, text);
        memcpy(strstr(s, "\"max_tokens\":60"), "\"max_tokens\":99", 15);
        send_frame(&e, ENGINE_START, i + 1, s);
        send_frame(&roomy, ENGINE_START, i + 1, s);
    }
    finish(&e, got, 4);
    finish(&roomy, want, 4);
    for (int i = 0; i < 4; i++) {
        cr_expect(got[i].ended && got[i].end.finish == want[i].end.finish);
        expect_same(&got[i], &want[i]);
    }
    engine_stop(&e);
    engine_stop(&roomy);
}
