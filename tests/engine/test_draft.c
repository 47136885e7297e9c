/* Guessing never changes an answer, whatever it is sampled by; and what is guessed, and when it is worth it. */
#include <criterion/criterion.h>
#include <string.h>

#include "engine/worker.h"
#include "tests/engine/process.h"

Test(draft, find)
{
    static const int32_t text[] = { 5, 1, 2, 3, 4, 9, 1, 2, 7, 8, 1, 2 }, once[] = { 1, 2, 3, 4 };
    struct draft d;

    draft_begin(&d);
    draft_find(&d, text, 12, 8);            /* 1 2: followed last by 7 8 */
    cr_expect(d.n == 4 && d.tokens[0] == 7 && d.tokens[1] == 8 && d.tokens[2] == 1);
    draft_find(&d, text, 12, 1);
    cr_expect_eq(d.n, 1);
    draft_find(&d, text, 12, 0);
    cr_expect_eq(d.n, 0);
    draft_find(&d, text, 8, 8);             /* 9 1 2: never; 1 2: at the beginning */
    cr_expect(d.n == 5 && d.tokens[0] == 3 && d.tokens[1] == 4);
    draft_find(&d, once, 4, 8);
    cr_expect_eq(d.n, 0);
    draft_find(&d, once, 1, 8);
    cr_expect_eq(d.n, 0);
}

Test(draft, worth)
{
    struct draft d = { .n = 8, .luck = 0.5 };
    struct pace p = { 0 };

    cr_expect_eq(pace_share(&p, 1), 0);
    cr_expect_eq(draft_worth(&d, 0), 8);
    cr_expect_eq(draft_worth(&d, 0.2), 2);         /* 0.5, 0.25, then 0.125 */
    cr_expect_eq(draft_worth(&d, 0.6), 0);
    for (size_t i = 0; i < 50; i++) {
        d.tokens[0] = 1;
        draft_learn(&d, 0, 1);
    }
    cr_expect_gt(d.luck, 0.95);
    cr_expect_eq(draft_worth(&d, 0.6), 8);

    pace_note(&p, 1, 0.010);
    cr_expect_eq(pace_share(&p, 1), 0);
    pace_note(&p, 5, 0.012);          /* reading weights is most of it */
    cr_expect_float_eq(pace_share(&p, 1), 0.05, 1e-6);
    p = (struct pace){ 0 };
    pace_note(&p, 1, 0.010);
    pace_note(&p, 4, 0.040);          /* computing is all of it */
    cr_expect_float_eq(pace_share(&p, 1), 1, 1e-6);
}

/* Each of these, with and without guessing, and with several at once: the same tokens and the same text. */
Test(draft, same_answers, .timeout = 120)
{
    static const char *const more[] = {
        "", ",\"temperature\":1,\"seed\":7", ",\"temperature\":0.7,\"top_k\":20,\"seed\":3", ",\"temperature\":1.5,\"top_p\":0.9,\"seed\":1",
        ",\"logprobs\":true,\"top_logprobs\":4", ",\"repeat_penalty\":0.1", ",\"repeat_penalty\":0.1,\"temperature\":0.5,\"seed\":5",
        ",\"repeat_penalty\":0.1,\"stop\":\"e t\"",
    };
    static const char *const users[] = { "tell me", "what is 12 + 7", "how would you say fly in italian" };
    struct engine_config cfg = config(8, 0), plain = config(8, 0);
    struct engine e, without;
    size_t guessed = 0;

    plain.draft = false;
    cfg.draft_always = true;
    e = engine_start(&cfg);
    without = engine_start(&plain);
    expect_ready(&e);
    expect_ready(&without);
    for (size_t u = 0; u < ARRAY_SIZE(users); u++) {
        struct answer got[8] = { 0 }, want[8] = { 0 };

        for (size_t i = 0; i < 8; i++) {
            char params[256];

            snprintf(params, sizeof(params), "%s,\"max_tokens\":80", more[i]);
            start(&e, i + 1, users[u], params);
            start(&without, i + 1, users[u], params);
        }
        finish(&e, got, 8);
        finish(&without, want, 8);
        for (size_t i = 0; i < 8; i++) {
            cr_expect_eq(got[i].n, want[i].n, "%s%s", users[u], more[i]);
            cr_expect_eq(memcmp(got[i].ids, want[i].ids, want[i].n * sizeof(want[i].ids[0])), 0, "%s%s", users[u], more[i]);
            cr_expect_eq(memcmp(got[i].logprobs, want[i].logprobs, want[i].n * sizeof(want[i].logprobs[0])), 0);
            cr_expect_str_eq(got[i].text, want[i].text);
            cr_expect_eq(got[i].end.finish, want[i].end.finish);
            guessed += got[i].end.n_guessed;
            cr_expect_eq(want[i].end.n_guessed, 0u);
        }
    }
    cr_expect_gt(guessed, 50, "%zu tokens were guessed", guessed);
    engine_stop(&e);
    engine_stop(&without);
}
