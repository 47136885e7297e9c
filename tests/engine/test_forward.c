/* The forward pass: bit for bit the same for any split into batches, any threads, any mix of sessions and any type that
 * holds the same weights; and right, against the same graph written plainly in doubles. */
#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include "tests/engine/gguf_write.h"

#define N_TOKENS 37

struct engine {
    uint8_t *file;
    struct model *model;
    struct pool *pool;
    struct kv_pool *kv;
    struct forward *forward;
    struct session *session;
};

static void engine_init(struct engine *e, const struct tiny *spec, unsigned threads, size_t max_rows)
{
    struct err err = {0};
    size_t size;

    e->file = tiny_file(spec, &size);
    cr_assert_eq(model_open_memory(&e->model, e->file, size, NULL, &err), 0, "%s", err.msg);
    cr_assert_eq(pool_new(&e->pool, threads), 0);
    cr_assert_eq(forward_new(&e->forward, e->model, e->pool, max_rows, &err), 0, "%s", err.msg);
    cr_assert_eq(kv_pool_new(&e->kv, e->model, KV_F32, 0, &err), 0, "%s", err.msg);
    cr_assert_eq(session_new(&e->session, e->kv, 0), 0);
}

static void engine_done(struct engine *e)
{
    session_free(e->session);
    kv_pool_free(e->kv);
    forward_free(e->forward);
    pool_free(e->pool);
    model_free(e->model);
    free(e->file);
}

static int32_t token_at(const struct model *m, size_t i)
{
    return (int32_t)(tiny_random("tokens", i) % m->n_vocab);
}

/* Logits (N_TOKENS, n_vocab) of the same tokens in batches of `batch`; malloc'd. */
static float *logits_of(const struct tiny *spec, unsigned threads, size_t batch)
{
    struct engine e;
    float *logits;

    engine_init(&e, spec, threads, batch);
    logits = malloc(N_TOKENS * e.model->n_vocab * sizeof(*logits));
    for (size_t i = 0; i < N_TOKENS;) {
        struct forward_row rows[64];
        size_t n = 0;

        for (; n < batch && i < N_TOKENS; n++, i++)
            rows[n] = (struct forward_row){ .session = e.session, .token = token_at(e.model, i),
                                            .logits = logits + i * e.model->n_vocab };
        cr_assert_eq(forward_run(e.forward, rows, n), 0);
    }
    cr_assert_eq(e.session->n, N_TOKENS);
    engine_done(&e);
    return logits;
}

static void expect_same(const float *a, const float *b, size_t n_vocab, const char *what)
{
    cr_expect(!memcmp(a, b, N_TOKENS * n_vocab * sizeof(*a)), "%s", what);
}

Test(forward, any_batch_and_any_threads)
{
    static const struct { unsigned threads; size_t batch; } splits[] = {
        { 1, 2 }, { 1, 3 }, { 1, 5 }, { 1, 16 }, { 1, 37 }, { 2, 1 }, { 2, 4 }, { 3, 9 }, { 4, 37 }, { 7, 13 },
    };
    struct tiny spec = TINY;
    cleanup(freep) float *want = NULL;

    spec.n_embd = 1024;         /* enough work to be shared out */
    spec.n_ff = 1024;
    spec.n_layer = 1;
    want = logits_of(&spec, 1, 1);
    for (size_t i = 0; i < ARRAY_SIZE(splits); i++) {
        cleanup(freep) float *got = logits_of(&spec, splits[i].threads, splits[i].batch);
        char what[64];

        snprintf(what, sizeof(what), "%u threads, batches of %zu", splits[i].threads, splits[i].batch);
        expect_same(want, got, spec.n_vocab, what);
    }
}

