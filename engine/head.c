/* What comes after the last layer: its norm, then the head's logits or a text's vector.
 *
 * A row whose leading logits are wanted passes through the screening copy of a large head first (internal.h: screen.c),
 * which gives an estimate of every logit and how far off it may be. The rows that look best are computed in full; the
 * least of the `leading` best of these is what every leading logit reaches, so only the rows whose estimate with its
 * error reaches it are computed for good. */
#include "engine/forward.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#define HEAD_ROWS 64            /* of the vocabulary at a time */
#define HEAD_BATCH 4
#define ASK_BATCH 16            /* activation rows that share a pass over the screening copy */
#define SPARE 8                 /* rows looked at first beside as many as are leading */

/* What is found out about one activation row. */
struct asked {
    struct screen_query query;
    float *highest;             /* (tiles of the vocabulary) the most that a logit of it may be */
    uint32_t *found;            /* (room) rows of the head to compute */
    size_t n_found;
    bool whole;                 /* all are computed */
};

struct head {
    struct screen *screen;      /* NULL: the head is small */
    int8_t *planes;             /* (ASK_BATCH, 2, padded) */
    size_t n_tiles, room;
    size_t first, n;            /* the pass under way: which of the rows that want logits */
    size_t bytes;               /* read in the run */
    struct asked asked[ASK_BATCH];
};

static bool head_has_kernel(const struct dense *w)
{
    return w->type == TENSOR_F16 || w->type == TENSOR_F32 || w->type == TENSOR_Q8_0;
}

static void head_multiply(const struct forward *f, float *out, size_t stride, const float *x, size_t n, const void *rows,
                          size_t n_rows)
{
    const struct kernels *k = f->kernels;
    size_t cols = f->m->head.cols;

    if (f->m->head.type == TENSOR_F16)
        k->matmul_f16(out, stride, rows, x, f->wide, n, n_rows, cols);
    else if (f->m->head.type == TENSOR_F32)
        k->matmul_f32(out, stride, rows, x, f->wide, n, n_rows, cols);
    else
        k->matmul_q8_0(out, stride, rows, x, f->wide, n, n_rows, cols);
}

/* One row for a type that no kernel reads: it is made floats first. line: of the calling task. */
static void multiply_line(const struct forward *f, float *out, const float *x, size_t n, size_t r, float *line)
{
    dense_row(&f->m->head, r, line);
    f->kernels->matmul_f32(out, 1, line, x, f->wide, n, 1, f->m->n_embd);
}

/* Task t's part of n things. */
static void part_of(const struct forward *f, size_t n, size_t t, size_t *ret_begin, size_t *ret_end)
{
    size_t n_tasks = pool_threads(f->pool);

    *ret_begin = n * t / n_tasks;
    *ret_end = n * (t + 1) / n_tasks;
}

/* ---- every row of the head -------------------------------------------------------------------------------------- */

/* n of the rows that want logits, whose normed x stand in h in the same order. */
struct whole {
    const struct forward *f;
    size_t first, n;
};

static void whole_rows(void *arg, size_t begin, size_t end)
{
    const struct whole *w = arg;
    const struct forward *f = w->f;
    float tile[HEAD_BATCH * HEAD_ROWS];

    for (size_t r = begin; r < end; r += HEAD_ROWS) {
        size_t n_rows = MIN(end - r, HEAD_ROWS);

        for (size_t j = w->first; j < w->first + w->n; j += HEAD_BATCH) {
            size_t n = MIN(w->first + w->n - j, HEAD_BATCH);

            head_multiply(f, tile, HEAD_ROWS, f->h + j * f->wide, n,
                          (const uint8_t *)f->m->head.w + r * dense_row_bytes(&f->m->head), n_rows);
            for (size_t b = 0; b < n; b++)
                memcpy(f->wants[j + b]->logits + r, tile + b * HEAD_ROWS, n_rows * sizeof(float));
        }
    }
}

static void whole_lines(void *arg, size_t begin, size_t end)
{
    const struct whole *w = arg;
    const struct forward *f = w->f;
    size_t r, last;
    float dots[HEAD_BATCH];

    for (size_t t = begin; t < end; t++)
        for (part_of(f, f->m->n_vocab, t, &r, &last); r < last; r++)
            for (size_t j = w->first; j < w->first + w->n; j += HEAD_BATCH) {
                size_t n = MIN(w->first + w->n - j, HEAD_BATCH);

                multiply_line(f, dots, f->h + j * f->wide, n, r, f->lines + t * f->line);
                for (size_t b = 0; b < n; b++)
                    f->wants[j + b]->logits[r] = dots[b];
            }
}

