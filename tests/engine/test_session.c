/* Sessions and their pages: who holds what, and that the same tokens give the same logits to the bit whether their pages
 * are a session's own, shared with others or copied, in every type; also with odd heads and at the edges of pages. */
#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include "tests/engine/gguf_write.h"

#define N (3 * ATTEND_TOKENS + 5)

struct engine {
    uint8_t *file;
    struct model *model;
    struct pool *pool;
    struct forward *forward;
    struct kv_pool *kv;
};

static const char *const names[] = { [KV_F32] = "f32", [KV_F16] = "f16", [KV_INT8] = "int8" };

static struct tiny spec_of(size_t head_dim, size_t n_head, size_t n_kv)
{
    struct tiny spec = TINY;

    spec.n_ctx = N + 20;
    spec.head_dim = head_dim;
    spec.n_head = n_head;
    spec.n_kv = n_kv;
    spec.n_layer = 2;
    return spec;
}

static void engine_init(struct engine *e, struct tiny spec, enum kv_type type, size_t max_tokens)
{
    struct err err = {0};
    size_t size;

    e->file = tiny_file(&spec, &size);
    cr_assert_eq(model_open_memory(&e->model, e->file, size, NULL, &err), 0, "%s", err.msg);
    cr_assert_eq(pool_new(&e->pool, 2), 0);
    cr_assert_eq(forward_new(&e->forward, e->model, e->pool, N, &err), 0, "%s", err.msg);
    cr_assert_eq(kv_pool_new(&e->kv, e->model, type, max_tokens, &err), 0, "%s", err.msg);
}

static void engine_done(struct engine *e)
{
    kv_pool_free(e->kv);
    forward_free(e->forward);
    pool_free(e->pool);
    model_free(e->model);
    free(e->file);
}

static int32_t token_at(const struct engine *e, size_t i)
{
    return (int32_t)(tiny_random("tokens", i) % e->model->n_vocab);
}

static struct session *new_session(const struct engine *e)
{
    struct session *s;

    cr_assert_eq(session_new(&s, e->kv, 0), 0);
    return s;
}

/* Tokens from..to-1, in batches of `batch`; the last one's logits. */
static int feed(const struct engine *e, struct session *s, size_t from, size_t to, size_t batch, float *logits)
{
    struct forward_row rows[N];
    int r = 0;

    while (from < to && !r) {
        size_t n = 0;

        for (; n < batch && from < to; n++, from++)
            rows[n] = (struct forward_row){ .session = s, .token = token_at(e, from), .logits = from + 1 == to ? logits : NULL };
        r = forward_run(e->forward, rows, n);
    }
    return r;
}

static void expect_same(const struct engine *e, const float *a, const float *b, const char *what, enum kv_type type)
{
    cr_expect(!memcmp(a, b, e->model->n_vocab * sizeof(*a)), "%s, %s", what, names[type]);
}

static const struct { size_t head_dim, n_head, n_kv; } heads[] = { { 32, 4, 2 }, { 40, 3, 3 }, { 6, 5, 1 }, { 34, 9, 3 } };

Test(session, any_batch_across_pages)
{
    static const size_t batches[] = { 1, 3, 63, 64, 65 };

    for (size_t h = 0; h < ARRAY_SIZE(heads); h++)
        for (enum kv_type type = KV_F16; type <= KV_F32; type++) {
            float want[512], got[512];
            struct engine e;
            struct session *s;

            engine_init(&e, spec_of(heads[h].head_dim, heads[h].n_head, heads[h].n_kv), type, 0);
            s = new_session(&e);
            cr_assert_eq(feed(&e, s, 0, N, N, want), 0);
            for (size_t i = 0; i < ARRAY_SIZE(batches); i++) {
                session_reset(s, 0);
                cr_assert_eq(feed(&e, s, 0, N, batches[i], got), 0);
                expect_same(&e, want, got, "batches", type);
            }
            session_free(s);
            engine_done(&e);
        }
}

/* The types are near each other, and not the same. */
Test(session, types)
{
    float logits[3][512];
    double size = 0, off[3] = {0};

    for (enum kv_type type = KV_F16; type <= KV_F32; type++) {
        struct engine e;
        struct session *s;

        engine_init(&e, spec_of(32, 4, 2), type, 0);
        s = new_session(&e);
        cr_assert_eq(feed(&e, s, 0, N, N, logits[type]), 0);
        session_free(s);
        engine_done(&e);
    }
    for (size_t i = 0; i < spec_of(32, 4, 2).n_vocab; i++) {
        size += pow((double)logits[KV_F32][i], 2);
        for (enum kv_type type = KV_F16; type < KV_F32; type++)
            off[type] += pow((double)(logits[type][i] - logits[KV_F32][i]), 2);
    }
    for (enum kv_type type = KV_F16; type < KV_F32; type++) {
        printf("%s is %.2g off\n", names[type], sqrt(off[type] / size));
        cr_expect(off[type] > 0 && sqrt(off[type] / size) < 0.05, "%s", names[type]);
    }
}

