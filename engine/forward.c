/* The transformer itself: rows of tokens in, logits out, W1.58A8 as BitNet b1.58 defines it (arXiv:2402.17764).
 *
 * One layer, for rows x (f32):
 *     h = norm(x, attn_norm);  q, k, v = BitLinear(h);  q, k turned by position;  k, v to the session
 *     a = softmax(q k / sqrt(head_dim)) v;              x += BitLinear(norm(a, attn_sub_norm))
 *     h = norm(x, ffn_norm);   f = act(BitLinear(h)) * BitLinear(h);
 *                                                       x += BitLinear(norm(f, ffn_sub_norm))
 * BitLinear quantises its input once, q_i = rte(x_i * 127/a) with a = max|x_i|, multiplies in integers and gives, all
 * in f32 and in this order,
 *     y = (float)sum * (scale * (a / 127))
 *
 * Every value depends only on its own row and what that row's session holds, and is computed in one fixed order, so
 * neither the split into batches nor the number of threads changes a bit. Products are shared out by output row,
 * attention by (row, head), everything else by row. */
#include "engine/internal.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#define TILE_ROWS 128           /* output rows computed at a time: their sums stay in the first cache */
#define TILE_BATCH 8
#define HEAD_ROWS 64            /* of the vocabulary at a time */
#define HEAD_BATCH 4
#define WORTH_A_THREAD 524288   /* multiplications below which waking a thread costs more than it brings */

struct forward {
    const struct model *m;
    const struct kernels *kernels;
    struct pool *pool;
    size_t max_rows, wide, wide_q;       /* floats and int8 a row of h and q */
    double *turn;                        /* (rope_dim/2) radians a position */

    float *x;           /* (max_rows, n_embd) the residual stream */
    float *h;           /* (max_rows, wide) what goes into a product, before quantisation; attention's output */
    int8_t *q;          /* (max_rows, wide_q) h quantised, zero past its width */
    float *a;           /* (max_rows) its largest magnitude */
    float *products;    /* (max_rows, products_stride): q|k|v, or gate|up */
    size_t products_stride;
    float *angles;      /* (max_rows, rope_dim) cosines, then sines */
    float *scores;      /* (threads, n_ctx) */
    float **logits;     /* (max_rows) of the rows that want them */
    size_t *positions;  /* (max_rows) */

    /* The run under way, and the layer it is at. */
    const struct forward_row *rows;
    size_t n, n_logits, layer, attention_tasks;
    const struct model_layer *y;
};

/* ---- products --------------------------------------------------------------------------------------------------- */

/* Up to three matrices with the same input, their outputs side by side. */
struct product {
    const struct forward *f;
    const struct ternary *w[3];
    size_t n_w;
    float *out;
    size_t stride;
    bool add;           /* to what is in out */
};

/* Rows r..end of one matrix, the first of them to column `out`. */
static void multiply(const struct product *p, const struct ternary *w, size_t r, size_t end, float *out)
{
    const struct forward *f = p->f;
    int32_t sums[TILE_BATCH * TILE_ROWS];

    for (; r < end; r += TILE_ROWS, out += TILE_ROWS) {
        size_t n_rows = MIN(end - r, TILE_ROWS);

        for (size_t j = 0; j < f->n; j += TILE_BATCH) {
            size_t n = MIN(f->n - j, TILE_BATCH);

            f->kernels->ternary_matmul(sums, TILE_ROWS, w->w + r * (w->padded / 4), f->q + j * f->wide_q, f->wide_q,
                                       n, n_rows, w->padded);
            for (size_t b = 0; b < n; b++) {
                float unit = w->scale * (f->a[j + b] / 127), *to = out + (j + b) * p->stride;

                for (size_t i = 0; i < n_rows; i++) {
                    float y = (float)sums[b * TILE_ROWS + i] * unit;

                    to[i] = p->add ? to[i] + y : y;
                }
            }
        }
    }
}

/* Rows begin..end of the matrices as if stacked. */
static void run_product(void *arg, size_t begin, size_t end)
{
    const struct product *p = arg;
    size_t first = 0;           /* stacked row where this matrix begins */

    for (size_t i = 0; i < p->n_w; first += p->w[i++]->rows) {
        size_t from = MAX(begin, first), to = MIN(end, first + p->w[i]->rows);

        if (from < to)
            multiply(p, p->w[i], from - first, to - first, p->out + from);
    }
}

static size_t grain_of(size_t work_a_row, size_t multiple)
{
    return (WORTH_A_THREAD / work_a_row / multiple + 1) * multiple;
}