static void run_whole(const struct forward *f, size_t first, size_t n)
{
    struct whole w = { f, first, n };

    f->head->bytes += n ? f->m->n_vocab * dense_row_bytes(&f->m->head) : 0;
    if (n && head_has_kernel(&f->m->head))
        pool_run(f->pool, f->m->n_vocab, grain_of(8 * f->m->n_embd * n, HEAD_ROWS), whole_rows, &w);
    else if (n)
        pool_run(f->pool, pool_threads(f->pool), 1, whole_lines, &w);
    for (size_t j = first; j < first + n; j++)
        if (f->wants[j]->within)
            *f->wants[j]->within = 0;
}

/* ---- screening -------------------------------------------------------------------------------------------------- */

static void ask_rows(void *arg, size_t begin, size_t end)
{
    const struct forward *f = arg;

    for (size_t j = begin; j < end; j++)
        screen_ask(f->head->screen, &f->head->asked[j].query, f->h + (f->head->first + j) * f->wide);
}

/* Estimates of some tiles of the vocabulary for all rows of the pass. */
static void estimate_tiles(void *arg, size_t begin, size_t end)
{
    const struct forward *f = arg;
    const struct screen *s = f->head->screen;
    int32_t sums[2 * ASK_BATCH * HEAD_ROWS];

    for (size_t t = begin; t < end; t++) {
        size_t r = t * HEAD_ROWS, n_rows = MIN(s->rows - r, HEAD_ROWS);

        f->kernels->sixbit_matmul(sums, HEAD_ROWS, s->w + r * screen_row_bytes(s), f->head->planes, s->padded,
                                  2 * f->head->n, n_rows, s->padded);
        for (size_t j = 0; j < f->head->n; j++) {
            const struct asked *a = &f->head->asked[j];
            const int32_t *first = sums + 2 * j * HEAD_ROWS, *second = first + HEAD_ROWS;
            float *logits = f->wants[f->head->first + j]->logits + r, highest = -INFINITY;

            for (size_t i = 0; i < n_rows; i++) {
                float e = screen_estimate(s, &a->query, r + i, first[i], second[i]);
                float high = e + screen_within(s, &a->query, r + i, e);

                logits[i] = e;
                highest = high > highest ? high : highest;
            }
            a->highest[t] = highest;
        }
    }
}

/* The true logit of one row of the head. */
static float compute(const struct forward *f, size_t j, size_t row, float *line)
{
    const float *x = f->h + (f->head->first + j) * f->wide;
    float logit;

    if (head_has_kernel(&f->m->head))
        head_multiply(f, &logit, 1, x, 1, dense_at(&f->m->head, row, line), 1);
    else
        multiply_line(f, &logit, x, 1, row, line);
    return logit;
}

static bool is_allowed(const uint64_t *allowed, size_t row)
{
    return !allowed || allowed[row / 64] >> row % 64 & 1;
}

struct look { float logit; uint32_t row; };

/* Keep the `most` best, best first, of which n are there; returns how many are now. */
static size_t keep_best(struct look *best, size_t n, size_t most, struct look l)
{
    size_t at;

    if (n == most && l.logit <= best[n - 1].logit)
        return n;
    at = n < most ? n : n - 1;
    for (; at && best[at - 1].logit < l.logit; at--)
        best[at] = best[at - 1];
    best[at] = l;
    return MIN(n + 1, most);
}

/* A logit that each of the leading ones among the allowed rows reaches. */
static float find_reach(const struct forward *f, size_t j, const uint64_t *allowed, float *line)
{
    const struct asked *a = &f->head->asked[j];
    const struct forward_row *want = f->wants[f->head->first + j];
    struct look looks[SCREEN_LEADING + SPARE], best[SCREEN_LEADING];
    size_t n = 0, n_best = 0, most = want->leading + SPARE;

    for (size_t t = 0; t < f->head->n_tiles; t++) {
        if (n == most && a->highest[t] <= looks[n - 1].logit)
            continue;
        for (size_t r = t * HEAD_ROWS; r < MIN((t + 1) * HEAD_ROWS, f->m->n_vocab); r++)
            if (is_allowed(allowed, r))
                n = keep_best(looks, n, most, (struct look){ want->logits[r], (uint32_t)r });
    }
    for (size_t i = 0; i < n; i++)
        n_best = keep_best(best, n_best, want->leading, (struct look){ compute(f, j, looks[i].row, line), 0 });
    return n_best == want->leading ? best[n_best - 1].logit : -INFINITY;
}

