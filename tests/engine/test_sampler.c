/* The sampler against its plain meaning: measures by libm, distributions by counting, penalties by hand. */
#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "engine/internal.h"

static struct chat_params params(double temperature, int64_t seed)
{
    return (struct chat_params){
        .max_tokens = -1, .temperature = temperature, .top_p = 1, .min_p = NAN, .frequency_penalty = NAN,
        .presence_penalty = NAN, .repeat_penalty = NAN, .top_k = -1, .seed = seed,
    };
}

static struct sampler *make(const struct chat_params *p, size_t n)
{
    struct sampler *s;

    cr_assert_eq(sampler_new(&s, p, n), 0);
    return s;
}

/* Pick from a copy: sampler_pick() may spoil its logits. */
static struct engine_token pick(struct sampler *s, const float *logits, size_t n)
{
    float copy[512];
    struct engine_token t = { 0 };

    memcpy(copy, logits, n * sizeof(float));
    sampler_pick(s, copy, NULL, &t);
    return t;
}

Test(sampler, measures)
{
    struct chat_params p = params(0, 0);
    struct sampler *s;
    float logits[500];
    unsigned seed = 3;

    p.logprobs = true;
    p.top_logprobs = 20;
    s = make(&p, 500);
    for (int round = 0; round < 50; round++) {
        double z = 0, h = 0, max = -INFINITY;
        size_t best = 0, second = SIZE_MAX;
        struct engine_token t;

        for (size_t i = 0; i < 500; i++) {
            logits[i] = (float)(rand_r(&seed) % 2000) / 100 - (float)round;
            best = logits[i] > logits[best] ? i : best;
            max = fmax(max, logits[i]);
        }
        for (size_t i = 0; i < 500; i++) {
            z += exp(logits[i] - max);
            if (i != best && (second == SIZE_MAX || logits[i] > logits[second]))
                second = i;
        }
        for (size_t i = 0; i < 500; i++)
            h -= exp(logits[i] - max) / z * (logits[i] - max - log(z));
        t = pick(s, logits, 500);
        cr_expect_eq(t.id, best);
        cr_expect_float_eq(t.logprob, -log(z), 1e-5);
        cr_expect_float_eq(t.entropy, h, 1e-5);
        cr_expect_float_eq(t.margin, logits[best] - logits[second], 1e-6);
        cr_expect_eq(t.n_top, 20);
        cr_expect(t.top[0].id == best && t.top[1].id == second);
        for (size_t i = 0; i < 20; i++) {
            cr_expect_float_eq(t.top[i].logprob, logits[t.top[i].id] - max - log(z), 1e-5);
            cr_expect(!i || t.top[i].logprob < t.top[i - 1].logprob ||
                      (t.top[i].logprob == t.top[i - 1].logprob && t.top[i].id > t.top[i - 1].id));
        }
    }
    sampler_free(s);
}

Test(sampler, edges)
{
    struct chat_params greedy = params(0, 0), hot = params(2, 1);
    const float uniform[4] = { 1, 1, 1, 1 }, bad[4] = { NAN, -INFINITY, 3, NAN }, worst[4] = { NAN, NAN, NAN, NAN };
    const float huge[4] = { -FLT_MAX, INFINITY, FLT_MAX, 0 };
    struct sampler *a = make(&greedy, 4), *b = make(&hot, 4);
    struct engine_token t = pick(a, uniform, 4);

    cr_expect_eq(t.id, 0);            /* the lowest of equals */
    cr_expect_float_eq(t.entropy, log(4), 1e-6);
    cr_expect_float_eq(t.logprob, -log(4), 1e-6);
    cr_expect_eq(t.margin, 0);
    cr_expect_eq(pick(a, bad, 4).id, 2);
    cr_expect_eq(pick(b, bad, 4).id, 2);
    cr_expect_float_eq(pick(a, bad, 4).logprob, 0, 1e-6);
    cr_expect_lt(pick(a, worst, 4).id, 4);
    cr_expect_lt(pick(b, worst, 4).id, 4);
    t = pick(b, huge, 4);
    cr_expect(isfinite(t.logprob) && isfinite(t.margin) && isfinite(t.entropy));
    sampler_free(a);
    sampler_free(b);

    a = make(&hot, 1);
    cr_expect_eq(pick(a, uniform, 1).id, 0);
    sampler_free(a);
}