/* Every part that some graph has, in models big enough that threads share each of them. */
Test(forward, any_graph_in_any_split)
{
    struct tiny base = TINY, graphs[9];
    static const struct { unsigned threads; size_t batch; } splits[] = { { 1, 3 }, { 1, 37 }, { 2, 5 }, { 3, 1 }, { 3, 37 } };

    base.n_embd = base.n_ff = 512;
    for (size_t i = 0; i < ARRAY_SIZE(graphs); i++)
        graphs[i] = base;
    graphs[0].architecture = "llama";
    graphs[1].architecture = "qwen3";
    graphs[1].norms_in = true;
    graphs[2].architecture = "gemma3";
    graphs[2].window = 7;
    graphs[3].architecture = "qwen3";           /* BitDistill's */
    graphs[3].sub_norms = true;
    graphs[4].norm_kind = "layer";
    graphs[5].quant = "top50-int8";
    graphs[5].kv_bits = 3;
    graphs[6].quant = "int4-absmean";
    graphs[6].hadamard = "o down";
    graphs[7].quant = "none";
    graphs[8].dense = TENSOR_BF16;
    for (size_t i = 0; i < ARRAY_SIZE(graphs); i++) {
        cleanup(freep) float *want = logits_of(&graphs[i], 1, 1);

        for (size_t k = 0; k < ARRAY_SIZE(splits); k++) {
            cleanup(freep) float *got = logits_of(&graphs[i], splits[k].threads, splits[k].batch);
            char what[64];

            snprintf(what, sizeof(what), "graph %zu, %u threads, batches of %zu", i, splits[k].threads, splits[k].batch);
            expect_same(want, got, base.n_vocab, what);
        }
        for (size_t j = 0; j < i; j++) {
            cleanup(freep) float *other = logits_of(&graphs[j], 1, 37);

            cr_expect(memcmp(want, other, N_TOKENS * base.n_vocab * sizeof(*want)), "graphs %zu and %zu are one", i, j);
        }
    }
}

static float length_of(const float *x, size_t n)
{
    double squares = 0;

    for (size_t i = 0; i < n; i++)
        squares += (double)x[i] * (double)x[i];
    return (float)sqrt(squares);
}

Test(forward, embeddings)
{
    struct tiny spec = TINY;
    int32_t ids[11];
    float tokens[ARRAY_SIZE(ids) * 256], got[256], again[256];

    for (size_t i = 0; i < ARRAY_SIZE(ids); i++)
        ids[i] = (int32_t)(tiny_random("tokens", i) % spec.n_vocab);
    for (spec.pooling = POOLING_NONE; spec.pooling <= POOLING_LAST; spec.pooling++) {
        struct engine e;
        double dot = 0;

        engine_init(&e, &spec, 2, 4);
        cr_assert_eq(forward_embed(e.forward, e.session, ids, ARRAY_SIZE(ids), spec.pooling ? got : tokens), 0);
        cr_assert_eq(e.session->n, ARRAY_SIZE(ids));
        cr_expect_eq(forward_embed(e.forward, e.session, ids, 0, got), -EINVAL);
        cr_expect_eq(forward_embed(e.forward, e.session, (int32_t[]){ -1 }, 1, again), -EINVAL);
        if (spec.pooling) {
            float want[256] = {0};

            for (size_t i = 0; i < ARRAY_SIZE(ids); i++)
                for (size_t c = 0; c < 256; c++)
                    if (spec.pooling == POOLING_MEAN || i == (spec.pooling == POOLING_LAST ? ARRAY_SIZE(ids) - 1 : 0))
                        want[c] += tokens[i * 256 + c];
            for (size_t c = 0; c < 256; c++)
                dot += (double)want[c] * (double)got[c];
            cr_expect_float_eq(length_of(got, 256), 1, 1e-6);
            cr_expect_float_eq(dot / (double)length_of(want, 256), 1, 1e-6);
            cr_assert_eq(forward_embed(e.forward, e.session, ids, ARRAY_SIZE(ids), again), 0);
            cr_expect_arr_eq(got, again, sizeof(got));
        }
        engine_done(&e);
    }
}

struct heard { size_t n, last_row; char first[32], last[32]; };

static void hear(void *arg, const char *name, size_t row, const float *x, size_t n)
{
    struct heard *h = arg;

    cr_assert(n && !isnan(x[0]) && !isnan(x[n - 1]));
    snprintf(h->n++ ? h->last : h->first, sizeof(h->first), "%s", name);
    h->last_row = row;
}

