/* Attention: where the positions of a session meet. Keys and values of each row go to its session, turned by position
 * (and rounded, where the model keeps them in few bits); then the queries look back at what its pages hold, in local
 * layers only as far as the window.
 *
 * Heads that share keys and rows that follow each other in a session go through the pages together, so that a page is
 * read once for all of them; each is computed as if alone. */
#include "engine/forward.h"

#include <math.h>
#include <string.h>

#define MAX_QUERIES 32                  /* that go together */
#define QUERY_FLOATS 8192               /* theirs, two heads of the widest there are */

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
        const struct session *s = f->rows[i].session;
        const struct kv_page *page = s->pages[f->positions[i] / ATTEND_TOKENS];
        float *q = f->products + i * f->products_stride, *k = q + n_q, *v = k + n_kv;
        const float *angles = f->angles + (i * f->n_turns + f->y->local) * m->rope_dim;

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
        for (size_t head = 0; head < m->n_kv; head++) {
            struct kv_block b = kv_block(s->kv, page, f->layer, head);

            kv_block_put(s->kv, &b, f->positions[i] % ATTEND_TOKENS, k + head * m->head_dim, v + head * m->head_dim);
        }
    }
}

/* n_rows rows of one session from `row`, each with n_heads heads from `head` that share a key head. */
struct queries {
    const struct forward *f;
    size_t row, n_rows, head, n_heads;
    float q[QUERY_FLOATS], acc[QUERY_FLOATS], units[MAX_QUERIES];
    int8_t q8[QUERY_FLOATS];
    struct attend state[MAX_QUERIES];
};

/* Of KV_INT8 the queries are integers too. */
static void take_queries(struct queries *s, enum kv_type type)
{
    const struct forward *f = s->f;
    size_t d = f->m->head_dim, d4 = (d + 3) / 4 * 4, n = s->n_rows * s->n_heads;

    for (size_t i = 0; i < n; i++) {
        const float *from = f->products + (s->row + i / s->n_heads) * f->products_stride + (s->head + i % s->n_heads) * d;

        if (type == KV_INT8) {
            s->units[i] = f->kernels->quantize_row(s->q8 + i * d4, from, d) / 127 * f->m->attn_scale;
            memset(s->q8 + i * d4 + d, 0, d4 - d);
        } else {
            for (size_t c = 0; c < d; c++)
                s->q[i * d + c] = from[c] * f->m->attn_scale;
        }
        s->state[i] = (struct attend){ -INFINITY, 0 };
    }
    memset(s->acc, 0, n * d * sizeof(*s->acc));
}

/* Rows begin..end of them with tokens first..last-1 of a page. */
static void attend_block(struct queries *s, enum kv_type type, const struct kv_block *b, size_t begin, size_t end,
                         size_t first, size_t last)
{
    const struct kernels *k = s->f->kernels;
    size_t d = s->f->m->head_dim, d4 = (d + 3) / 4 * 4, i = begin * s->n_heads, n = (end - begin) * s->n_heads;

    switch (type) {
    case KV_F32: k->attend_f32(s->acc + i * d, s->state + i, s->q + i * d, n, b->k, b->v, d, first, last); break;
    case KV_F16: k->attend_f16(s->acc + i * d, s->state + i, s->q + i * d, n, b->k, b->v, d, first, last); break;
    case KV_INT8:
        k->attend_int8(s->acc + i * d, s->state + i, s->q8 + i * d4, s->units + i, n, b->k, b->k_units, b->v, b->v_units,
                       d, first, last);
    }
}

/* The positions that row i sees: *ret_first..*ret_end-1. */
static void sight(const struct forward *f, size_t i, size_t *ret_first, size_t *ret_end)
{
    *ret_end = f->positions[i] + 1;
    *ret_first = f->y->local && *ret_end > f->m->window ? *ret_end - f->m->window : 0;
}

static void attend_page(struct queries *s, const struct session *session, size_t page)
{
    const struct forward *f = s->f;
    enum kv_type type = kv_pool_type(session->kv);
    struct kv_block b = kv_block(session->kv, session->pages[page], f->layer, s->head / (f->m->n_head / f->m->n_kv));
    size_t at = page * ATTEND_TOKENS, begin = 0, begin_first = 0, begin_last = 0;

    /* Rows that see the same part of it go together. */
    for (size_t i = 0; i <= s->n_rows; i++) {
        size_t first = 0, last = 0;

        if (i < s->n_rows) {
            sight(f, s->row + i, &first, &last);
            first = MAX(first, at) - at;
            last = MIN(MAX(last, at) - at, ATTEND_TOKENS);
        }
        if (i && first == begin_first && last == begin_last && i < s->n_rows)
            continue;
        if (i && begin_first < begin_last)
            attend_block(s, type, &b, begin, i, begin_first, begin_last);
        begin = i;
        begin_first = first;
        begin_last = last;
    }
}

static void attend(struct queries *s)
{
    const struct forward *f = s->f;
    const struct session *session = f->rows[s->row].session;
    size_t d = f->m->head_dim, first, end, ignored;

    take_queries(s, kv_pool_type(session->kv));
    sight(f, s->row, &first, &ignored);
    sight(f, s->row + s->n_rows - 1, &ignored, &end);
    for (size_t page = first / ATTEND_TOKENS; page * ATTEND_TOKENS < end; page++)
        attend_page(s, session, page);
    for (size_t i = 0; i < s->n_rows * s->n_heads; i++) {
        float *out = f->h + (s->row + i / s->n_heads) * f->wide + (s->head + i % s->n_heads) * d;

        for (size_t c = 0; c < d; c++)
            out[c] = s->acc[i * d + c] / s->state[i].sum;
    }
}

/* Rows are cut into spans that follow each other in a session; tasks are (span, head), the last spans, which see most,
 * first. Heads of a task range that share keys go together. */
static void attend_tasks(void *arg, size_t begin, size_t end)
{
    const struct forward *f = arg;
    size_t n_head = f->m->n_head, group = n_head / f->m->n_kv;
    struct queries s;

    s.f = f;
    while (begin < end) {
        size_t span = f->n_spans - 1 - begin / n_head;

        s.head = begin % n_head;
        s.row = f->spans[span];
        s.n_rows = f->spans[span + 1] - s.row;
        s.n_heads = MIN(MIN(end - begin, group - s.head % group), f->max_queries / s.n_rows);
        attend(&s);
        begin += s.n_heads;
    }
}

void attention_run(struct forward *f)
{
    const struct model *m = f->m;
    size_t group = m->n_head / m->n_kv, most, work = 0;

    f->max_queries = MIN(MAX_QUERIES, QUERY_FLOATS / (m->head_dim + 3));
    most = MAX(f->max_queries / group, 1);
    f->n_spans = 0;
    for (size_t i = 0; i < f->n; i++) {
        size_t begin = f->n_spans ? f->spans[f->n_spans - 1] : 0;

        if (!i || f->rows[i].session != f->rows[i - 1].session || i - begin == most)
            f->spans[f->n_spans++] = i;
        work += f->positions[i] + 1;
    }
    f->spans[f->n_spans] = f->n;
    /* In floats, some times the cost of ternary ones. */
    work = 8 * work * m->head_dim / f->n_spans;
    pool_run(f->pool, f->n_spans * m->n_head, grain_of(work, f->n_spans > 1 ? group : 1), attend_tasks, f);
}
