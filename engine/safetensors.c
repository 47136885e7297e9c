/* A bounded reader of one safetensors file:
 *
 *     u64 header bytes | JSON {"name": {"dtype": "BF16", "shape": [..], "data_offsets": [begin, end]}, ..} | data
 *
 * Offsets count from the data's begin. As the format asks, the tensors cover the data: sorted by place each begins
 * where the one before ended. Source: huggingface/safetensors, README.md, "Format". */
#include "engine/container.h"

#include <errno.h>
#include <string.h>

#define MAX_HEADER (100u << 20)
#define MIN_HEADER 2
/* "%.*s" of a name as the file spells it; names in errors stay short. */
#define NAME_ARGS(v) (int)MIN((v).len - 2, 96), (v).s + 1

struct header {
    const struct source_file *file;
    const uint8_t *data;            /* behind the header */
    size_t bytes;                   /* of data */
    struct err *err;
};

static const struct { const char *name; uint8_t bytes; } types[] = {
    [SAFETENSOR_F32] = { "F32", 4 }, [SAFETENSOR_F16] = { "F16", 2 }, [SAFETENSOR_BF16] = { "BF16", 2 },
    [SAFETENSOR_U8] = { "U8", 1 },
};

static int refuse(const struct header *h, const struct safetensor *t, const char *why)
{
    return err_set(h->err, -EINVAL, "%s: tensor %.*s: %s", h->file->name, NAME_ARGS(t->name), why);
}

static int read_type(const struct header *h, struct safetensor *t, struct json_view entry)
{
    struct json_view v;

    if (json_view_get(entry, "dtype", &v, NULL) == 1)
        for (size_t i = 0; i < ARRAY_SIZE(types); i++)
            if (json_view_is(v, types[i].name)) {
                t->type = (enum safetensor_type)i;
                return 0;
            }
    return refuse(h, t, "its dtype is none of F32, F16, BF16 and U8");
}

static int read_shape(const struct header *h, struct safetensor *t, struct json_view entry)
{
    size_t n = types[t->type].bytes;
    struct json_view v;

    if (json_view_get(entry, "shape", &v, NULL) != 1 || json_view_kind(v) != '[')
        return refuse(h, t, "has no shape");
    for (size_t d = 0; d < 4; d++)
        t->dims[d] = 1;
    for (struct json_walk w = json_walk(v); json_walk_next(&w); t->n_dims++) {
        if (t->n_dims == 4)
            return refuse(h, t, "has more than four dimensions");
        if (!json_view_u64(w.value, &t->dims[t->n_dims]) || !t->dims[t->n_dims])
            return refuse(h, t, "a dimension is no number from 1 up");
        if (!size_mul(&n, n, t->dims[t->n_dims]))
            return refuse(h, t, "its shape is larger than any file");
    }
    t->bytes = n;
    return 0;
}

static int read_place(const struct header *h, struct safetensor *t, struct json_view entry)
{
    uint64_t at[2];
    struct json_view v;
    size_t n = 0;

    if (json_view_get(entry, "data_offsets", &v, NULL) != 1 || json_view_count(v) != 2)
        return refuse(h, t, "data_offsets are not two numbers");
    for (struct json_walk w = json_walk(v); json_walk_next(&w);)
        if (!json_view_u64(w.value, &at[n++]))
            return refuse(h, t, "data_offsets are not two numbers");
    if (at[0] > at[1] || at[1] > h->bytes)
        return refuse(h, t, "data_offsets reach past the end of the file");
    if (at[1] - at[0] != t->bytes)
        return refuse(h, t, "data_offsets and shape disagree");
    t->data = h->data + at[0];
    return 0;
}

static int compare_places(const void *a, const void *b)
{
    const struct safetensor *x = a, *y = b;

    return (x->data > y->data) - (x->data < y->data);
}

static int check_cover(const struct header *h, const struct safetensor *t, size_t n)
{
    const uint8_t *end = h->data;

    for (size_t i = 0; i < n; i++) {
        if (t[i].data != end)
            return refuse(h, &t[i], t[i].data < end ? "overlaps another" : "has a gap before it");
        end += t[i].bytes;
    }
    if (end != h->data + h->bytes)
        return err_set(h->err, -EINVAL, "%s: %zu bytes behind the last tensor", h->file->name,
                       (size_t)(h->data + h->bytes - end));
    return 0;
}

int safetensors_read(struct safetensor **ret, size_t *ret_n, const struct source_file *f, struct err *err)
{
    struct header h = { .file = f, .err = err };
    cleanup(freep) struct safetensor *tensors = NULL;
    struct json_view json;
    uint64_t bytes = 0;
    size_t n = 0;
    int r;

    if (f->size >= sizeof(bytes))
        memcpy(&bytes, f->data, sizeof(bytes));
    if (bytes < MIN_HEADER || bytes > MAX_HEADER || bytes > f->size - sizeof(bytes))
        return err_set(err, -EINVAL, "%s: not a safetensors file: a header of %llu bytes", f->name,
                       (unsigned long long)bytes);
    r = json_view_open(&json, f->data + sizeof(bytes), bytes, f->name, err);
    if (r < 0)
        return r;
    if (json_view_kind(json) != '{')
        return err_set(err, -EINVAL, "%s: the header is no object", f->name);
    n = json_view_count(json);
    if (n > MAX_SOURCE_TENSORS + 1)
        return err_set(err, -EINVAL, "%s: %zu tensors, more than 4,096", f->name, n);

    h.data = f->data + sizeof(bytes) + bytes;
    h.bytes = f->size - sizeof(bytes) - bytes;
    tensors = calloc(n + 1, sizeof(*tensors));
    if (!tensors)
        return -ENOMEM;
    n = 0;
    for (struct json_walk w = json_walk(json); json_walk_next(&w);) {
        struct safetensor *t = &tensors[n];

        if (json_view_is(w.key, "__metadata__"))
            continue;
        t->name = w.key;
        if ((r = read_type(&h, t, w.value)) < 0 || (r = read_shape(&h, t, w.value)) < 0 ||
            (r = read_place(&h, t, w.value)) < 0)
            return r;
        n++;
    }
    qsort(tensors, n, sizeof(*tensors), compare_places);
    r = check_cover(&h, tensors, n);
    if (r < 0)
        return r;
    *ret = TAKE(tensors);
    *ret_n = n;
    return 0;
}