/* A trace changes nothing and hears each stage of each row. */
Test(forward, trace)
{
    struct tiny spec = TINY;
    struct heard heard = {0};
    cleanup(freep) float *want = logits_of(&spec, 1, 1), *got = malloc(N_TOKENS * spec.n_vocab * sizeof(*got));
    struct forward_row rows[N_TOKENS];
    struct engine e;

    engine_init(&e, &spec, 2, 64);
    forward_trace(e.forward, hear, &heard);
    for (size_t i = 0; i < N_TOKENS; i++)
        rows[i] = (struct forward_row){ .session = e.session, .token = token_at(e.model, i),
                                        .logits = got + i * spec.n_vocab };
    cr_assert_eq(forward_run(e.forward, rows, N_TOKENS), 0);
    expect_same(want, got, spec.n_vocab, "traced");
    cr_expect_str_eq(heard.first, "l0.attn_norm");
    cr_expect_str_eq(heard.last, "final_norm");
    cr_expect_eq(heard.last_row, N_TOKENS - 1);
    cr_expect_eq(heard.n, N_TOKENS * (spec.n_layer * 17 + 1), "%zu", heard.n);
    engine_done(&e);
}

Test(forward, any_type_of_the_same_weights)
{
    struct tiny spec = TINY, other;
    cleanup(freep) float *want = logits_of(&spec, 1, 8);
    static const enum tensor_type dense[] = { TENSOR_F32, TENSOR_BF16, TENSOR_Q8_0 };

    for (size_t i = 0; i < ARRAY_SIZE(dense); i++) {
        cleanup(freep) float *got = NULL;

        other = spec;
        other.dense = dense[i];
        got = logits_of(&other, 2, 8);
        expect_same(want, got, spec.n_vocab, "embedding type");
    }
    for (int i = 0; i < 4; i++) {
        cleanup(freep) float *got = NULL;

        other = spec;
        other.ternary = i == 0 ? TENSOR_TQ2_0 : TENSOR_I2_S;
        other.norm = i == 1 ? TENSOR_F16 : TENSOR_F32;
        other.head = i == 2;
        other.scale_tensors = i == 3;
        got = logits_of(&other, 1, 8);
        expect_same(want, got, spec.n_vocab, (const char *[]){ "TQ2_0", "norms in F16", "output.weight", ".scale" }[i]);
    }
}

/* Rows of three sessions mixed in one batch, each as if alone. */
Test(forward, sessions_side_by_side)
{
    struct tiny spec = TINY;
    cleanup(freep) float *want = logits_of(&spec, 1, 1), *got = NULL;
    struct session *others[2];
    struct forward_row rows[64];
    struct engine e;
    size_t n = 0;

    engine_init(&e, &spec, 2, 64);
    got = malloc(N_TOKENS * spec.n_vocab * sizeof(*got));
    for (int i = 0; i < 2; i++)
        cr_assert_eq(session_new(&others[i], e.kv, 20), 0);
    for (size_t i = 0; i < N_TOKENS; i++) {
        if (i % 2 && i < 40)
            rows[n++] = (struct forward_row){ .session = others[i / 2 % 2], .token = token_at(e.model, 1000 + i) };
        rows[n++] = (struct forward_row){ .session = e.session, .token = token_at(e.model, i),
                                          .logits = got + i * spec.n_vocab };
    }
    cr_assert_eq(forward_run(e.forward, rows, n), 0);
    expect_same(want, got, spec.n_vocab, "mixed");
    for (int i = 0; i < 2; i++)
        session_free(others[i]);
    engine_done(&e);
}

Test(forward, a_reset_session_starts_again)
{
    struct tiny spec = TINY;
    float *first = malloc(spec.n_vocab * sizeof(*first)), *again = malloc(spec.n_vocab * sizeof(*again));
    struct forward_row rows[8];
    struct engine e;

    engine_init(&e, &spec, 1, 8);
    for (size_t i = 0; i < 8; i++)
        rows[i] = (struct forward_row){ .session = e.session, .token = token_at(e.model, i),
                                        .logits = i == 7 ? first : NULL };
    cr_assert_eq(forward_run(e.forward, rows, 8), 0);
    session_reset(e.session, 5);
    cr_assert_eq(e.session->n, 5);
    rows[7].logits = again;
    cr_assert_eq(forward_run(e.forward, rows + 5, 3), 0);
    cr_assert_arr_eq(first, again, spec.n_vocab * sizeof(*first));
    session_reset(e.session, 99);
    cr_assert_eq(e.session->n, 8);
    engine_done(&e);
    free(first);
    free(again);
}

