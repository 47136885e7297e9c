/* Keys and values in pages: a page holds ATTEND_TOKENS tokens of one timeline, for all layers and key heads.
 *
 * In a page follows head on head, layer on layer, each a block as the kernels take it (kernels.h): keys, values and, of
 * KV_INT8, what one step of each token's keys is worth, then of its values. Blocks begin at multiples of 64 bytes.
 * Pages are mapped when the first token of their span comes and unmapped when nobody holds them any more; a few are
 * kept for the next one that asks. */
#include "engine/internal.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>

#define KEPT_BYTES (32u << 20)          /* of pages that nobody holds */

struct kv_page {
    unsigned refs;
    uint8_t *data;
    struct kv_page *next;               /* among the kept ones */
};

struct kv_pool {
    const struct model *model;
    const struct kernels *kernels;
    enum kv_type type;
    size_t keys_bytes, values_bytes, block_bytes, page_bytes;
    size_t n_pages, max_pages;          /* held by someone; 0: as many as there is memory for */
    struct kv_page *kept;
    size_t n_kept;
};

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

int kv_pool_new(struct kv_pool **ret, const struct model *m, enum kv_type type, size_t max_tokens, struct err *err)
{
    static const size_t sizes[] = { [KV_F32] = sizeof(float), [KV_F16] = sizeof(uint16_t), [KV_INT8] = 1 };
    const struct kernels *kernels = kernels_get(err);
    struct kv_pool *kv;
    size_t d = m->head_dim;

    if (!kernels)
        return -EINVAL;
    kv = calloc(1, sizeof(*kv));
    if (!kv)
        return -ENOMEM;
    kv->model = m;
    kv->kernels = kernels;
    kv->type = type;
    kv->keys_bytes = ATTEND_TOKENS * (type == KV_INT8 ? round_up(d, 4) : d) * sizes[type];
    kv->values_bytes = ATTEND_TOKENS * d * sizes[type];
    kv->block_bytes = kv->keys_bytes + kv->values_bytes + (type == KV_INT8 ? 2 * ATTEND_TOKENS * sizeof(float) : 0);
    kv->page_bytes = kv->block_bytes * m->n_layer * m->n_kv;
    kv->max_pages = (max_tokens + ATTEND_TOKENS - 1) / ATTEND_TOKENS;
    *ret = kv;
    return 0;
}

static void page_free(const struct kv_pool *kv, struct kv_page *page)
{
    munmap(page->data, kv->page_bytes);
    free(page);
}

void kv_pool_free(struct kv_pool *kv)
{
    if (!kv)
        return;
    while (kv->kept) {
        struct kv_page *page = kv->kept;

        kv->kept = page->next;
        page_free(kv, page);
    }
    free(kv);
}

enum kv_type kv_pool_type(const struct kv_pool *kv)
{
    return kv->type;
}

const struct model *kv_pool_model(const struct kv_pool *kv)
{
    return kv->model;
}

size_t kv_pool_room(const struct kv_pool *kv)
{
    return kv->max_pages ? kv->max_pages - kv->n_pages : SIZE_MAX;
}

size_t kv_pool_page_bytes(const struct kv_pool *kv)
{
    return kv->page_bytes;
}

int kv_page_new(struct kv_page **ret, struct kv_pool *kv)
{
    struct kv_page *page = kv->kept;

    if (!kv_pool_room(kv))
        return -ENOBUFS;
    if (page) {
        kv->kept = page->next;
        kv->n_kept--;
    } else {
        page = calloc(1, sizeof(*page));
        if (!page)
            return -ENOMEM;
        page->data = mmap(NULL, kv->page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page->data == MAP_FAILED) {
            free(page);
            return -ENOMEM;
        }
    }
    page->refs = 1;
    kv->n_pages++;
    *ret = page;
    return 0;
}

struct kv_page *kv_page_ref(struct kv_page *page)
{
    page->refs++;
    return page;
}