Test(session, shares_and_forks)
{
    static const size_t forks[] = { 1, 63, 64, 65, 128, 130 };

    for (enum kv_type type = KV_F16; type <= KV_F32; type++) {
        float want[512], got[512], first[512];
        struct session *a, *b;
        struct engine e;

        engine_init(&e, spec_of(40, 3, 3), type, 0);
        a = new_session(&e);
        b = new_session(&e);
        cr_assert_eq(feed(&e, a, 0, N, N, want), 0);
        for (size_t i = 0; i < ARRAY_SIZE(forks); i++) {
            cr_assert_eq(session_adopt(b, a->pages, forks[i]), 0);
            cr_expect_eq(b->n, forks[i]);
            cr_expect_eq(b->pages[0], a->pages[0]);
            cr_assert_eq(feed(&e, b, forks[i], N, 7, got), 0);
            expect_same(&e, want, got, "after a fork", type);
            cr_expect_eq(b->pages[0] == a->pages[0], forks[i] >= 64, "a full page is shared, another is copied");
        }
        /* What b writes after a fork is nothing to a. */
        cr_assert_eq(session_adopt(b, a->pages, 70), 0);
        cr_assert_eq(feed(&e, b, 1000, 1100, 9, got), 0);
        session_reset(a, N - 1);
        cr_assert_eq(feed(&e, a, N - 1, N, 1, first), 0);
        expect_same(&e, want, first, "beside a fork", type);
        session_free(a);
        session_free(b);
        engine_done(&e);
    }
}

Test(session, forgets)
{
    static const size_t keeps[] = { 0, 1, 63, 64, 65, 127, 128, 129, N - 1, N };
    float want[512], got[512];
    struct engine e;
    struct session *s;
    size_t room;

    engine_init(&e, spec_of(32, 4, 2), KV_INT8, 4 * ATTEND_TOKENS);
    room = kv_pool_room(e.kv);
    cr_expect_eq(room, 4);
    s = new_session(&e);
    cr_assert_eq(feed(&e, s, 0, N, N, want), 0);
    cr_expect_eq(s->n_pages, 4);
    cr_expect_eq(kv_pool_room(e.kv), 0);
    for (size_t i = 0; i < ARRAY_SIZE(keeps); i++) {
        session_reset(s, keeps[i]);
        cr_expect_eq(s->n, keeps[i]);
        cr_expect_eq(kv_pool_room(e.kv), 4 - (keeps[i] + 63) / 64);
        if (keeps[i] < N - 1)
            cr_assert_eq(feed(&e, s, 2000, 2001, 3, got), 0);          /* a draft that was wrong */
        session_reset(s, keeps[i]);
        cr_assert_eq(feed(&e, s, keeps[i], N, 50, got), 0);
        if (keeps[i] < N)
            expect_same(&e, want, got, "after forgetting", KV_INT8);
    }
    session_free(s);
    cr_expect_eq(kv_pool_room(e.kv), 4);
    engine_done(&e);
}

/* A pool that is full changes nothing; what one session gives up another may have. */
Test(session, no_room)
{
    struct forward_row rows[2];
    struct session *a, *b, *c;
    struct engine e;
    float want[512], got[512];

    engine_init(&e, spec_of(32, 4, 2), KV_F16, 2 * ATTEND_TOKENS);
    a = new_session(&e);
    b = new_session(&e);
    c = new_session(&e);
    cr_assert_eq(feed(&e, a, 0, ATTEND_TOKENS, 64, want), 0);
    cr_assert_eq(feed(&e, b, 0, 3, 3, got), 0);
    cr_expect_eq(feed(&e, c, 0, 1, 1, got), -ENOBUFS);
    cr_expect_eq(c->n, 0);
    rows[0] = (struct forward_row){ .session = b, .token = 1 };
    rows[1] = (struct forward_row){ .session = a, .token = 1 };
    cr_expect_eq(forward_run(e.forward, rows, 2), -ENOBUFS);
    cr_expect(a->n == ATTEND_TOKENS && b->n == 3);
    /* A shared page that is not full needs one of its own to go on. */
    cr_assert_eq(session_adopt(c, b->pages, 2), 0);
    cr_expect_eq(feed(&e, c, 2, 3, 1, got), -ENOBUFS);
    cr_expect_eq(c->n, 2);
    session_reset(b, 0);
    cr_expect_eq(feed(&e, c, 2, 3, 1, got), 0);
    session_reset(c, 0);
    cr_expect_eq(feed(&e, b, 0, ATTEND_TOKENS, 5, got), 0);
    expect_same(&e, want, got, "in pages that others had", KV_F16);
    cr_expect_eq(session_adopt(c, b->pages, e.model->n_ctx + 1), -ENOSPC);
    session_free(a);
    session_free(b);
    session_free(c);
    cr_expect_eq(kv_pool_room(e.kv), 2);
    engine_done(&e);
}

/* In local layers the page before the window is not looked at: it may as well be another. */
Test(session, windows)
{
    for (enum kv_type type = KV_F16; type <= KV_F32; type++) {
        struct tiny spec = spec_of(32, 4, 2);
        float want[512], got[512];
        struct session *s;
        struct engine e;

        spec.architecture = "gemma3";
        spec.window = 70;
        engine_init(&e, spec, type, 0);
        s = new_session(&e);
        cr_assert_eq(feed(&e, s, 0, N, 1, want), 0);
        session_reset(s, 0);
        cr_assert_eq(feed(&e, s, 0, N, N, got), 0);
        expect_same(&e, want, got, "windows", type);
        session_free(s);
        engine_done(&e);
    }
}