Test(forward, a_full_session_changes_nothing)
{
    struct tiny spec = TINY;
    struct session *small;
    struct forward_row rows[8];
    struct engine e;

    engine_init(&e, &spec, 1, 8);
    cr_assert_eq(session_new(&small, e.kv, 3), 0);
    for (size_t i = 0; i < 8; i++)
        rows[i] = (struct forward_row){ .session = i % 2 ? small : e.session, .token = 1 };
    cr_assert_eq(forward_run(e.forward, rows, 8), -ENOSPC);
    cr_assert(small->n == 0 && e.session->n == 0);
    cr_assert_eq(forward_run(e.forward, rows, 6), 0);
    cr_assert(small->n == 3 && e.session->n == 3);
    cr_assert_eq(forward_run(e.forward, rows + 1, 1), -ENOSPC);
    rows[0].token = (int32_t)spec.n_vocab;
    cr_assert_eq(forward_run(e.forward, rows, 1), -EINVAL);
    rows[0].token = -1;
    cr_assert_eq(forward_run(e.forward, rows, 1), -EINVAL);
    cr_assert_eq(e.session->n, 3);
    session_free(small);
    engine_done(&e);
}

/* ---- the same in doubles ---------------------------------------------------------------------------------------- */

struct plain {
    const struct tiny *spec;
    bool sub_norms, half, relu2;
    double *k, *v;              /* (layer, position, kv) */
};

static void plain_norm(double *out, const double *x, const char *layer, const char *name, size_t n)
{
    double squares = 0;
    char full[64];

    snprintf(full, sizeof(full), "%s%s.weight", layer, name);
    for (size_t i = 0; i < n; i++)
        squares += x[i] * x[i];
    for (size_t i = 0; i < n; i++)
        out[i] = x[i] / sqrt(squares / (double)n + 1e-5f) * (double)tiny_gain(full, i);
}

static void plain_linear(double *out, const double *x, const char *layer, const char *name, size_t cols, size_t rows)
{
    double a = 1e-5, q[1024];
    uint64_t seed;
    char full[64];

    snprintf(full, sizeof(full), "%s%s.weight", layer, name);
    seed = tiny_seed(full);
    for (size_t c = 0; c < cols; c++)
        a = fmax(a, fabs(x[c]));
    for (size_t c = 0; c < cols; c++)
        q[c] = rint(x[c] * 127 / a);
    for (size_t r = 0; r < rows; r++) {
        double sum = 0;

        for (size_t c = 0; c < cols; c++)
            sum += ((double)(tiny_random_of(seed, r * cols + c) % 3) - 1) * q[c];
        out[r] = sum * 0.0625 * a / 127;
    }
}

static void plain_turn(const struct plain *p, double *head, size_t position)
{
    size_t d = p->spec->head_dim;

    for (size_t j = 0; j < d / 2; j++) {
        double angle = (double)position * pow(10000, -2.0 * (double)j / (double)d);
        double *u = &head[p->half ? j : 2 * j], *v = &head[p->half ? j + d / 2 : 2 * j + 1], u0 = *u, v0 = *v;

        *u = u0 * cos(angle) - v0 * sin(angle);
        *v = u0 * sin(angle) + v0 * cos(angle);
    }
}

static void plain_attention(const struct plain *p, double *out, const double *q, size_t layer, size_t position)
{
    const struct tiny *s = p->spec;
    size_t d = s->head_dim, kv = s->n_kv * d;

    for (size_t h = 0; h < s->n_head; h++) {
        const double *k = p->k + layer * s->n_ctx * kv + h / (s->n_head / s->n_kv) * d;
        const double *v = p->v + layer * s->n_ctx * kv + h / (s->n_head / s->n_kv) * d;
        double e[N_TOKENS], total = 0;

        for (size_t t = 0; t <= position; t++) {
            double score = 0;

            for (size_t i = 0; i < d; i++)
                score += q[h * d + i] * k[t * kv + i];
            total += e[t] = exp(score / sqrt((double)d));
        }
        for (size_t i = 0; i < d; i++) {
            out[h * d + i] = 0;
            for (size_t t = 0; t <= position; t++)
                out[h * d + i] += e[t] / total * v[t * kv + i];
        }
    }
}