void kv_page_unref(struct kv_pool *kv, struct kv_page *page)
{
    if (!page || --page->refs)
        return;
    kv->n_pages--;
    if ((kv->n_kept + 1) * kv->page_bytes > KEPT_BYTES) {
        page_free(kv, page);
        return;
    }
    page->next = kv->kept;
    kv->kept = page;
    kv->n_kept++;
}

int kv_page_own(struct kv_page **page, struct kv_pool *kv)
{
    struct kv_page *own;
    int r;

    if ((*page)->refs == 1)
        return 0;
    r = kv_page_new(&own, kv);
    if (r < 0)
        return r;
    memcpy(own->data, (*page)->data, kv->page_bytes);
    kv_page_unref(kv, *page);
    *page = own;
    return 0;
}

struct kv_block kv_block(const struct kv_pool *kv, const struct kv_page *page, size_t layer, size_t head)
{
    uint8_t *at = page->data + (layer * kv->model->n_kv + head) * kv->block_bytes;
    float *units = (float *)(void *)(at + kv->keys_bytes + kv->values_bytes);

    return (struct kv_block){ .k = at, .v = at + kv->keys_bytes, .k_units = units, .v_units = units + ATTEND_TOKENS };
}

/* ---- writing a token -------------------------------------------------------------------------------------------- */

static void put_f32(const struct kv_block *b, size_t t, const float *k, const float *v, size_t d)
{
    float *keys = b->k, *values = b->v;

    for (size_t i = 0; i < d; i++)
        keys[i * ATTEND_TOKENS + t] = k[i];
    memcpy(values + t * d, v, d * sizeof(*v));
}

static void put_f16(const struct kernels *kernels, const struct kv_block *b, size_t t, const float *k, const float *v,
                    size_t d)
{
    uint16_t *keys = b->k, *values = b->v, halves[128];

    for (size_t i = 0; i < d; i += ARRAY_SIZE(halves)) {
        size_t n = MIN(d - i, ARRAY_SIZE(halves));

        kernels->to_f16(halves, k + i, n);
        for (size_t c = 0; c < n; c++)
            keys[(i + c) * ATTEND_TOKENS + t] = halves[c];
    }
    kernels->to_f16(values + t * d, v, d);
}

/* Symmetric, by the largest magnitude. Returns what one step is worth; of what is too small for a scale, 0. */
static float to_int8(int8_t *q, const float *x, size_t n)
{
    float most = 0, scale;

    for (size_t i = 0; i < n; i++)
        most = fmaxf(most, fabsf(x[i]));
    if (!(most >= 1e-30f)) {
        memset(q, 0, n);
        return 0;
    }
    scale = 127 / most;
    for (size_t i = 0; i < n; i++)
        q[i] = (int8_t)fminf(fmaxf(rintf(x[i] * scale), -127), 127);
    return most / 127;
}

static void put_int8(const struct kv_block *b, size_t t, const float *k, const float *v, size_t d)
{
    int8_t *keys = b->k, *values = b->v, q[MAX_HEAD_DIM + 3];

    b->k_units[t] = to_int8(q, k, d);
    memset(q + d, 0, 3);
    for (size_t i = 0; i < d; i += 4)
        memcpy(keys + (i * ATTEND_TOKENS + 4 * t), q + i, 4);
    b->v_units[t] = to_int8(q, v, d);
    for (size_t i = 0; i < d; i++)
        values[(t / 4 * d + i) * 4 + t % 4] = q[i];
}

void kv_block_put(const struct kv_pool *kv, const struct kv_block *b, size_t t, const float *k, const float *v)
{
    size_t d = kv->model->head_dim;

    switch (kv->type) {
    case KV_F32: put_f32(b, t, k, v, d); break;
    case KV_F16: put_f16(kv->kernels, b, t, k, v, d); break;
    case KV_INT8: put_int8(b, t, k, v, d); break;
    }
}