static void product(struct forward *f, const struct ternary *const w[], size_t n_w, float *out, size_t stride, bool add)
{
    struct product p = { .f = f, .n_w = n_w, .out = out, .stride = stride, .add = add };
    size_t rows = 0;

    for (size_t i = 0; i < n_w; i++) {
        p.w[i] = w[i];
        rows += w[i]->rows;
    }
    pool_run(f->pool, rows, grain_of(w[0]->padded * f->n, 16), run_product, &p);
}

/* ---- what is done row by row ------------------------------------------------------------------------------------ */

static void for_rows(struct forward *f, void (*fn)(void *arg, size_t begin, size_t end))
{
    pool_run(f->pool, f->n, 1, fn, f);
}

/* Quantise the first n floats of h's row i. */
static void quantize(struct forward *f, size_t i, size_t n)
{
    int8_t *q = f->q + i * f->wide_q;

    f->a[i] = f->kernels->quantize_row(q, f->h + i * f->wide, n);
    memset(q + n, 0, -n % TERNARY_BLOCK);
}

static void embed(struct forward *f, size_t i)
{
    const struct dense *e = &f->m->embd;
    size_t token = (size_t)f->rows[i].token, n = e->cols;
    float *x = f->x + i * n;

    if (e->type == TENSOR_F32) {
        memcpy(x, (const float *)e->w + token * n, n * sizeof(*x));
    } else if (e->type == TENSOR_F16) {
        for (size_t c = 0; c < n; c++)
            x[c] = f16_to_f32(((const uint16_t *)e->w)[token * n + c]);
    } else {
        const uint8_t *row = (const uint8_t *)e->w + token * (n / Q8_0_BLOCK * Q8_0_BLOCK_BYTES);

        for (size_t c = 0; c < n; c++) {
            const uint8_t *block = row + c / Q8_0_BLOCK * Q8_0_BLOCK_BYTES;
            uint16_t scale;

            memcpy(&scale, block, sizeof(scale));
            x[c] = (float)(int8_t)block[2 + c % Q8_0_BLOCK] * f16_to_f32(scale);
        }
    }
}

/* Angles in double, then rounded: the same for every way a position is reached. */
static void begin_rows(void *arg, size_t begin, size_t end)
{
    struct forward *f = arg;
    size_t half = f->m->rope_dim / 2;

    for (size_t i = begin; i < end; i++) {
        float *angles = f->angles + i * 2 * half;

        for (size_t j = 0; j < half; j++) {
            double angle = (double)f->positions[i] * f->turn[j];

            angles[j] = (float)cos(angle);
            angles[half + j] = (float)sin(angle);
        }
        embed(f, i);
    }
}

static void norm_rows(struct forward *f, const float *gain, size_t begin, size_t end)
{
    for (size_t i = begin; i < end; i++) {
        f->kernels->rms_norm(f->h + i * f->wide, f->x + i * f->m->n_embd, gain, f->m->n_embd, f->m->rms_eps);
        quantize(f, i, f->m->n_embd);
    }
}

static void before_attention(void *arg, size_t begin, size_t end)
{
    struct forward *f = arg;

    norm_rows(f, f->y->attn_norm, begin, end);
}

static void before_ffn(void *arg, size_t begin, size_t end)
{
    struct forward *f = arg;

    norm_rows(f, f->y->ffn_norm, begin, end);
}

static void turn_head(const struct model *m, float *head, const float *angles)
{
    size_t half = m->rope_dim / 2;

    for (size_t j = 0; j < half; j++) {
        float *u = m->rope_half ? head + j : head + 2 * j, *v = m->rope_half ? head + half + j : u + 1;
        float c = angles[j], s = angles[half + j], u0 = *u, v0 = *v;

        *u = u0 * c - v0 * s;
        *v = u0 * s + v0 * c;
    }
}

static size_t cache_at(const struct forward *f, const struct session *s, size_t position)
{
    return (f->layer * s->n_ctx + position) * f->m->n_kv * f->m->head_dim;
}

/* Turn q and k, and put k and v where the session keeps them. */
static void remember(void *arg, size_t begin, size_t end)
{
    struct forward *f = arg;
    const struct model *m = f->m;
    size_t n_q = m->n_head * m->head_dim, n_kv = m->n_kv * m->head_dim;

    for (size_t i = begin; i < end; i++) {
        struct session *s = f->rows[i].session;
        float *qkv = f->products + i * f->products_stride;
        size_t at = cache_at(f, s, f->positions[i]);

        for (size_t head = 0; head < m->n_head + m->n_kv; head++)
            turn_head(m, qkv + head * m->head_dim, f->angles + i * m->rope_dim);
        memcpy(s->k + at, qkv + n_q, n_kv * sizeof(float));
        memcpy(s->v + at, qkv + n_q + n_kv, n_kv * sizeof(float));
    }
}

