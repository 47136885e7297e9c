/* The transformer itself: rows of tokens in, logits out, W1.58A8 as BitNet b1.58 defines it (arXiv:2402.17764).
 *
 * One layer, for rows x (f32); norms that a model has not are left out, [ ] are those that few have:
 *     h = norm(x, attn_norm);  q, k, v = BitLinear(h);  [q, k = norm of each head];  q, k turned by position;
 *     k, v to the session [rounded]
 *     a = softmax(q k / sqrt(head_dim)) v;   x += [norm of] BitLinear(norm(a, attn_sub_norm))
 *     h = norm(x, ffn_norm);   f = act(BitLinear(h)) * BitLinear(h);
 *                                            x += [norm of] BitLinear(forward_norm(f, ffn_sub_norm))
 * BitLinear quantises its input once, [after a norm of its own and a Hadamard transform], q_i = rte(x_i * 127/a) with
 * a = max|x_i|, multiplies in integers and gives, all in f32 and in this order,
 *     y = (float)sum * (scale * (a / 127))
 * or, in a model whose activations stay as they are, y = dot(trits, x) * scale.
 *
 * Every value depends only on its own row and what that row's session holds, and is computed in one fixed order, so
 * neither the split into batches nor the number of threads changes a bit. Products are shared out by output row,
 * attention by (row, head), everything else by row. */
#include "engine/forward.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define TILE_ROWS 128           /* output rows computed at a time: their sums stay in the first cache */
#define TILE_BATCH 64
#define GRAIN 16                /* rows shared out to threads begin at its multiples, which layouts' groups divide */

/* ---- the trace -------------------------------------------------------------------------------------------------- */

void forward_tell(const struct forward *f, size_t i, const char *stage, const float *x, size_t n)
{
    char name[48];

    if (!f->trace)
        return;
    snprintf(name, sizeof(name), "l%zu.%s", f->layer, stage);
    f->trace(f->trace_arg, f->layer < f->m->n_layer ? name : stage, f->positions[i], x, n);
}

void forward_trace(struct forward *f, void (*fn)(void *arg, const char *name, size_t row, const float *x, size_t n),
                   void *arg)
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

/* y = (float)sum * (scale * unit), put into `to` or added to it. Loops that vectors can take. */
static void scale_sums(float *restrict to, const int32_t *restrict sums, size_t n, float scale, const float *row_scales,
                       float unit, bool add)
{
    scale *= unit;
    if (row_scales)
        for (size_t i = 0; i < n; i++)
            to[i] = (add ? to[i] : 0) + (float)sums[i] * (row_scales[i] * unit);
    else if (add)
        for (size_t i = 0; i < n; i++)
            to[i] = to[i] + (float)sums[i] * scale;
    else
        for (size_t i = 0; i < n; i++)
            to[i] = (float)sums[i] * scale;
}

/* Rows r..end of one matrix, the first of them to column `out`. */
static void multiply(const struct product *p, const struct ternary *w, size_t r, size_t end, float *out)
{
    const struct forward *f = p->f;
    int32_t sums[TILE_BATCH * TILE_ROWS];

    for (; r < end; r += TILE_ROWS, out += TILE_ROWS) {
        size_t n_rows = MIN(end - r, TILE_ROWS);

        for (size_t j = 0; j < f->n; j += TILE_BATCH) {
            size_t n = MIN(f->n - j, TILE_BATCH);

            f->kernels->ternary_matmul(sums, TILE_ROWS, w->w + w->layout->bytes(r, w->padded), f->q + j * f->wide_q,
                                       f->wide_q, n, n_rows, w->padded);
            for (size_t b = 0; b < n; b++)
                scale_sums(out + (j + b) * p->stride, sums + b * TILE_ROWS, n_rows, w->scale,
                           w->row_scales ? w->row_scales + r : NULL, f->unit[j + b], p->add);
        }
    }
}

/* A matrix's rows, filled up so that the next one stacked under it begins a group of its layout. */
static size_t stacked_rows(const struct ternary *w)
{
    return (w->rows + GRAIN - 1) / GRAIN * GRAIN;
}

