/* The screening copy of the head, whose proof is in internal.h: here the numbers in it are made, every one of them
 * rounded to the safe side. */
#include <errno.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "engine/internal.h"

#define LEVELS 31               /* of a weight's magnitude */
#define TO_INTEGER 12582912.0f   /* 1.5 * 2^23: adding and taking it away rounds */
#define PLANE_LEVELS 16256      /* 127 * 128: of an activation's */
#define WORTH_WEIGHTS (8u << 20) /* in a head below this its copy saves less than it costs */

/* A float no smaller than d, which was summed up in double. */
static float at_least(double d)
{
    return d > 0 ? nextafterf((float)(d * (1 + 1e-9)), INFINITY) : 0;
}

bool screen_is_worth(const struct dense *head)
{
    return head->rows > SCREEN_LEADING * 16 && head->cols <= 1 << 18 && head->rows >= WORTH_WEIGHTS / head->cols;
}

/* Row r of the head, its floats in x and scratch for as many integers in q. */
static void fill_row(struct screen *s, size_t r, const float *x, int8_t *q)
{
    struct screen_row *of = &s->of[r];
    double error[2] = { 0, 0 };
    float max = 0, per_step;
    int64_t squares = 0;

    for (size_t c = 0; c < s->cols; c++)
        max = fabsf(x[c]) > max ? fabsf(x[c]) : max;
    of->step = max / LEVELS;
    per_step = LEVELS / max;
    if (!isfinite(per_step))            /* of so little a row all is error */
        of->step = per_step = 0;
    for (size_t c = 0; c < s->cols; c++) {
        float level = (x[c] * per_step + TO_INTEGER) - TO_INTEGER;
        double off = (double)x[c] - (double)of->step * (double)level;

        q[c] = (int8_t)level;           /* -31..31: the product is at most a little above 31 */
        squares += (int)level * (int)level;
        error[c % 2] += off * off;
    }
    of->size = at_least((double)of->step * sqrt((double)squares));
    of->error = at_least(sqrt(error[0] + error[1]));
    sixbit_pack(s->w + r * screen_row_bytes(s), q, s->padded);
}

struct filling {
    struct screen *s;
    const struct dense *head;
    size_t n_tasks;
    float *lines, *rows;        /* (n_tasks, cols) */
    int8_t *levels;             /* (n_tasks, padded), zero past cols */
};

static void fill_rows(void *arg, size_t begin, size_t end)
{
    const struct filling *f = arg;

    for (size_t t = begin; t < end; t++) {
        float *x = f->lines + t * f->s->cols;

        for (size_t r = f->s->rows * t / f->n_tasks; r < f->s->rows * (t + 1) / f->n_tasks; r++) {
            dense_read_row(f->head, r, f->rows + t * f->s->cols, x);
            fill_row(f->s, r, x, f->levels + t * f->s->padded);
        }
    }
}

int screen_new(struct screen **ret, const struct dense *head, struct cache *cache, struct pool *p)
{
    struct screen *s = calloc(1, sizeof(*s));
    struct filling f = { .head = head, .n_tasks = pool_threads(p) };
    cleanup(freep) float *lines = NULL, *rows = NULL;
    cleanup(freep) int8_t *levels = NULL;
    size_t bytes, all;
    void *room = NULL;
    int r = -ENOMEM;

    if (!s)
        return -ENOMEM;
    *s = (struct screen){ .rows = head->rows, .cols = head->cols,
                          .padded = (head->cols + TERNARY_BLOCK - 1) / TERNARY_BLOCK * TERNARY_BLOCK };
    f.s = s;
    f.lines = lines = calloc(f.n_tasks, s->cols * sizeof(*lines));
    f.rows = rows = calloc(f.n_tasks, s->cols * sizeof(*rows));
    f.levels = levels = calloc(f.n_tasks, s->padded);
    if (lines && rows && levels && size_mul(&bytes, s->rows, screen_row_bytes(s)) &&
        size_mul(&all, s->rows, screen_row_bytes(s) + sizeof(*s->of))) {
        if (!cache)
            room = s->own = malloc(all);
        r = cache ? cache_section(cache, "screen", all, &room) : room ? 0 : -ENOMEM;
    }
    if (r < 0) {
        screen_free(s);
        return r;
    }
    s->w = room;
    s->of = (struct screen_row *)(void *)(s->w + bytes);
    if (!r)
        pool_run(p, f.n_tasks, 1, fill_rows, &f);
    for (size_t i = 0; i < s->rows; i++) {
        s->most_size = fmaxf(s->most_size, s->of[i].size);
        s->most_error = fmaxf(s->most_error, s->of[i].error);
    }
    *ret = s;
    return 0;
}

void screen_free(struct screen *s)
{
    if (!s)
        return;
    free(s->own);
    free(s);
}

void screen_ask(const struct screen *s, struct screen_query *q, const float *x)
{
    double k = (double)s->cols / 16 + 6, g = k * 0x1p-24 / (1 - k * 0x1p-24), size = 0, off = 0;
    float max = 0;

    for (size_t c = 0; c < s->cols; c++) {
        max = fmaxf(max, fabsf(x[c]));
        size += (double)x[c] * (double)x[c];
    }
    size = sqrt(size);
    q->possible = ((double)s->most_size + (double)s->most_error) * size < (double)FLT_MAX / 8;      /* NaN: it is not */
    memset(q->planes, 0, 2 * s->padded);
    q->step = (double)max / PLANE_LEVELS;
    for (size_t c = 0; q->possible && c < s->cols; c++) {
        int level = q->step > 0 ? (int)rint((double)x[c] / q->step) : 0, first = (level + 64) >> 7;
        double d = (double)x[c] - q->step * level;

        q->planes[c] = (int8_t)first;
        q->planes[s->padded + c] = (int8_t)(level - 128 * first);
        off += d * d;
    }
    q->of_size = at_least(sqrt(off) + g * size);
    q->of_error = at_least(size + g * size);
}

float screen_within_all(const struct screen *s, const struct screen_query *q)
{
    float all = s->most_size * q->of_size + s->most_error * q->of_error;

    /* No estimate is larger than size * (|x| + r). */
    return (all + s->most_size * (q->of_size + q->of_error) * 0x1p-22f) * (1 + 0x1p-18f) + 0x1p-119f;
}