static void after_attention(void *arg, size_t begin, size_t end)
{
    struct forward *f = arg;
    size_t n = f->m->n_head * f->m->head_dim;

    for (size_t i = begin; i < end; i++) {
        float *h = f->h + i * f->wide;

        if (f->y->attn_sub_norm)
            f->kernels->rms_norm(h, h, f->y->attn_sub_norm, n, f->m->rms_eps);
        quantize(f, i, n);
    }
}

static void gate_rows(void *arg, size_t begin, size_t end)
{
    struct forward *f = arg;
    size_t n = f->m->n_ff;

    for (size_t i = begin; i < end; i++) {
        float *h = f->h + i * f->wide, *gate = f->products + i * f->products_stride;

        (f->m->act == ACT_RELU2 ? f->kernels->relu2_mul : f->kernels->silu_mul)(h, gate, gate + n, n);
        if (f->y->ffn_sub_norm)
            f->kernels->rms_norm(h, h, f->y->ffn_sub_norm, n, f->m->rms_eps);
        quantize(f, i, n);
    }
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

static void attend(const struct forward *f, size_t i, size_t head, float *scores)
{
    const struct model *m = f->m;
    const struct session *s = f->rows[i].session;
    size_t d = m->head_dim, kv_width = m->n_kv * d, kv_head = head / (m->n_head / m->n_kv), n = f->positions[i] + 1;
    const float *q = f->products + i * f->products_stride + head * d;
    const float *k = s->k + cache_at(f, s, 0) + kv_head * d, *v = s->v + cache_at(f, s, 0) + kv_head * d;
    float *out = f->h + i * f->wide + head * d, scale = 1 / sqrtf((float)d);

    for (size_t p = 0; p < n; p++)
        scores[p] = f->kernels->dot_f32(q, k + p * kv_width, d) * scale;
    f->kernels->softmax(scores, n);
    memset(out, 0, d * sizeof(*out));
    for (size_t p = 0; p < n; p++)
        f->kernels->axpy_f32(out, scores[p], v + p * kv_width, d);
}

/* Task t takes every attention_tasks-th (row, head), so that early and late rows are shared out evenly. */
static void attention_tasks(void *arg, size_t begin, size_t end)
{
    struct forward *f = arg;
    size_t n_head = f->m->n_head;

    for (size_t t = begin; t < end; t++)
        for (size_t i = t; i < f->n * n_head; i += f->attention_tasks)
            attend(f, i / n_head, i % n_head, f->scores + t * f->m->n_ctx);
}

static void attention(struct forward *f)
{
    size_t work = 0;

    for (size_t i = 0; i < f->n; i++)
        work += (f->positions[i] + 1) * f->m->n_head * f->m->head_dim * 2;
    /* In floats, some eight times the cost of ternary ones. */
    f->attention_tasks = 8 * work < WORTH_A_THREAD ? 1 : pool_threads(f->pool);
    pool_run(f->pool, f->attention_tasks, 1, attention_tasks, f);
}

/* ---- the head --------------------------------------------------------------------------------------------------- */

static void dense_multiply(const struct forward *f, float *out, size_t stride, const float *x, size_t n, size_t r, size_t n_rows)
{
    const struct dense *w = &f->m->head;
    const struct kernels *k = f->kernels;
    size_t cols = w->cols;

    if (w->type == TENSOR_F16)
        k->matmul_f16(out, stride, (const uint16_t *)w->w + r * cols, x, f->wide, n, n_rows, cols);
    else if (w->type == TENSOR_F32)
        k->matmul_f32(out, stride, (const float *)w->w + r * cols, x, f->wide, n, n_rows, cols);
    else
        k->matmul_q8_0(out, stride, (const uint8_t *)w->w + r * (cols / Q8_0_BLOCK * Q8_0_BLOCK_BYTES), x, f->wide, n, n_rows,
                       cols);
}

/* Some rows of the vocabulary for all rows that want logits, whose normed x stand first in h. */
static void head_rows(void *arg, size_t begin, size_t end)
{
    const struct forward *f = arg;
    float tile[HEAD_BATCH * HEAD_ROWS];

    for (size_t r = begin; r < end; r += HEAD_ROWS) {
        size_t n_rows = MIN(end - r, HEAD_ROWS);

        for (size_t j = 0; j < f->n_logits; j += HEAD_BATCH) {
            size_t n = MIN(f->n_logits - j, HEAD_BATCH);

            dense_multiply(f, tile, HEAD_ROWS, f->h + j * f->wide, n, r, n_rows);
            for (size_t b = 0; b < n; b++)
                memcpy(f->logits[j + b] + r, tile + b * HEAD_ROWS, n_rows * sizeof(float));
        }
    }
}

static void head(struct forward *f)
{
    const struct model *m = f->m;

    f->n_logits = 0;
    for (size_t i = 0; i < f->n; i++)
        if (f->rows[i].logits) {
            f->kernels->rms_norm(f->h + f->n_logits * f->wide, f->x + i * m->n_embd, m->output_norm, m->n_embd, m->rms_eps);
            f->logits[f->n_logits++] = f->rows[i].logits;
        }
    if (f->n_logits)
        pool_run(f->pool, m->n_vocab, grain_of(8 * m->n_embd * f->n_logits, HEAD_ROWS), head_rows, f);
}

/* ---- a run ------------------------------------------------------------------------------------------------------ */

static void run_layer(struct forward *f)
{
    const struct model_layer *y = f->y;
    size_t n_embd = f->m->n_embd;

    for_rows(f, before_attention);
    product(f, (const struct ternary *const[]){ &y->q, &y->k, &y->v }, 3, f->products, f->products_stride, false);
    for_rows(f, remember);
    attention(f);
    for_rows(f, after_attention);
    product(f, (const struct ternary *const[]){ &y->o }, 1, f->x, n_embd, true);
    for_rows(f, before_ffn);
    product(f, (const struct ternary *const[]){ &y->gate, &y->up }, 2, f->products, f->products_stride, false);
    for_rows(f, gate_rows);
    product(f, (const struct ternary *const[]){ &y->down }, 1, f->x, n_embd, true);
}

/* Give each row the next position of its session, or none of them. */
static int take_positions(struct forward *f, const struct forward_row *rows, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct session *s = rows[i].session;

        if (s->n == s->n_ctx) {
            while (i--)
                rows[i].session->n--;
            return -ENOSPC;
        }
        f->positions[i] = s->n++;
    }
    return 0;
}

