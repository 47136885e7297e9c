/* The screened head against the whole one, to the bit: random heads, near-ties, equal and zero and huge rows, all types,
 * and the bound itself, row by row. */
#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "engine/forward.h"

#define COLS 1000               /* not a multiple of 128 */
#define ROWS 8500               /* enough for a copy to be made */
#define BATCH 20                /* more than share one pass */

static uint64_t state = 1;

static double uniform(void)
{
    uint64_t z = state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static float normal(void)
{
    return (float)((uniform() + uniform() + uniform() + uniform() - 2) * sqrt(3));
}

/* A forward pass of which only the head is there: x goes in, logits come out. */
struct fake {
    struct model m;
    struct forward f;
    struct forward_row rows[BATCH];
    float *w, *gain, *logits, *whole;
    uint8_t *bytes;
    float within[BATCH];
};

static void fake_new(struct fake *e)
{
    *e = (struct fake){ .m = { .n_embd = COLS, .n_vocab = ROWS, .rms_eps = 1e-5f } };
    e->w = calloc((size_t)ROWS * COLS, sizeof(float));
    e->bytes = calloc((size_t)ROWS * COLS, sizeof(float));
    e->gain = calloc(COLS, sizeof(float));
    e->logits = calloc(ROWS * BATCH, sizeof(float));
    e->whole = calloc(ROWS * BATCH, sizeof(float));
    e->f.x = calloc(BATCH * COLS, sizeof(float));
    e->f.h = calloc(BATCH * COLS, sizeof(float));
    e->f.lines = calloc(2 * COLS, sizeof(float));
    e->f.wants = calloc(BATCH, sizeof(void *));
    e->f.m = &e->m;
    e->f.kernels = kernels_get(NULL);
    e->f.wide = e->f.line = COLS;
    e->f.rows = e->rows;
    e->m.output_norm = e->gain;
    for (size_t c = 0; c < COLS; c++)
        e->gain[c] = (float)(0.5 + uniform());
    for (size_t i = 0; i < (size_t)ROWS * COLS; i++)
        e->w[i] = normal();
    for (size_t i = 0; i < BATCH * COLS; i++)
        e->f.x[i] = normal();
    cr_assert_eq(pool_new(&e->f.pool, 2), 0);
}

static void fake_done(struct fake *e)
{
    head_free(e->f.head);
    pool_free(e->f.pool);
    free(e->w);
    free(e->bytes);
    free(e->gain);
    free(e->logits);
    free(e->whole);
    free(e->f.x);
    free(e->f.h);
    free(e->f.lines);
    free(e->f.wants);
}

/* Make the head of w, in half precision or as it is. */
static void make_head(struct fake *e, enum tensor_type type)
{
    e->m.head = (struct dense){ .w = e->bytes, .type = type, .rows = ROWS, .cols = COLS };
    for (size_t i = 0; i < (size_t)ROWS * COLS; i++) {
        uint16_t half = f32_to_f16(e->w[i]);
        union { float f; uint32_t u; } v = { .f = e->w[i] };

        if (type == TENSOR_BF16)
            half = (uint16_t)(v.u >> 16);
        if (type == TENSOR_F32)
            memcpy(e->bytes + 4 * i, &e->w[i], 4);
        else
            memcpy(e->bytes + 2 * i, &half, 2);
    }
    head_free(e->f.head);
    e->f.head = NULL;
    cr_assert_eq(head_new(&e->f.head, &e->m.head, NULL, e->f.pool), 0);
}

static bool bit(const uint64_t *allowed, size_t i)
{
    return !allowed || allowed[i / 64] >> i % 64 & 1;
}

/* Are the leading ones of `got` among those allowed the leading ones of `want`, to the bit and in any order among equals? */
static bool leads(const float *got, const float *want, size_t leading, const uint64_t *allowed)
{
    float last = INFINITY;

    for (size_t k = 0; k < leading;) {
        float best = -INFINITY, best_want = -INFINITY;

        for (size_t i = 0; i < ROWS; i++)
            if (bit(allowed, i)) {
                best = got[i] < last ? fmaxf(best, got[i]) : best;
                best_want = want[i] < last ? fmaxf(best_want, want[i]) : best_want;
            }
        if (best != best_want)
            return false;
        if (best == -INFINITY)
            return true;         /* no more are allowed */
        for (size_t i = 0; i < ROWS; i++) {
            if (bit(allowed, i) && (got[i] == best) != (want[i] == best))
                return false;
            k += bit(allowed, i) && got[i] == best;
        }
        last = best;
    }
    return true;
}

/* Run n rows whole, then screened, and compare; returns how many logits of the first row were estimates. */
static size_t compare(struct fake *e, size_t n, size_t leading, const uint64_t *allowed, const char *what)
{
    size_t estimates = 0;

    e->f.n = n;
    for (size_t i = 0; i < n; i++)
        e->rows[i] = (struct forward_row){ .logits = e->whole + i * ROWS, .within = &e->within[i] };
    head_run(&e->f);
    for (size_t i = 0; i < n; i++) {
        cr_assert_eq(e->within[i], 0);
        e->rows[i].logits = e->logits + i * ROWS;
        e->rows[i].leading = leading;
        e->rows[i].allowed = allowed;
    }
    head_run(&e->f);
    for (size_t i = 0; i < n; i++) {
        const float *got = e->logits + i * ROWS, *want = e->whole + i * ROWS;

        cr_expect(leads(got, want, leading, NULL), "%s, row %zu of %zu: the leading %zu", what, i, n, leading);
        if (allowed)
            cr_expect(leads(got, want, leading, allowed), "%s, row %zu: the leading %zu allowed", what, i, leading);
        for (size_t r = 0; r < ROWS; r++) {
            cr_assert_leq(fabs((double)got[r] - (double)want[r]), e->within[i], "%s, row %zu: logit %zu is %g for %g, "
                          "within %g", what, i, r, (double)got[r], (double)want[r], (double)e->within[i]);
            estimates += i == 0 && got[r] != want[r];
        }
    }
    return estimates;
}

Test(screen, random_heads)
{
    static const enum tensor_type types[] = { TENSOR_F16, TENSOR_F32, TENSOR_BF16 };
    static const size_t leadings[] = { 1, 2, 40, SCREEN_LEADING };
    struct fake e;

    fake_new(&e);
    for (size_t t = 0; t < ARRAY_SIZE(types); t++) {
        make_head(&e, types[t]);
        for (size_t k = 0; k < ARRAY_SIZE(leadings); k++) {
            size_t estimates = compare(&e, k == 1 ? BATCH : 3, leadings[k], NULL, "random");

            cr_expect(leadings[k] > 2 || estimates > ROWS * 3 / 4, "%zu estimates", estimates);
        }
    }
    fake_done(&e);
}

/* Each bound holds for its own row, and it is not idle: some row comes within a tenth of it. */
Test(screen, bounds)
{
    struct screen *s = NULL;
    struct screen_query q;
    struct fake e;
    float most = 0, *line;
    int8_t *planes;

    fake_new(&e);
    e.m.head = (struct dense){ .w = e.w, .type = TENSOR_F32, .rows = ROWS, .cols = COLS };
    /* What the rows lose points where x does: the worst case. */
    for (size_t c = 0; c < COLS; c++)
        e.f.x[c] = c % 2 ? 1.0f : -1.0f;
    for (size_t r = 0; r < 64; r++)
        for (size_t c = 0; c < COLS; c++)
            e.w[r * COLS + c] = c ? (float)(c % 31) + (c % 2 ? 0.49f : -0.49f) : 31;
    cr_assert_eq(screen_new(&s, &e.m.head, NULL, e.f.pool), 0);
    planes = calloc(2, s->padded);
    line = calloc(COLS, sizeof(float));
    q.planes = planes;
    screen_ask(s, &q, e.f.x);
    cr_assert(q.possible);
    for (size_t r = 0; r < ROWS; r++) {
        int32_t sums[2];
        float logit, estimate, within;

        dense_row(&e.m.head, r, line);
        e.f.kernels->matmul_f32(&logit, 1, line, e.f.x, COLS, 1, 1, COLS);
        e.f.kernels->sixbit_matmul(sums, 1, s->w + r * (s->padded / 128 * SIXBIT_BLOCK_BYTES), planes, s->padded, 2, 1,
                                   s->padded);
        estimate = screen_estimate(s, &q, r, sums[0], sums[1]);
        within = screen_within(s, &q, r, estimate);
        cr_assert_leq(fabs((double)logit - (double)estimate), within, "row %zu", r);
        cr_assert_leq(within, screen_within_all(s, &q));
        most = fmaxf(most, fabsf(logit - estimate) / within);
    }
    cr_expect_gt(most, 0.9);
    screen_free(s);
    free(planes);
    free(line);
    fake_done(&e);
}

static void set_row(struct fake *e, size_t r, const float *from, float factor)
{
    for (size_t c = 0; c < COLS; c++)
        e->w[r * COLS + c] = from[c] * factor;
}

Test(screen, adversarial)
{
    struct fake e;
    float *x;

    fake_new(&e);
    x = e.f.x;

    /* A thousand rows that point where x does, a last bit apart, so that what looks best is not. */
    for (size_t r = 0; r < 400; r++) {
        set_row(&e, r * 20, x, 0.01f);
        e.w[r * 20 * COLS + r] = nextafterf(e.w[r * 20 * COLS + r], r % 2 ? 9.0f : -9.0f);
    }
    make_head(&e, TENSOR_F32);
    compare(&e, 2, 2, NULL, "near ties");
    compare(&e, 2, 60, NULL, "near ties");

    /* Rows that are equal: the lowest of them is the argmax, so all must be exact. */
    for (size_t r = 0; r < 300; r++)
        memcpy(e.w + (8000 + r) * COLS, e.w + 17 * COLS, COLS * sizeof(float));
    set_row(&e, 17, x, 0.02f);
    for (size_t r = 0; r < 300; r++)
        set_row(&e, 5000 + r, x, 0.02f);
    make_head(&e, TENSOR_F32);
    compare(&e, 2, 1, NULL, "equal rows");

    /* All equal, and all zero: every row leads. */
    for (size_t r = 0; r < ROWS; r++)
        set_row(&e, r, x, 0.5f);
    make_head(&e, TENSOR_F16);
    cr_expect_eq(compare(&e, 2, 1, NULL, "one row"), 0);
    memset(e.w, 0, (size_t)ROWS * COLS * sizeof(float));
    make_head(&e, TENSOR_F16);
    cr_expect_eq(compare(&e, 2, 1, NULL, "zeros"), 0);

    /* One huge row, some tiny ones, zeros elsewhere; one weight that hides all others of its row. */
    set_row(&e, 3, x, 1e20f);
    set_row(&e, 4, x, 1e-38f);
    set_row(&e, 5, x, 1e-44f);
    set_row(&e, 6, x, -1e20f);
    e.w[7 * COLS] = 1e20f;
    for (size_t r = 100; r < ROWS; r++)
        for (size_t c = 0; c < COLS; c++)
            e.w[r * COLS + c] = normal() * (c == r % COLS ? 1000.0f : 1.0f);
    make_head(&e, TENSOR_F32);
    compare(&e, 3, 5, NULL, "extremes");

    /* Sums that may overflow, infinite and missing numbers: the whole product answers, whatever that is. */
    set_row(&e, 3, x, 1e37f);
    make_head(&e, TENSOR_F32);
    e.f.n = 1;
    e.rows[0] = (struct forward_row){ .logits = e.whole };
    head_run(&e.f);
    e.rows[0] = (struct forward_row){ .logits = e.logits, .leading = 2 };
    head_run(&e.f);
    cr_expect_eq(memcmp(e.logits, e.whole, ROWS * sizeof(float)), 0);
    x[5] = NAN;
    x[6] = INFINITY;
    head_run(&e.f);
    fake_done(&e);
}

Test(screen, allowed)
{
    static uint64_t allowed[(ROWS + 63) / 64];
    struct fake e;

    fake_new(&e);
    make_head(&e, TENSOR_F16);
    allowed[100] = 0xff;        /* few */
    compare(&e, 3, 2, allowed, "eight allowed");
    compare(&e, 3, 40, allowed, "eight allowed");
    memset(allowed, 0x11, sizeof(allowed));
    compare(&e, 3, 2, allowed, "a quarter allowed");
    cr_expect_gt(compare(&e, 3, 1, allowed, "a quarter allowed"), ROWS / 2);
    memset(allowed, 0, sizeof(allowed));
    compare(&e, 1, 2, allowed, "none allowed");
    fake_done(&e);
}