Test(sampler, seeds)
{
    float logits[100];
    uint32_t runs[4][64];

    for (size_t i = 0; i < 100; i++)
        logits[i] = (float)(i * 37 % 100) / 40;
    for (int run = 0; run < 4; run++) {
        struct chat_params p = params(1, run < 2 ? 1234 : run == 2 ? 1235 : -1);
        struct sampler *s = make(&p, 100);
        for (int i = 0; i < 64; i++)
            runs[run][i] = pick(s, logits, 100).id;
        sampler_free(s);
    }
    cr_expect_eq(memcmp(runs[0], runs[1], sizeof(runs[0])), 0);
    cr_expect_neq(memcmp(runs[0], runs[2], sizeof(runs[0])), 0);
    cr_expect_neq(memcmp(runs[0], runs[3], sizeof(runs[0])), 0);
}

/* What the filters leave, by the book: sorted probabilities cut one filter after the other. */
static void expected(const struct chat_params *p, const float *logits, size_t n, double *out)
{
    size_t order[16], kept = n;
    double prob[16], z = 0, sum = 0;

    for (size_t i = 0; i < n; i++)
        order[i] = i;
    for (size_t i = 0; i < n; i++)
        for (size_t j = i + 1; j < n; j++)
            if (logits[order[j]] > logits[order[i]]) {
                size_t x = order[i];
                order[i] = order[j];
                order[j] = x;
            }
    if (p->top_k > 0)
        kept = MIN(kept, (size_t)p->top_k);
    for (size_t i = 0; i < kept; i++)
        z += prob[i] = exp(logits[order[i]]);
    for (size_t i = 0; i < kept; i++) {
        sum += prob[i] / z;
        if (p->top_p < 1 && sum >= p->top_p) {
            kept = i + 1;
            break;
        }
    }
    for (size_t i = 1; i < kept; i++)
        if (p->min_p > 0 && prob[i] < p->min_p * prob[0])
            kept = i;
    z = 0;
    memset(out, 0, n * sizeof(*out));
    for (size_t i = 0; i < kept; i++)
        z += out[order[i]] = exp((logits[order[i]] - logits[order[0]]) / p->temperature);
    for (size_t i = 0; i < n; i++)
        out[i] /= z;
}

Test(sampler, distributions)
{
    static const struct { double temperature, top_p, min_p; int top_k; } cases[] = {
        { 1, 1, NAN, -1 }, { 0.5, 1, NAN, 0 }, { 2, 1, 0, 0 }, { 1, 1, NAN, 1 }, { 1, 1, NAN, 3 }, { 1, 1, NAN, 10 },
        { 1, 1, NAN, 4000 }, { 1, 0.7, NAN, -1 }, { 1, 0.05, NAN, -1 }, { 1, 0, NAN, -1 }, { 1, 0.999, NAN, -1 },
        { 1, 1, 0.3, -1 }, { 1, 1, 1, -1 }, { 0.7, 0.9, 0.05, 6 }, { 1.5, 0.8, NAN, 4 }, { 2, 0.95, 0.1, 8 },
        { 1e-4, 1, NAN, -1 },
    };
    static const float logits[10] = { 0.1f, 2, -1, 1.5f, 1.4f, -3, 0.9f, 2.1f, -0.5f, 0 };
    const int draws = 20000;

    for (size_t c = 0; c < ARRAY_SIZE(cases); c++) {
        struct chat_params p = params(cases[c].temperature, 99);
        double want[10], chi2 = 0;
        int count[10] = { 0 }, freedom = -1;
        struct sampler *s;

        p.top_p = cases[c].top_p;
        p.min_p = cases[c].min_p;
        p.top_k = cases[c].top_k;
        expected(&p, logits, 10, want);
        s = make(&p, 10);
        for (int i = 0; i < draws; i++)
            count[pick(s, logits, 10).id]++;
        sampler_free(s);
        for (int i = 0; i < 10; i++) {
            if (want[i] < 1e-9) {
                cr_expect_eq(count[i], 0, "case %zu drew %d", c, i);
                continue;
            }
            chi2 += pow(count[i] - want[i] * draws, 2) / (want[i] * draws);
            freedom++;
        }
        cr_expect_lt(chi2, freedom + 5 * sqrt(2.0 * freedom) + 1e-9, "case %zu: %f", c, chi2);
    }
}

