/* The transformer itself: rows of tokens in, logits out, W1.58A8 as BitNet b1.58 defines it (arXiv:2402.17764).
 *
 * One layer, for rows x (f32); norms that a model has not are left out, [ ] are those that few have:
 *     h = norm(x, attn_norm);  q, k, v = BitLinear(h);  [q, k = norm of each head];  q, k turned by position;
 *     k, v to the session [rounded]
 *     a = softmax(q k / sqrt(head_dim)) v;   x += [norm of] BitLinear(norm(a, attn_sub_norm))
 *     h = norm(x, ffn_norm);   f = act(BitLinear(h)) * BitLinear(h);
 *                                            x += [norm of] BitLinear(norm(f, ffn_sub_norm))
 * BitLinear quantises its input once, [after a norm of its own and a Hadamard transform], q_i = rte(x_i * 127/a) with
 * a = max|x_i|, multiplies in integers and gives, all in f32 and in this order,
 *     y = (float)sum * (scale * (a / 127))
 * or, in a model whose activations stay as they are, y = dot(trits, x) * scale.
 *
 * Every value depends only on its own row and what that row's session holds, and is computed in one fixed order, so
 * neither the split into batches nor the number of threads changes a bit. Products are shared out by output row,
 * attention by (row, head), everything else by row. */
#include "engine/internal.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
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
    size_t n_turns;                      /* 2 when there are local layers, whose angles come second */
    double *turn;                        /* (n_turns, rope_dim/2) radians a position */

    float *x;           /* (max_rows, n_embd) the residual stream */
    float *h;           /* (max_rows, wide) what goes into a product, before quantisation; attention's output */
    int8_t *q;          /* (max_rows, wide_q) h quantised, zero past its width */
    float *unit;        /* (max_rows) what one step of q is worth */
    float *products;    /* (max_rows, products_stride): q|k|v, or gate|up; o or down when more is done to it */
    size_t products_stride;
    float *angles;      /* (max_rows, n_turns, rope_dim) cosines, then sines */
    float *lines;       /* (threads, line) a matrix's row in floats */
    size_t line;
    float *scores;      /* (threads, n_ctx) */
    float **logits;     /* (max_rows) of the rows that want them */
    size_t *positions;  /* (max_rows) */

    /* The run under way, and the layer it is at. */
    const struct forward_row *rows;
    size_t n, n_logits, layer, attention_tasks;
    const struct model_layer *y;
    float *hidden;      /* (n, n_embd) what output_norm gives of each row, or NULL: not wanted */

    /* What is done to x before the next product, and to what came of it after. */
    const float *gain, *norm_in, *post_gain;
    const char *norm_name, *product_name, *post_name;
    enum projection_input input;
    bool untold;        /* the norm was told to the trace before */

    void (*trace)(void *arg, const char *name, size_t row, const float *x, size_t n);
    void *trace_arg;
};

/* ---- the trace -------------------------------------------------------------------------------------------------- */

static void tell(const struct forward *f, size_t i, const char *stage, const float *x, size_t n)
{
    char name[48];

    if (!f->trace)
        return;
    snprintf(name, sizeof(name), "l%zu.%s", f->layer, stage);
    f->trace(f->trace_arg, f->layer < f->m->n_layer ? name : stage, f->positions[i], x, n);
}