/* The rows of the head that may be among the leading ones of all or of those allowed. */
static void find_rows(const struct forward *f, size_t j, float *line)
{
    struct asked *a = &f->head->asked[j];
    const struct screen *s = f->head->screen;
    const struct forward_row *want = f->wants[f->head->first + j];
    float of_all = find_reach(f, j, NULL, line), of_allowed = of_all;

    if (want->allowed)
        of_allowed = find_reach(f, j, want->allowed, line);
    a->n_found = 0;
    for (size_t t = 0; t < f->head->n_tiles; t++) {
        if (a->highest[t] < MIN(of_all, of_allowed))
            continue;
        for (size_t r = t * HEAD_ROWS; r < MIN((t + 1) * HEAD_ROWS, s->rows); r++) {
            float high = want->logits[r] + screen_within(s, &a->query, r, want->logits[r]);

            if (high < of_all && (!want->allowed || high < of_allowed || !is_allowed(want->allowed, r)))
                continue;
            if (a->n_found == f->head->room) {
                a->whole = true;
                return;
            }
            a->found[a->n_found++] = (uint32_t)r;
        }
    }
}

static void find_all(void *arg, size_t begin, size_t end)
{
    const struct forward *f = arg;
    size_t j, last;

    for (size_t t = begin; t < end; t++)
        for (part_of(f, f->head->n, t, &j, &last); j < last; j++)
            if (!f->head->asked[j].whole)
                find_rows(f, j, f->lines + t * f->line);
}

static void compute_found(void *arg, size_t begin, size_t end)
{
    const struct forward *f = arg;
    size_t i, last;

    for (size_t t = begin; t < end; t++)
        for (size_t j = 0; j < f->head->n; j++) {
            const struct asked *a = &f->head->asked[j];

            if (a->whole)
                continue;
            for (part_of(f, a->n_found, t, &i, &last); i < last; i++)
                f->wants[f->head->first + j]->logits[a->found[i]] = compute(f, j, a->found[i], f->lines + t * f->line);
        }
}

static void run_screened(struct forward *f, size_t first, size_t n)
{
    struct head *h = f->head;
    size_t n_tasks = pool_threads(f->pool);

    h->first = first;
    h->n = n;
    pool_run(f->pool, n, 1, ask_rows, f);
    for (size_t j = 0; j < n; j++) {
        h->asked[j].whole = !h->asked[j].query.possible;
        h->asked[j].n_found = 0;
    }
    pool_run(f->pool, h->n_tiles, grain_of(n * h->screen->padded * HEAD_ROWS / 2, 1), estimate_tiles, f);
    pool_run(f->pool, n_tasks, 1, find_all, f);
    pool_run(f->pool, n_tasks, 1, compute_found, f);
    h->bytes += h->screen->rows * screen_row_bytes(h->screen);
    for (size_t j = 0; j < n; j++)
        h->bytes += h->asked[j].n_found * dense_row_bytes(&f->m->head);
    for (size_t j = 0; j < n; j++)
        if (h->asked[j].whole)
            run_whole(f, first + j, 1);
        else if (f->wants[first + j]->within)
            *f->wants[first + j]->within = screen_within_all(h->screen, &h->asked[j].query);
}

/* ---- a run ------------------------------------------------------------------------------------------------------ */

static bool is_screened(const struct forward *f, const struct forward_row *row)
{
    return f->head->screen && row->logits && row->leading && row->leading <= SCREEN_LEADING;
}

/* Norm the rows that want something and are screened, or are not; their h stand one after the other. */
static void norm_rows(struct forward *f, bool screened)
{
    size_t n = f->m->n_embd;

    for (size_t i = 0; i < f->n; i++) {
        float *h = f->h + f->n_logits * f->wide;

        if ((!f->rows[i].logits && !f->hidden) || is_screened(f, &f->rows[i]) != screened)
            continue;
        forward_norm(f, h, f->x + i * n, f->m->output_norm, n, f->m->rms_eps);
        forward_tell(f, i, "final_norm", h, n);
        if (f->hidden)
            memcpy(f->hidden + i * n, h, n * sizeof(*h));
        if (f->rows[i].logits)
            f->wants[f->n_logits++] = &f->rows[i];
    }
}