/* Rows begin..end of the matrices as if stacked. */
static void run_product(void *arg, size_t begin, size_t end)
{
    const struct product *p = arg;
    float *out = p->out;
    size_t first = 0;           /* stacked row where this matrix begins */

    for (size_t i = 0; i < p->n_w; first += stacked_rows(p->w[i]), out += p->w[i++]->rows) {
        size_t from = MAX(begin, first), to = MIN(end, first + p->w[i]->rows);

        if (from < to)
            multiply(p, p->w[i], from - first, to - first, out + from - first);
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

static void product(struct forward *f, const struct ternary *const w[], size_t n_w, float *out, size_t stride, bool add)
{
    struct product p = { .f = f, .n_w = n_w, .out = out, .stride = stride, .add = add };
    size_t rows = 0;

    for (size_t i = 0; i < n_w; i++) {
        p.w[i] = w[i];
        rows += stacked_rows(w[i]);
    }
    if (f->m->inputs[f->input].quant == QUANT_NONE)
        pool_run(f->pool, pool_threads(f->pool), 1, run_float_product, &p);
    else
        pool_run(f->pool, rows, grain_of(w[0]->padded * f->n, GRAIN), run_product, &p);
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

void forward_norm(const struct forward *f, float *out, const float *x, const float *gain, size_t n, float eps)
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
        forward_norm(f, h, h, f->norm_in, n, m->norm_in_eps);
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

    dense_read_row(&f->m->embd, (size_t)f->rows[i].token, f->h + i * f->wide, x);
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
            forward_norm(f, h, x, f->gain, n, f->m->rms_eps);
        else
            memcpy(h, x, n * sizeof(*h));
        if (!f->told)
            forward_tell(f, i, f->norm_name, h, n);
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
        f->told = i > 0;
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

        forward_tell(f, i, f->product_name, y, n);
        if (f->post_gain) {
            forward_norm(f, y, y, f->post_gain, n, f->m->rms_eps);
            forward_tell(f, i, f->post_name, y, n);
        }
        for (size_t c = 0; c < n; c++)
            x[c] = x[c] + y[c];
    }
}

/* x += [norm of] w times what the rows were prepared to. */
static void project_back(struct forward *f, const char *name, const struct ternary *w, const char *post_name,
                         const float *post_gain)
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

static void after_attention(void *arg, size_t begin, size_t end)
{
    struct forward *f = arg;
    size_t n = f->m->n_head * f->m->head_dim;

    for (size_t i = begin; i < end; i++) {
        float *h = f->h + i * f->wide;

        forward_tell(f, i, "attn", h, n);
        if (f->y->attn_sub_norm) {
            forward_norm(f, h, h, f->y->attn_sub_norm, n, f->m->rms_eps);
            forward_tell(f, i, "attn_sub_norm", h, n);
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

        forward_tell(f, i, "gate", gate, n);
        forward_tell(f, i, "up", gate + n, n);
        gate_mul(f, h, gate, gate + n, n);
        forward_tell(f, i, "f", h, n);
        if (f->y->ffn_sub_norm) {
            forward_norm(f, h, h, f->y->ffn_sub_norm, n, f->m->rms_eps);
            forward_tell(f, i, "ffn_sub_norm", h, n);
        }
        prepare(f, i, n);
    }
}

/* ---- a run ------------------------------------------------------------------------------------------------------ */

static void tell_rows(struct forward *f, const char *stage)
{
    for (size_t i = 0; f->trace && i < f->n; i++)
        forward_tell(f, i, stage, f->x + i * f->m->n_embd, f->m->n_embd);
}

static void run_layer(struct forward *f)
{
    const struct model_layer *y = f->y;

    project(f, "attn_norm", y->attn_norm, INPUT_QKV, (const struct ternary *const[]){ &y->q, &y->k, &y->v }, 3);
    for_rows(f, attention_remember);
    attention_run(f);
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
        int r = session_grow(s);

        if (r < 0) {
            while (i--)
                session_reset(rows[i].session, rows[i].session->n - 1);
            return r;
        }
        f->positions[i] = s->n - 1;
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
    head_run(f);
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
        !scratch(&f->wants, max_rows, 1, sizeof(*f->wants)) || !scratch(&f->positions, max_rows, 1, sizeof(size_t)) ||
        !scratch(&f->spans, max_rows + 1, 1, sizeof(size_t)) ||
        head_new(&f->head, &m->head, m->cache, p) < 0) {
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
    free(f->wants);
    head_free(f->head);
    free(f->positions);
    free(f->spans);
    free(f);
}
