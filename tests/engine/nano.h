/* The shipped model in a test's own process. */
#pragma once

#include <criterion/criterion.h>

#include "engine/internal.h"

#define BATCH 64

struct nano {
    struct model *model;
    struct pool *pool;
    struct kv_pool *kv;
    struct forward *forward;
    struct session *session;
    float *logits;
};

static inline void nano_init(struct nano *n)
{
    struct err err = {0};
    char path[4096];

    snprintf(path, sizeof(path), "%s/models/tern-nano.gguf", getenv("TERN_SOURCE") ?: ".");
    cr_assert_eq(model_open(&n->model, path, NULL, &err), 0, "%s", err.msg);
    cr_assert_eq(pool_new(&n->pool, 1), 0);
    cr_assert_eq(forward_new(&n->forward, n->model, n->pool, BATCH, &err), 0, "%s", err.msg);
    cr_assert_eq(kv_pool_new(&n->kv, n->model, KV_F32, 0, &err), 0, "%s", err.msg);
    cr_assert_eq(session_new(&n->session, n->kv, 0), 0);
    n->logits = malloc(n->model->n_vocab * sizeof(float));
}

static inline void nano_done(struct nano *n)
{
    free(n->logits);
    session_free(n->session);
    kv_pool_free(n->kv);
    forward_free(n->forward);
    pool_free(n->pool);
    model_free(n->model);
}

/* The logits are those behind the last token. */
static inline void nano_feed(struct nano *n, const int32_t *ids, size_t len)
{
    for (size_t i = 0; i < len;) {
        struct forward_row rows[BATCH];
        size_t b = 0;

        for (; b < BATCH && i < len; b++, i++)
            rows[b] = (struct forward_row){ .session = n->session, .token = ids[i],
                                            .logits = i + 1 == len ? n->logits : NULL };
        cr_assert_eq(forward_run(n->forward, rows, b), 0);
    }
}
