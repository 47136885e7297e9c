/* Attention: where the positions of a session meet. Keys and values of each row go to its session, turned by position
 * (and rounded, where the model keeps them in few bits); then every (row, head) looks back at what its session holds,
 * in local layers only as far as the window. */
#include "engine/forward.h"

#include <string.h>

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
            forward_norm(f, heads, heads, gain, m->head_dim, m->rms_eps);
        turn_head(m, heads, angles);
    }
}

void attention_remember(void *arg, size_t begin, size_t end)
{
    struct forward *f = arg;
    const struct model *m = f->m;
    size_t n_q = m->n_head * m->head_dim, n_kv = m->n_kv * m->head_dim;

    for (size_t i = begin; i < end; i++) {
        struct session *s = f->rows[i].session;
        float *q = f->products + i * f->products_stride, *k = q + n_q, *v = k + n_kv;
        const float *angles = f->angles + (i * f->n_turns + f->y->local) * m->rope_dim;
        size_t at = cache_at(f, s, f->positions[i]);

        forward_tell(f, i, "q", q, n_q);
        forward_tell(f, i, "k", k, n_kv);
        forward_tell(f, i, "v", v, n_kv);
        turn_heads(f, q, m->n_head, f->y->q_norm, angles);
        turn_heads(f, k, m->n_kv, f->y->k_norm, angles);
        forward_tell(f, i, "q_rope", q, n_q);
        forward_tell(f, i, "k_rope", k, n_kv);
        if (m->kv_bits < 32) {
            round_heads(f, i, k);
            round_heads(f, i, v);
        }
        memcpy(s->k + at, k, n_kv * sizeof(float));
        memcpy(s->v + at, v, n_kv * sizeof(float));
    }
}

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

void attention_run(struct forward *f)
{
    size_t work = 0;

    for (size_t i = 0; i < f->n; i++)
        work += (f->positions[i] + 1) * f->m->n_head * f->m->head_dim * 2;
    /* In floats, some eight times the cost of ternary ones. */
    f->attention_tasks = 8 * work < WORTH_A_THREAD ? 1 : pool_threads(f->pool);
    pool_run(f->pool, f->attention_tasks, 1, attention_tasks, f);
}