int forward_run(struct forward *f, const struct forward_row *rows, size_t n)
{
    int r;

    if (n > f->max_rows)
        return -EINVAL;
    for (size_t i = 0; i < n; i++)
        if (rows[i].token < 0 || (size_t)rows[i].token >= f->m->n_vocab)
            return -EINVAL;
    r = take_positions(f, rows, n);
    if (r < 0 || !n)
        return r;

    f->rows = rows;
    f->n = n;
    for_rows(f, begin_rows);
    for (f->layer = 0; f->layer < f->m->n_layer; f->layer++) {
        f->y = &f->m->layers[f->layer];
        run_layer(f);
    }
    head(f);
    return 0;
}

static bool scratch(void *ret, size_t a, size_t b, size_t each)
{
    size_t n;
    void *p = NULL;

    if (size_mul(&n, a, b))
        p = calloc(n, each);
    memcpy(ret, &p, sizeof(p));
    return p;
}

int forward_new(struct forward **ret, const struct model *m, struct pool *p, size_t max_rows, struct err *err)
{
    size_t n_q = m->n_head * m->head_dim, half = m->rope_dim / 2;
    const struct kernels *kernels = kernels_get(err);
    struct forward *f;

    if (!kernels)
        return -EINVAL;
    f = calloc(1, sizeof(*f));
    if (!f)
        return -ENOMEM;
    f->m = m;
    f->kernels = kernels;
    f->pool = p;
    f->max_rows = max_rows;
    f->wide = MAX(MAX(m->n_embd, n_q), m->n_ff);
    f->wide_q = (f->wide + TERNARY_BLOCK - 1) / TERNARY_BLOCK * TERNARY_BLOCK;
    f->products_stride = MAX(n_q + 2 * m->n_kv * m->head_dim, 2 * m->n_ff);
    if (!scratch(&f->turn, half, 1, sizeof(double)) || !scratch(&f->x, max_rows, m->n_embd, sizeof(float)) ||
        !scratch(&f->h, max_rows, f->wide, sizeof(float)) || !scratch(&f->q, max_rows, f->wide_q, 1) ||
        !scratch(&f->a, max_rows, 1, sizeof(float)) ||
        !scratch(&f->products, max_rows, f->products_stride, sizeof(float)) ||
        !scratch(&f->angles, max_rows, m->rope_dim, sizeof(float)) ||
        !scratch(&f->scores, pool_threads(p), m->n_ctx, sizeof(float)) ||
        !scratch(&f->logits, max_rows, 1, sizeof(float *)) || !scratch(&f->positions, max_rows, 1, sizeof(size_t))) {
        forward_free(f);
        return -ENOMEM;
    }
    for (size_t j = 0; j < half; j++) {
        f->turn[j] = pow((double)m->rope_base, -2.0 * (double)j / (double)m->rope_dim);
        if (m->rope_freqs)
            f->turn[j] /= (double)m->rope_freqs[j];
    }
    *ret = f;
    return 0;
}

void forward_free(struct forward *f)
{
    if (!f)
        return;
    free(f->turn);
    free(f->x);
    free(f->h);
    free(f->q);
    free(f->a);
    free(f->products);
    free(f->angles);
    free(f->scores);
    free(f->logits);
    free(f->positions);
    free(f);
}