void forward_trace(struct forward *f, void (*fn)(void *arg, const char *name, size_t row, const float *x, size_t n), void *arg)
{
    f->trace = fn;
    f->trace_arg = arg;
}

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
                float unit = f->unit[j + b], all = w->scale * unit, *to = out + (j + b) * p->stride;

                for (size_t i = 0; i < n_rows; i++) {
                    float y = (float)sums[b * TILE_ROWS + i] * (w->row_scales ? w->row_scales[r + i] * unit : all);

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

/* One row of the matrices as if stacked, with float activations. */
static void multiply_floats(const struct product *p, size_t stacked, float *line)
{
    const struct forward *f = p->f;
    const struct ternary *const *w = p->w;
    size_t r = stacked;
    float sums[TILE_BATCH], scale;

    while (r >= (*w)->rows)
        r -= (*w++)->rows;
    scale = (*w)->row_scales ? (*w)->row_scales[r] : (*w)->scale;
    ternary_row(*w, r, line);
    for (size_t j = 0; j < f->n; j += TILE_BATCH) {
        size_t n = MIN(f->n - j, TILE_BATCH);

        f->kernels->matmul_f32(sums, 1, line, f->h + j * f->wide, f->wide, n, 1, (*w)->cols);
        for (size_t b = 0; b < n; b++) {
            float *to = p->out + (j + b) * p->stride + stacked;

            *to = p->add ? *to + sums[b] * scale : sums[b] * scale;
        }
    }
}

/* Task t takes the t-th part of the rows: each has a line of its own to unpack them to. */
static void run_float_product(void *arg, size_t begin, size_t end)
{
    const struct product *p = arg;
    size_t n_tasks = pool_threads(p->f->pool), rows = 0;

    for (size_t i = 0; i < p->n_w; i++)
        rows += p->w[i]->rows;
    for (size_t t = begin; t < end; t++)
        for (size_t r = rows * t / n_tasks; r < rows * (t + 1) / n_tasks; r++)
            multiply_floats(p, r, p->f->lines + t * p->f->line);
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
    if (f->m->inputs[f->input].quant == QUANT_NONE)
        pool_run(f->pool, pool_threads(f->pool), 1, run_float_product, &p);
    else
        pool_run(f->pool, rows, grain_of(w[0]->padded * f->n, 16), run_product, &p);
}

/* ---- what is done row by row ------------------------------------------------------------------------------------ */

/* Traced rows are done in the caller's thread, in order. */
static void for_rows(struct forward *f, void (*fn)(void *arg, size_t begin, size_t end))
{
    if (f->trace)
        fn(f, 0, f->n);
    else
        pool_run(f->pool, f->n, 1, fn, f);
}

static void norm(const struct forward *f, float *out, const float *x, const float *gain, size_t n, float eps)
{
    if (f->m->layer_norm) {
        activation_center(out, x, n);
        x = out;
    }
    f->kernels->rms_norm(out, x, gain, n, eps);
}

/* Make the first n floats of h's row i what the next product takes. */
static void prepare(struct forward *f, size_t i, size_t n)
{
    const struct model *m = f->m;
    int8_t *q = f->q + i * f->wide_q;
    float *h = f->h + i * f->wide;

    if (f->norm_in)
        norm(f, h, h, f->norm_in, n, m->norm_in_eps);
    if (m->inputs[f->input].hadamard)
        activation_hadamard(h, n);
    if (m->inputs[f->input].quant == QUANT_NONE)
        return;
    f->unit[i] = activation_quantize(f->kernels, m->inputs[f->input].quant, q, h, n);
    memset(q + n, 0, -n % TERNARY_BLOCK);
}

static void embed(struct forward *f, size_t i)
{
    size_t n = f->m->n_embd;
    float *x = f->x + i * n;

    dense_row(&f->m->embd, (size_t)f->rows[i].token, x);
    if (f->m->embd_scale != 1)
        for (size_t c = 0; c < n; c++)
            x[c] *= f->m->embd_scale;
}

/* Angles in double, then rounded: the same for every way a position is reached. */
static void begin_rows(void *arg, size_t begin, size_t end)
{
    struct forward *f = arg;
    size_t half = f->m->rope_dim / 2;

    for (size_t i = begin; i < end; i++) {
        for (size_t t = 0; t < f->n_turns; t++) {
            float *angles = f->angles + (i * f->n_turns + t) * 2 * half;

            for (size_t j = 0; j < half; j++) {
                double angle = (double)f->positions[i] * f->turn[t * half + j];

                angles[j] = (float)cos(angle);
                angles[half + j] = (float)sin(angle);
            }
        }
        embed(f, i);
    }
}

static void normed_rows(void *arg, size_t begin, size_t end)
{
    struct forward *f = arg;
    size_t n = f->m->n_embd;

    for (size_t i = begin; i < end; i++) {
        float *h = f->h + i * f->wide, *x = f->x + i * n;

        if (f->gain)
            norm(f, h, x, f->gain, n, f->m->rms_eps);
        else
            memcpy(h, x, n * sizeof(*h));
        if (!f->untold)
            tell(f, i, f->norm_name, h, n);
        prepare(f, i, n);
    }
}

/* products = BitLinear(norm(x)) for up to three matrices, which share the quantised input unless one norms its own. */
static void project(struct forward *f, const char *name, const float *gain, enum projection_input input,
                    const struct ternary *const w[], size_t n_w)
{
    size_t together = n_w;
    float *out = f->products;

    for (size_t i = 0; i < n_w; i++)
        if (w[i]->norm_in)
            together = 1;
    f->norm_name = name;
    f->gain = gain;
    f->input = input;
    for (size_t i = 0; i < n_w; i += together) {
        f->norm_in = w[i]->norm_in;
        f->untold = i > 0;
        for_rows(f, normed_rows);
        product(f, w + i, together, out, f->products_stride, false);
        out += w[i]->rows;
    }
}

static void add_rows(void *arg, size_t begin, size_t end)
{
    struct forward *f = arg;
    size_t n = f->m->n_embd;

    for (size_t i = begin; i < end; i++) {
        float *y = f->products + i * f->products_stride, *x = f->x + i * n;

        tell(f, i, f->product_name, y, n);
        if (f->post_gain) {
            norm(f, y, y, f->post_gain, n, f->m->rms_eps);
            tell(f, i, f->post_name, y, n);
        }
        for (size_t c = 0; c < n; c++)
            x[c] = x[c] + y[c];
    }
}

/* x += [norm of] w times what the rows were prepared to. */
static void project_back(struct forward *f, const char *name, const struct ternary *w, const char *post_name, const float *post_gain)
{
    size_t n = f->m->n_embd;

    if (!post_gain && !f->trace) {
        product(f, &w, 1, f->x, n, true);
        return;
    }
    f->product_name = name;
    f->post_name = post_name;
    f->post_gain = post_gain;
    product(f, &w, 1, f->products, f->products_stride, false);
    for_rows(f, add_rows);
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

/* Round each head of row i's keys or values to the levels that the model keeps. */
static void round_heads(const struct forward *f, size_t i, float *heads)
{
    const struct model *m = f->m;
    unsigned bits = m->kv_bits == 3 && !f->positions[i] ? 4 : m->kv_bits;       /* a4.8: the first token keeps 4 */

    for (size_t head = 0; head < m->n_kv; head++)
        activation_round(heads + head * m->head_dim, m->head_dim, bits);
}

static void turn_heads(const struct forward *f, float *heads, size_t n, const float *gain, const float *angles)
{
    const struct model *m = f->m;

    for (size_t i = 0; i < n; i++, heads += m->head_dim) {
        if (gain)
            norm(f, heads, heads, gain, m->head_dim, m->rms_eps);
        turn_head(m, heads, angles);
    }
}

/* Turn q and k, and put k and v where the session keeps them. */
static void remember(void *arg, size_t begin, size_t end)
{
    struct forward *f = arg;
    const struct model *m = f->m;
    size_t n_q = m->n_head * m->head_dim, n_kv = m->n_kv * m->head_dim;

    for (size_t i = begin; i < end; i++) {
        struct session *s = f->rows[i].session;
        float *q = f->products + i * f->products_stride, *k = q + n_q, *v = k + n_kv;
        const float *angles = f->angles + (i * f->n_turns + f->y->local) * m->rope_dim;
        size_t at = cache_at(f, s, f->positions[i]);

        tell(f, i, "q", q, n_q);
        tell(f, i, "k", k, n_kv);
        tell(f, i, "v", v, n_kv);
        turn_heads(f, q, m->n_head, f->y->q_norm, angles);
        turn_heads(f, k, m->n_kv, f->y->k_norm, angles);
        tell(f, i, "q_rope", q, n_q);
        tell(f, i, "k_rope", k, n_kv);
        if (m->kv_bits < 32) {
            round_heads(f, i, k);
            round_heads(f, i, v);
        }
        memcpy(s->k + at, k, n_kv * sizeof(float));
        memcpy(s->v + at, v, n_kv * sizeof(float));
    }
}

static void after_attention(void *arg, size_t begin, size_t end)
{
    struct forward *f = arg;
    size_t n = f->m->n_head * f->m->head_dim;

    for (size_t i = begin; i < end; i++) {
        float *h = f->h + i * f->wide;

        tell(f, i, "attn", h, n);
        if (f->y->attn_sub_norm) {
            norm(f, h, h, f->y->attn_sub_norm, n, f->m->rms_eps);
            tell(f, i, "attn_sub_norm", h, n);
        }
        prepare(f, i, n);
    }
}

static void gate_mul(const struct forward *f, float *out, const float *gate, const float *up, size_t n)
{
    if (f->m->act == ACT_RELU2)
        f->kernels->relu2_mul(out, gate, up, n);
    else if (f->m->act == ACT_SILU)
        f->kernels->silu_mul(out, gate, up, n);
    else
        activation_gelu_mul(out, gate, up, n);
}

static void gate_rows(void *arg, size_t begin, size_t end)
{
    struct forward *f = arg;
    size_t n = f->m->n_ff;

    for (size_t i = begin; i < end; i++) {
        float *h = f->h + i * f->wide, *gate = f->products + i * f->products_stride;

        tell(f, i, "gate", gate, n);
        tell(f, i, "up", gate + n, n);
        gate_mul(f, h, gate, gate + n, n);
        tell(f, i, "f", h, n);
        if (f->y->ffn_sub_norm) {
            norm(f, h, h, f->y->ffn_sub_norm, n, f->m->rms_eps);
            tell(f, i, "ffn_sub_norm", h, n);
        }
        prepare(f, i, n);
    }
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

static void attend(const struct forward *f, size_t i, size_t head, float *scores)
{
    const struct model *m = f->m;
    const struct session *s = f->rows[i].session;
    size_t d = m->head_dim, kv_width = m->n_kv * d, kv_head = head / (m->n_head / m->n_kv), n = f->positions[i] + 1;
    size_t first = f->y->local && n > m->window ? n - m->window : 0;
    const float *q = f->products + i * f->products_stride + head * d;
    const float *k = s->k + cache_at(f, s, first) + kv_head * d, *v = s->v + cache_at(f, s, first) + kv_head * d;
    float *out = f->h + i * f->wide + head * d;

    n -= first;
    for (size_t p = 0; p < n; p++)
        scores[p] = f->kernels->dot_f32(q, k + p * kv_width, d) * m->attn_scale;
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

static bool head_has_kernel(const struct dense *w)
{
    return w->type == TENSOR_F16 || w->type == TENSOR_F32 || w->type == TENSOR_Q8_0;
}

static void head_multiply(const struct forward *f, float *out, size_t stride, const float *x, size_t n, size_t r, size_t n_rows)
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

            head_multiply(f, tile, HEAD_ROWS, f->h + j * f->wide, n, r, n_rows);
            for (size_t b = 0; b < n; b++)
                memcpy(f->logits[j + b] + r, tile + b * HEAD_ROWS, n_rows * sizeof(float));
        }
    }
}

/* The same for a type that no kernel reads: each row is made floats first, task t's in the t-th line. */
static void head_lines(void *arg, size_t begin, size_t end)
{
    const struct forward *f = arg;
    size_t n_tasks = pool_threads(f->pool), rows = f->m->n_vocab;
    float dots[HEAD_BATCH];

    for (size_t t = begin; t < end; t++)
        for (size_t r = rows * t / n_tasks; r < rows * (t + 1) / n_tasks; r++) {
            float *line = f->lines + t * f->line;

            dense_row(&f->m->head, r, line);
            for (size_t j = 0; j < f->n_logits; j += HEAD_BATCH) {
                size_t n = MIN(f->n_logits - j, HEAD_BATCH);

                f->kernels->matmul_f32(dots, 1, line, f->h + j * f->wide, f->wide, n, 1, f->m->n_embd);
                for (size_t b = 0; b < n; b++)
                    f->logits[j + b][r] = dots[b];
            }
        }
}

static void head(struct forward *f)
{
    const struct model *m = f->m;
    size_t n = m->n_embd;

    f->n_logits = 0;
    for (size_t i = 0; i < f->n; i++) {
        float *h = f->h + f->n_logits * f->wide;

        if (!f->rows[i].logits && !f->hidden)
            continue;
        norm(f, h, f->x + i * n, m->output_norm, n, m->rms_eps);
        tell(f, i, "final_norm", h, n);
        if (f->hidden)
            memcpy(f->hidden + i * n, h, n * sizeof(*h));
        if (f->rows[i].logits)
            f->logits[f->n_logits++] = f->rows[i].logits;
    }
    if (!f->n_logits)
        return;
    if (head_has_kernel(&m->head))
        pool_run(f->pool, m->n_vocab, grain_of(8 * n * f->n_logits, HEAD_ROWS), head_rows, f);
    else
        pool_run(f->pool, pool_threads(f->pool), 1, head_lines, f);
}

/* ---- a run ------------------------------------------------------------------------------------------------------ */

static void tell_rows(struct forward *f, const char *stage)
{
    for (size_t i = 0; f->trace && i < f->n; i++)
        tell(f, i, stage, f->x + i * f->m->n_embd, f->m->n_embd);
}

static void run_layer(struct forward *f)
{
    const struct model_layer *y = f->y;

    project(f, "attn_norm", y->attn_norm, INPUT_QKV, (const struct ternary *const[]){ &y->q, &y->k, &y->v }, 3);
    for_rows(f, remember);
    attention(f);
    f->input = INPUT_O;
    f->norm_in = y->o.norm_in;
    for_rows(f, after_attention);
    project_back(f, "o", &y->o, "post_attention_norm", y->post_attn_norm);
    tell_rows(f, "x_attn");

    project(f, "ffn_norm", y->ffn_norm, INPUT_GATE_UP, (const struct ternary *const[]){ &y->gate, &y->up }, 2);
    f->input = INPUT_DOWN;
    f->norm_in = y->down.norm_in;
    for_rows(f, gate_rows);
    project_back(f, "down", &y->down, "post_ffw_norm", y->post_ffn_norm);
    tell_rows(f, "out");
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

/* Mean of n rows, first row or last row. */
static void pool_vectors(float *out, const float *rows, size_t n, size_t width, enum pooling how)
{
    if (how != POOLING_MEAN) {
        memcpy(out, rows + (how == POOLING_LAST ? n - 1 : 0) * width, width * sizeof(*out));
        return;
    }
    for (size_t c = 0; c < width; c++) {
        double sum = 0;

        for (size_t i = 0; i < n; i++)
            sum += (double)rows[i * width + c];
        out[c] = (float)(sum / (double)n);
    }
}

static void make_unit(float *x, size_t n)
{
    double squares = 0;

    for (size_t i = 0; i < n; i++)
        squares += (double)x[i] * (double)x[i];
    for (size_t i = 0; i < n && squares > 0; i++)
        x[i] = (float)((double)x[i] / sqrt(squares));
}

int forward_embed(struct forward *f, struct session *s, const int32_t *ids, size_t n, float *ret)
{
    cleanup(freep) struct forward_row *rows = calloc(f->max_rows, sizeof(*rows));
    cleanup(freep) float *all = NULL;
    size_t width = f->m->n_embd, floats;
    int r = 0;

    if (!n)
        return -EINVAL;
    if (n > s->n_ctx)
        return -ENOSPC;
    all = size_mul(&floats, n, width * sizeof(*all)) ? malloc(floats) : NULL;
    if (!rows || !all)
        return -ENOMEM;
    session_reset(s, 0);
    for (size_t i = 0, batch; i < n && !r; i += batch) {
        batch = MIN(f->max_rows, n - i);
        for (size_t j = 0; j < batch; j++)
            rows[j] = (struct forward_row){ s, ids[i + j], NULL };
        f->hidden = all + i * width;
        r = forward_run(f, rows, batch);
    }
    f->hidden = NULL;
    if (r < 0)
        return r;
    if (f->m->pooling == POOLING_NONE) {
        memcpy(ret, all, floats);
    } else {
        pool_vectors(ret, all, n, width, f->m->pooling);
        make_unit(ret, width);
    }
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
    f->products_stride = MAX(MAX(n_q + 2 * m->n_kv * m->head_dim, 2 * m->n_ff), m->n_embd);
    f->line = f->wide_q;
    f->n_turns = m->window ? 2 : 1;
    if (!scratch(&f->turn, half, f->n_turns, sizeof(double)) || !scratch(&f->x, max_rows, m->n_embd, sizeof(float)) ||
        !scratch(&f->h, max_rows, f->wide, sizeof(float)) || !scratch(&f->q, max_rows, f->wide_q, 1) ||
        !scratch(&f->unit, max_rows, 1, sizeof(float)) ||
        !scratch(&f->products, max_rows, f->products_stride, sizeof(float)) ||
        !scratch(&f->angles, max_rows, f->n_turns * m->rope_dim, sizeof(float)) ||
        !scratch(&f->lines, pool_threads(p), f->line, sizeof(float)) ||
        !scratch(&f->scores, pool_threads(p), m->n_ctx, sizeof(float)) ||
        !scratch(&f->logits, max_rows, 1, sizeof(float *)) || !scratch(&f->positions, max_rows, 1, sizeof(size_t))) {
        forward_free(f);
        return -ENOMEM;
    }
    for (size_t j = 0; j < half; j++) {
        f->turn[j] = pow((double)m->rope_base, -2.0 * (double)j / (double)m->rope_dim) / (double)m->rope_shrink;
        if (m->rope_freqs)
            f->turn[j] /= (double)m->rope_freqs[j];
        if (m->window)
            f->turn[half + j] = pow((double)m->rope_base_local, -2.0 * (double)j / (double)m->rope_dim);
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
    free(f->unit);
    free(f->lines);
    free(f->products);
    free(f->angles);
    free(f->scores);
    free(f->logits);
    free(f->positions);
    free(f);
}
