/* A session is what the model remembers of one conversation: the keys and values of every token so far, one cache a
 * layer. The memory is the kernel's zero pages until a token is written to it. */
#include "engine/internal.h"

#include <errno.h>

int session_new(struct session **ret, const struct model *m, size_t n_ctx)
{
    struct session *s;
    size_t floats;

    n_ctx = n_ctx && n_ctx < m->n_ctx ? n_ctx : m->n_ctx;
    if (!size_mul(&floats, m->n_layer * n_ctx, m->n_kv * m->head_dim))
        return -ENOMEM;
    s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->model = m;
    s->n_ctx = n_ctx;
    s->k = calloc(floats, sizeof(*s->k));
    s->v = calloc(floats, sizeof(*s->v));
    if (!s->k || !s->v) {
        session_free(s);
        return -ENOMEM;
    }
    *ret = s;
    return 0;
}

void session_free(struct session *s)
{
    if (!s)
        return;
    free(s->k);
    free(s->v);
    free(s);
}

void session_reset(struct session *s, size_t keep)
{
    s->n = MIN(s->n, keep);
}
