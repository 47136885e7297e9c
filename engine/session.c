/* A session is what the model remembers of one conversation: a list of pages (kv.c), one for each ATTEND_TOKENS tokens.
 * A page that someone else holds too is only read; it is copied when a token is to be written to it. */
#include "engine/internal.h"

#include <errno.h>

int session_new(struct session **ret, struct kv_pool *kv, size_t n_ctx)
{
    size_t most = kv_pool_model(kv)->n_ctx;
    struct session *s = calloc(1, sizeof(*s));

    if (!s)
        return -ENOMEM;
    s->kv = kv;
    s->n_ctx = n_ctx && n_ctx < most ? n_ctx : most;
    s->pages = calloc((s->n_ctx + ATTEND_TOKENS - 1) / ATTEND_TOKENS, sizeof(struct kv_page *));
    if (!s->pages) {
        free(s);
        return -ENOMEM;
    }
    *ret = s;
    return 0;
}

void session_free(struct session *s)
{
    if (!s)
        return;
    session_reset(s, 0);
    free(s->pages);
    free(s);
}

void session_reset(struct session *s, size_t keep)
{
    s->n = MIN(s->n, keep);
    while (s->n_pages > (s->n + ATTEND_TOKENS - 1) / ATTEND_TOKENS)
        kv_page_unref(s->kv, s->pages[--s->n_pages]);
}

int session_adopt(struct session *s, struct kv_page *const pages[], size_t n)
{
    if (n > s->n_ctx)
        return -ENOSPC;
    session_reset(s, 0);
    for (; s->n_pages * ATTEND_TOKENS < n; s->n_pages++)
        s->pages[s->n_pages] = kv_page_ref(pages[s->n_pages]);
    s->n = n;
    return 0;
}

int session_grow(struct session *s)
{
    int r;

    if (s->n == s->n_ctx)
        return -ENOSPC;
    if (s->n < s->n_pages * ATTEND_TOKENS)
        r = kv_page_own(&s->pages[s->n_pages - 1], s->kv);
    else {
        r = kv_page_new(&s->pages[s->n_pages], s->kv);
        s->n_pages += r == 0;
    }
    s->n += r == 0;
    return r;
}