/* Greedy with penalties, by hand. The measures stay those of the raw logits. */
Test(sampler, penalties)
{
    const float logits[3] = { 2, 1.5f, -0.4f }, negative[2] = { -1, -1.5f };
    const float other[3] = { 0, 9, 0 }, later[3] = { 2, 2.5f, 1.5f };
    const uint32_t by_count[4] = { 0, 0, 1, 0 }, by_presence[4] = { 0, 1, 0, 0 };
    struct chat_params p = params(0, 0);
    struct sampler *s;
    struct engine_token t;

    p.repeat_penalty = 2;
    s = make(&p, 3);
    cr_expect_eq(pick(s, logits, 3).id, 0);
    t = pick(s, logits, 3);           /* 2 / 2 against 1.5 */
    cr_expect_eq(t.id, 1);
    cr_expect_float_eq(t.margin, 0.5, 1e-6);
    cr_expect_float_eq(t.logprob, 1.5 - log(exp(2) + exp(1.5) + exp(-0.4)), 1e-5);
    t = pick(s, logits, 3);           /* 1 against 0.75; once a token, however often it came */
    cr_expect_eq(t.id, 0);
    cr_expect_float_eq(t.logprob, 2 - log(exp(2) + exp(1.5) + exp(-0.4)), 1e-5);
    cr_expect_eq(pick(s, logits, 3).id, 0);
    sampler_free(s);

    s = make(&p, 2);
    cr_expect_eq(pick(s, negative, 2).id, 0);
    cr_expect_eq(pick(s, negative, 2).id, 1);        /* -1 * 2 against -1.5 */
    sampler_free(s);

    /* The repeat penalty forgets what lies more than 64 tokens back. */
    s = make(&p, 3);
    cr_expect_eq(pick(s, logits, 3).id, 0);
    for (int i = 0; i < 63; i++)
        cr_expect_eq(pick(s, other, 3).id, 1);
    cr_expect_eq(pick(s, later, 3).id, 2);           /* 1 and 1.25 against 1.5 */
    cr_expect_eq(pick(s, later, 3).id, 0);
    sampler_free(s);

    p = params(0, 0);
    p.frequency_penalty = 0.3;
    s = make(&p, 2);
    for (int i = 0; i < 4; i++)       /* 2, 1.7, 1.4 | 1.5 first here, then 1.2 */
        cr_expect_eq(pick(s, logits, 2).id, by_count[i], "step %d", i);
    sampler_free(s);

    p = params(0, 0);
    p.presence_penalty = 0.6;
    s = make(&p, 2);
    for (int i = 0; i < 4; i++)       /* 2, then 1.4 for good; 1.5, then 0.9 */
        cr_expect_eq(pick(s, logits, 2).id, by_presence[i], "step %d", i);
    sampler_free(s);
}

/* Only what is allowed is chosen, however it is chosen; the measures are of all. */
Test(sampler, allowed)
{
    static const double temperatures[] = { 0, 1, 1, 1 };
    static const int top_ks[] = { -1, -1, 3, 200 };
    static const double top_ps[] = { 1, 1, 1, 0.8 };
    float logits[100];

    for (size_t i = 0; i < 100; i++)
        logits[i] = (float)(i * 37 % 100) / 40;
    for (size_t c = 0; c < ARRAY_SIZE(temperatures); c++) {
        struct chat_params p = params(temperatures[c], 7);
        const uint64_t few[2] = { 1u << 5 | 1u << 9 | 1u << 20, 1ull << 35 }, one[2] = { 0, 1 };
        struct sampler *s, *free_one;

        p.top_k = top_ks[c];
        p.top_p = top_ps[c];
        s = make(&p, 100);
        free_one = make(&p, 100);
        for (int i = 0; i < 200; i++) {
            struct engine_token t = { 0 }, u = pick(free_one, logits, 100);
            float copy[100];

            memcpy(copy, logits, sizeof(copy));
            sampler_pick(s, copy, i % 2 ? few : one, &t);
            cr_expect(i % 2 ? t.id == 5 || t.id == 9 || t.id == 20 || t.id == 99 : t.id == 64, "%u", t.id);
            cr_expect(temperatures[c] > 0 || !(i % 2) || t.id == 5);          /* 185 % 100 is the most of the four */
            cr_expect_eq(t.entropy, u.entropy);
            cr_expect_eq(t.margin, u.margin);
        }
        sampler_free(s);
        sampler_free(free_one);
    }
}

/* How many logits must be exact. */
Test(sampler, leading)
{
    struct chat_params p = params(0, 0);
    struct { struct chat_params p; size_t want; } cases[7];

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        cases[i].p = p;
    cases[0].want = 2;
    cases[1].p.logprobs = true, cases[1].want = 0;
    cases[2].p.frequency_penalty = 0.5, cases[2].want = 0;
    cases[3].p.temperature = 1, cases[3].want = 0;
    cases[4].p.temperature = 1, cases[4].p.top_k = 40, cases[4].want = 40;
    cases[5].p.temperature = 1, cases[5].p.top_k = 1, cases[5].want = 2;
    cases[6].p.temperature = 1, cases[6].p.top_k = SCREEN_LEADING + 1, cases[6].want = 0;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct sampler *s = make(&cases[i].p, 5000);

        cr_expect_eq(sampler_leading(s), cases[i].want, "case %zu", i);
        sampler_free(s);
    }
}