void head_run(struct forward *f)
{
    size_t n_whole;

    f->n_logits = 0;
    f->head->bytes = 0;
    norm_rows(f, false);
    n_whole = f->n_logits;
    norm_rows(f, true);
    run_whole(f, 0, n_whole);
    for (size_t j = n_whole; j < f->n_logits; j += ASK_BATCH)
        run_screened(f, j, MIN(f->n_logits - j, ASK_BATCH));
}

size_t forward_head_bytes(const struct forward *f)
{
    return f->head->bytes;
}

static bool asked_init(struct head *h, size_t j)
{
    struct asked *a = &h->asked[j];

    a->query.planes = h->planes + 2 * j * h->screen->padded;
    a->highest = calloc(h->n_tiles, sizeof(*a->highest));
    a->found = calloc(h->room, sizeof(*a->found));
    return a->highest && a->found;
}

int head_new(struct head **ret, const struct dense *head, struct cache *cache, struct pool *p)
{
    cleanup(head_freep) struct head *h = calloc(1, sizeof(*h));

    if (!h)
        return -ENOMEM;
    if (screen_is_worth(head)) {
        h->n_tiles = (head->rows + HEAD_ROWS - 1) / HEAD_ROWS;
        h->room = head->rows / 16;
        if (screen_new(&h->screen, head, cache, p) < 0)
            return -ENOMEM;
        h->planes = calloc(2 * ASK_BATCH, h->screen->padded);
        for (size_t j = 0; j < ASK_BATCH; j++)
            if (!h->planes || !asked_init(h, j))
                return -ENOMEM;
    }
    *ret = TAKE(h);
    return 0;
}

void head_free(struct head *h)
{
    if (!h)
        return;
    for (size_t j = 0; j < ASK_BATCH; j++) {
        free(h->asked[j].highest);
        free(h->asked[j].found);
    }
    free(h->planes);
    screen_free(h->screen);
    free(h);
}

/* ---- the vector of a text ---------------------------------------------------------------------------------------- */

static void make_unit(float *x, size_t n)
{
    double squares = 0;

    for (size_t i = 0; i < n; i++)
        squares += (double)x[i] * (double)x[i];
    for (size_t i = 0; i < n && squares > 0; i++)
        x[i] = (float)((double)x[i] / sqrt(squares));
}

void forward_pool(float *out, const float *rows, size_t n, size_t width, enum pooling how)
{
    if (how != POOLING_MEAN)
        memcpy(out, rows + (how == POOLING_LAST ? n - 1 : 0) * width, width * sizeof(*out));
    for (size_t c = 0; how == POOLING_MEAN && c < width; c++) {
        double sum = 0;

        for (size_t i = 0; i < n; i++)
            sum += (double)rows[i * width + c];
        out[c] = (float)(sum / (double)n);
    }
    make_unit(out, width);
}

int forward_hidden(struct forward *f, struct session *s, const int32_t *ids, size_t n, float *ret)
{
    cleanup(freep) struct forward_row *rows = calloc(n, sizeof(*rows));
    int r;

    if (!rows)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++)
        rows[i] = (struct forward_row){ .session = s, .token = ids[i] };
    f->hidden = ret;
    r = forward_run(f, rows, n);
    f->hidden = NULL;
    return r;
}

int forward_embed(struct forward *f, struct session *s, const int32_t *ids, size_t n, float *ret)
{
    cleanup(freep) float *all = NULL;
    size_t width = f->m->n_embd, floats;
    int r = 0;

    if (!n)
        return -EINVAL;
    if (n > s->n_ctx)
        return -ENOSPC;
    all = size_mul(&floats, n, width * sizeof(*all)) ? malloc(floats) : NULL;
    if (!all)
        return -ENOMEM;
    session_reset(s, 0);
    for (size_t i = 0, batch; i < n && !r; i += batch) {
        batch = MIN(f->max_rows, n - i);
        r = forward_hidden(f, s, ids + i, batch, all + i * width);
    }
    if (r < 0)
        return r;
    if (f->m->pooling == POOLING_NONE)
        memcpy(ret, all, floats);
    else
        forward_pool(ret, all, n, width, f->m->pooling);
    return 0;
}
