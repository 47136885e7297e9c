/* What comes after the last layer: its norm, then the head's logits or a text's vector. */
#include "engine/forward.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#define HEAD_ROWS 64            /* of the vocabulary at a time */
#define HEAD_BATCH 4

static bool head_has_kernel(const struct dense *w)
{
    return w->type == TENSOR_F16 || w->type == TENSOR_F32 || w->type == TENSOR_Q8_0;
}

static void head_multiply(const struct forward *f, float *out, size_t stride, const float *x, size_t n, size_t r,
                          size_t n_rows)
{
    const struct dense *w = &f->m->head;
    const struct kernels *k = f->kernels;
    size_t cols = w->cols, q8_0_row = cols / Q8_0_BLOCK * Q8_0_BLOCK_BYTES;

    if (w->type == TENSOR_F16)
        k->matmul_f16(out, stride, (const uint16_t *)w->w + r * cols, x, f->wide, n, n_rows, cols);
    else if (w->type == TENSOR_F32)
        k->matmul_f32(out, stride, (const float *)w->w + r * cols, x, f->wide, n, n_rows, cols);
    else
        k->matmul_q8_0(out, stride, (const uint8_t *)w->w + r * q8_0_row, x, f->wide, n, n_rows, cols);
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

void head_run(struct forward *f)
{
    const struct model *m = f->m;
    size_t n = m->n_embd;

    f->n_logits = 0;
    for (size_t i = 0; i < f->n; i++) {
        float *h = f->h + f->n_logits * f->wide;

        if (!f->rows[i].logits && !f->hidden)
            continue;
        forward_norm(f, h, f->x + i * n, m->output_norm, n, m->rms_eps);
        forward_tell(f, i, "final_norm", h, n);
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
    if (f->m->pooling == POOLING_NONE)
        memcpy(ret, all, floats);
    else
        forward_pool(ret, all, n, width, f->m->pooling);
    return 0;
}