static void plain_layer(const struct plain *p, double *x, size_t layer, size_t position)
{
    const struct tiny *s = p->spec;
    size_t attn = s->n_head * s->head_dim, kv = s->n_kv * s->head_dim;
    double h[1024], q[1024], a[1024], gate[1024], up[1024], y[1024];
    double *k = p->k + (layer * s->n_ctx + position) * kv, *v = p->v + (layer * s->n_ctx + position) * kv;
    char name[32];

    snprintf(name, sizeof(name), "blk.%zu.", layer);
    plain_norm(h, x, name, "attn_norm", s->n_embd);
    plain_linear(q, h, name, "attn_q", s->n_embd, attn);
    plain_linear(k, h, name, "attn_k", s->n_embd, kv);
    plain_linear(v, h, name, "attn_v", s->n_embd, kv);
    for (size_t i = 0; i < s->n_head; i++)
        plain_turn(p, q + i * s->head_dim, position);
    for (size_t i = 0; i < s->n_kv; i++)
        plain_turn(p, k + i * s->head_dim, position);
    plain_attention(p, a, q, layer, position);
    if (p->sub_norms)
        plain_norm(a, a, name, "attn_sub_norm", attn);
    plain_linear(y, a, name, "attn_output", attn, s->n_embd);
    for (size_t i = 0; i < s->n_embd; i++)
        x[i] += y[i];

    plain_norm(h, x, name, "ffn_norm", s->n_embd);
    plain_linear(gate, h, name, "ffn_gate", s->n_embd, s->n_ff);
    plain_linear(up, h, name, "ffn_up", s->n_embd, s->n_ff);
    for (size_t i = 0; i < s->n_ff; i++)
        gate[i] = (p->relu2 ? pow(fmax(gate[i], 0), 2) : gate[i] / (1 + exp(-gate[i]))) * up[i];
    if (p->sub_norms)
        plain_norm(gate, gate, name, "ffn_sub_norm", s->n_ff);
    plain_linear(y, gate, name, "ffn_down", s->n_ff, s->n_embd);
    for (size_t i = 0; i < s->n_embd; i++)
        x[i] += y[i];
}

/* Relative distance of one token's logits. A rounding that flips in one of the programs costs a percent or so; a wrong
 * graph makes them strangers. */
static double plain_distance(const struct plain *p, const float *got, size_t position, int32_t token)
{
    const struct tiny *s = p->spec;
    double x[1024], difference = 0, size = 0;

    for (size_t i = 0; i < s->n_embd; i++)
        x[i] = tiny_float("embeddings", (size_t)token * s->n_embd + i);
    for (size_t layer = 0; layer < s->n_layer; layer++)
        plain_layer(p, x, layer, position);
    plain_norm(x, x, "", "output_norm", s->n_embd);
    for (size_t t = 0; t < s->n_vocab; t++) {
        double logit = 0;

        for (size_t i = 0; i < s->n_embd; i++)
            logit += (double)tiny_float("embeddings", t * s->n_embd + i) * x[i];
        difference += pow(logit - (double)got[t], 2);
        size += logit * logit;
    }
    return sqrt(difference / size);
}

static void check_plain(struct tiny spec, bool sub_norms, bool half, bool relu2)
{
    size_t kv = spec.n_layer * spec.n_ctx * spec.n_kv * spec.head_dim;
    cleanup(freep) double *k = calloc(kv, sizeof(*k)), *v = calloc(kv, sizeof(*v));
    struct plain p = { &spec, sub_norms, half, relu2, k, v };
    cleanup(freep) float *got = logits_of(&spec, 1, 8);
    int exact = 0;

    for (size_t i = 0; i < N_TOKENS; i++) {
        double distance = plain_distance(&p, got + i * spec.n_vocab, i, (int32_t)(tiny_random("tokens", i) % spec.n_vocab));

        cr_expect_lt(distance, 0.05, "%s: position %zu is %g off", spec.architecture, i, distance);
        exact += distance < 1e-4;
    }
    cr_expect_geq(exact, N_TOKENS * 3 / 4, "%s: %d of %d without a flipped rounding", spec.architecture, exact, N_TOKENS);
    printf("%s: %d of %d agree to 1e-4\n", spec.architecture, exact, N_TOKENS);
}

Test(forward, plain_relu2)
{
    check_plain(TINY, true, true, true);
}

Test(forward, plain_silu_odd_widths)
{
    struct tiny spec = TINY;

    spec.architecture = "bitnet";
    spec.vocabulary = "llama";
    spec.n_ff = 172;
    spec.head_dim = 40;
    check_plain(spec, true, true, false);
}

Test(forward, plain_llama)
{
    struct tiny spec = TINY;

    spec.architecture = "llama";
    check_plain(spec, false, false, false);
}
