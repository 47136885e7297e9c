/* A bounded reader of GGUF v2 and v3 (ggml's docs/gguf.md):
 *
 *     "GGUF" | u32 version | u64 tensors | u64 keys | keys | tensor infos | padding | tensor data
 *
 * The file is hostile until checked. One cursor reads it; it never passes the end, and nothing is allocated for a count
 * that the bytes still to come could not hold. Everything is checked in gguf_open(), so that the getters cannot fail for
 * other reasons than a key's absence or type. Values stay in the file and are copied out unaligned. */
#include "engine/internal.h"

#include <errno.h>
#include <string.h>

#define MAX_TENSORS 4096
#define MAX_KEYS 65536
#define MAX_KEY_BYTES 65535
#define MAX_TENSOR_NAME 64
#define MIN_KEY_BYTES (8 + 1 + 4 + 1)                     /* length, one letter, type, one byte of value */
#define MIN_TENSOR_BYTES (8 + 1 + 4 + 8 + 4 + 8)
#define MIN_ALIGNMENT 8
#define MAX_ALIGNMENT 4096
#define NAME_ARGS(s) (int)MIN((s).len, 64), (s).data      /* of a "%.*s": names in errors stay short */

struct cursor { const uint8_t *data; size_t pos, size; };

struct key {
    struct gguf_string name;
    size_t at, bytes;           /* where in the file the key stands, its name first */
    uint32_t type, elem;        /* elem: of an array */
    uint64_t count;             /* of an array */
    const uint8_t *value;       /* the scalar, or the array's first element */
    struct gguf_string string;  /* of a string */
    size_t *starts;             /* of an array of strings: where each one's length stands, from value */
};

struct gguf {
    struct key *keys;           /* in order of name */
    struct gguf_tensor *tensors;        /* in the file's order */
    struct gguf_tensor **by_name;
    size_t n_keys, n_tensors;
};

/* Bytes of one value; 0: no fixed size. */
static size_t scalar_bytes(uint32_t type)
{
    static const uint8_t bytes[] = {
        [GGUF_U8] = 1, [GGUF_I8] = 1, [GGUF_BOOL] = 1, [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
        [GGUF_F32] = 4, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
    };

    return type < ARRAY_SIZE(bytes) ? bytes[type] : 0;
}

/* ---- the cursor ------------------------------------------------------------------------------------------------- */

static size_t remains(const struct cursor *c)
{
    return c->size - c->pos;
}

static int cut_short(const struct cursor *c, struct err *err)
{
    return err_set(err, -EINVAL, "GGUF: the file ends inside what begins at byte %zu", c->pos);
}

static int take(struct cursor *c, size_t n, const uint8_t **ret, struct err *err)
{
    if (n > remains(c))
        return cut_short(c, err);
    *ret = c->data + c->pos;
    c->pos += n;
    return 0;
}

static int take_u32(struct cursor *c, uint32_t *ret, struct err *err)
{
    const uint8_t *p = NULL;
    int r = take(c, sizeof(*ret), &p, err);

    if (!r)
        memcpy(ret, p, sizeof(*ret));
    return r;
}

static int take_u64(struct cursor *c, uint64_t *ret, struct err *err)
{
    const uint8_t *p = NULL;
    int r = take(c, sizeof(*ret), &p, err);

    if (!r)
        memcpy(ret, p, sizeof(*ret));
    return r;
}

static int take_string(struct cursor *c, struct gguf_string *ret, struct err *err)
{
    size_t begin = c->pos;
    const uint8_t *p = NULL;
    uint64_t len = 0;
    int r;

    r = take_u64(c, &len, err);
    if (r < 0)
        return r;
    if (len > remains(c))
        return err_set(err, -EINVAL, "GGUF: the string at byte %zu is longer than the file", begin);
    r = take(c, len, &p, err);
    if (r < 0)
        return r;
    *ret = (struct gguf_string){ (const char *)p, len };
    return 0;
}

static int take_name(struct cursor *c, size_t max, struct gguf_string *ret, struct err *err)
{
    size_t begin = c->pos;
    int r;

    r = take_string(c, ret, err);
    if (r < 0)
        return r;
    if (!ret->len || ret->len > max)
        return err_set(err, -EINVAL, "GGUF: the name at byte %zu has %zu bytes, allowed are 1 to %zu", begin, ret->len, max);
    if (memchr(ret->data, 0, ret->len))
        return err_set(err, -EINVAL, "GGUF: the name at byte %zu holds a NUL", begin);
    return 0;
}

/* ---- keys ------------------------------------------------------------------------------------------------------- */

static int take_string_array(struct cursor *c, struct key *k, struct err *err)
{
    if (k->count > remains(c) / sizeof(uint64_t))
        return err_set(err, -EINVAL, "GGUF: key %.*s at byte %zu: more strings than the file can hold", NAME_ARGS(k->name), k->at);
    k->value = c->data + c->pos;
    k->starts = calloc(MAX(k->count, 1), sizeof(*k->starts));
    if (!k->starts)
        return -ENOMEM;
    for (uint64_t i = 0; i < k->count; i++) {
        struct gguf_string s;
        int r;

        k->starts[i] = (size_t)(c->data + c->pos - k->value);
        r = take_string(c, &s, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static bool bools_valid(const uint8_t *p, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (p[i] > 1)
            return false;
    return true;
}

/* count values of a fixed size. */
static int take_scalars(struct cursor *c, struct key *k, uint32_t type, uint64_t count, struct err *err)
{
    size_t each = scalar_bytes(type), bytes;
    int r;

    if (!each)
        return err_set(err, -EINVAL, "GGUF: key %.*s at byte %zu: values of type %u", NAME_ARGS(k->name), k->at, type);
    if (!size_mul(&bytes, count, each) || bytes > remains(c))
        return err_set(err, -EINVAL, "GGUF: key %.*s at byte %zu: more values than the file can hold", NAME_ARGS(k->name), k->at);
    r = take(c, bytes, &k->value, err);
    if (r < 0)
        return r;
    if (type == GGUF_BOOL && !bools_valid(k->value, count))
        return err_set(err, -EINVAL, "GGUF: key %.*s at byte %zu: a bool that is neither 0 nor 1", NAME_ARGS(k->name), k->at);
    return 0;
}

static int take_key(struct cursor *c, struct key *k, struct err *err)
{
    int r;

    k->at = c->pos;
    r = take_name(c, MAX_KEY_BYTES, &k->name, err);
    if (r < 0)
        return r;
    r = take_u32(c, &k->type, err);
    if (r < 0)
        return r;
    if (k->type == GGUF_STRING)
        return take_string(c, &k->string, err);
    if (k->type != GGUF_ARRAY)
        return take_scalars(c, k, k->type, 1, err);

    r = take_u32(c, &k->elem, err);
    if (r < 0)
        return r;
    r = take_u64(c, &k->count, err);
    if (r < 0)
        return r;
    return k->elem == GGUF_STRING ? take_string_array(c, k, err) : take_scalars(c, k, k->elem, k->count, err);
}

static int compare_names(struct gguf_string a, struct gguf_string b)
{
    int r = memcmp(a.data, b.data, MIN(a.len, b.len));

    return r ? r : (a.len > b.len) - (a.len < b.len);
}

static int compare_keys(const void *a, const void *b)
{
    return compare_names(((const struct key *)a)->name, ((const struct key *)b)->name);
}

static int take_keys(struct gguf *g, struct cursor *c, uint64_t n, struct err *err)
{
    if (n > MAX_KEYS || n > remains(c) / MIN_KEY_BYTES)
        return err_set(err, -EINVAL, "GGUF: %llu keys, more than %s", (unsigned long long)n,
                       n > MAX_KEYS ? "65,536" : "the file can hold");
    g->keys = calloc(MAX(n, 1), sizeof(*g->keys));
    if (!g->keys)
        return -ENOMEM;
    for (g->n_keys = 0; g->n_keys < n;) {
        struct key *k = &g->keys[g->n_keys++];
        int r = take_key(c, k, err);

        if (r < 0)
            return r;
        k->bytes = c->pos - k->at;
    }
    qsort(g->keys, n, sizeof(*g->keys), compare_keys);
    for (size_t i = 1; i < n; i++)
        if (!compare_keys(&g->keys[i - 1], &g->keys[i]))
            return err_set(err, -EINVAL, "GGUF: key %.*s at byte %zu stands twice", NAME_ARGS(g->keys[i].name),
                           MAX(g->keys[i - 1].at, g->keys[i].at));
    return 0;
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

/* Bytes of a tensor: whole blocks along its rows; of ik_llama.cpp's types each row has a scale before them, I2_S has one
 * behind the whole. */
int gguf_tensor_bytes(const struct gguf_tensor *t, size_t *ret)
{
    static const struct { uint32_t type, block, bytes, row; } types[] = {
        { TENSOR_F32, 1, 4, 0 }, { TENSOR_F16, 1, 2, 0 }, { TENSOR_BF16, 1, 2, 0 }, { TENSOR_Q4_0, 32, 18, 0 },
        { TENSOR_Q5_0, 32, 22, 0 }, { TENSOR_Q8_0, Q8_0_BLOCK, Q8_0_BLOCK_BYTES, 0 }, { TENSOR_Q6_K, 256, 210, 0 },
        { TENSOR_TQ1_0, 256, 54, 0 }, { TENSOR_TQ2_0, 256, 66, 0 }, { TENSOR_I2_S, 1, 0, 0 },
        { TENSOR_IQ1_BN, 64, 13, 2 }, { TENSOR_IQ2_BN, 64, 16, 4 },
    };
    size_t n = 1, rows, bytes, i = 0;

    while (i < ARRAY_SIZE(types) && types[i].type != t->type)
        i++;
    if (i == ARRAY_SIZE(types))
        return -ENOTSUP;
    for (size_t d = 0; d < 4; d++)
        if (!t->dims[d] || !size_mul(&n, n, t->dims[d]))
            return -EDOM;
    if (t->type == TENSOR_I2_S) {
        if (n % 4)
            return -EDOM;
        *ret = n / 4 + 32;
        return 0;
    }
    rows = n / t->dims[0];
    if (t->dims[0] % types[i].block || !size_mul(&bytes, n / types[i].block, types[i].bytes) ||
        !size_mul(&rows, rows, types[i].row) || !size_add(ret, bytes, rows))
        return -EDOM;
    return 0;
}

/* Fills all but data, which stays an offset until the data section's begin is known. */
static int take_tensor(struct cursor *c, struct gguf_tensor *t, uint64_t *ret_offset, struct err *err)
{
    size_t at = c->pos;
    int r;

    r = take_name(c, MAX_TENSOR_NAME, &t->name, err);
    if (r < 0)
        return r;
    r = take_u32(c, &t->n_dims, err);
    if (r < 0)
        return r;
    if (t->n_dims < 1 || t->n_dims > 4)
        return err_set(err, -EINVAL, "GGUF: tensor %.*s at byte %zu has %u dimensions, allowed are 1 to 4", NAME_ARGS(t->name), at,
                       t->n_dims);
    for (size_t d = 0; d < 4; d++) {
        t->dims[d] = 1;
        r = d < t->n_dims ? take_u64(c, &t->dims[d], err) : 0;
        if (r < 0)
            return r;
    }
    r = take_u32(c, &t->type, err);
    if (r < 0)
        return r;
    r = take_u64(c, ret_offset, err);
    if (r < 0)
        return r;

    r = gguf_tensor_bytes(t, &t->bytes);
    if (r == -ENOTSUP && (t->type == TENSOR_TL1 || t->type == TENSOR_TL2))
        return err_set(err, -EINVAL, "GGUF: tensor %.*s at byte %zu is of type TL%u (%u), whose order of bytes depends on how its "
                       "writer was built; convert the original model to I2_S, TQ2_0 or safetensors instead",
                       NAME_ARGS(t->name), at, t->type - TENSOR_TL1 + 1, t->type);
    if (r == -ENOTSUP)
        return err_set(err, -EINVAL, "GGUF: tensor %.*s at byte %zu is of type %u; read are F32, F16, BF16, Q4_0, Q5_0, Q6_K, Q8_0, "
                       "TQ1_0, TQ2_0, I2_S, IQ1_BN and IQ2_BN", NAME_ARGS(t->name), at, t->type);
    if (r < 0)
        return err_set(err, -EINVAL, "GGUF: tensor %.*s at byte %zu has a shape its type cannot have", NAME_ARGS(t->name), at);
    return 0;
}

static int take_alignment(const struct gguf *g, size_t *ret, struct err *err)
{
    uint64_t a = 32;
    int r;

    r = gguf_get_u64(g, "general.alignment", &a, err);
    if (r < 0)
        return r;
    if (a < MIN_ALIGNMENT || a > MAX_ALIGNMENT || a & (a - 1))
        return err_set(err, -EINVAL, "GGUF: general.alignment is not a power of two from 8 to 4096");
    *ret = a;
    return 0;
}

/* Turn an offset into the data section into a pointer, when all of the tensor is inside the file. */
static int place_tensor(struct gguf_tensor *t, uint64_t offset, size_t alignment, size_t data_start, const struct cursor *c,
                        struct err *err)
{
    size_t begin, end;

    if (offset % alignment)
        return err_set(err, -EINVAL, "GGUF: tensor %.*s: its offset %llu is not aligned to %zu", NAME_ARGS(t->name),
                       (unsigned long long)offset, alignment);
    if (!size_add(&begin, data_start, offset) || !size_add(&end, begin, t->bytes) || end > c->size)
        return err_set(err, -EINVAL, "GGUF: tensor %.*s reaches past the end of the file at byte %zu", NAME_ARGS(t->name), c->size);
    t->data = c->data + begin;
    return 0;
}

static int compare_tensor_names(const void *a, const void *b)
{
    return compare_names((*(struct gguf_tensor *const *)a)->name, (*(struct gguf_tensor *const *)b)->name);
}

static int compare_tensor_places(const void *a, const void *b)
{
    const struct gguf_tensor *ta = *(struct gguf_tensor *const *)a, *tb = *(struct gguf_tensor *const *)b;

    return (ta->data > tb->data) - (ta->data < tb->data);
}

static int check_tensors(struct gguf *g, const struct cursor *c, struct err *err)
{
    struct gguf_tensor **sorted = g->by_name;

    for (size_t i = 0; i < g->n_tensors; i++)
        sorted[i] = &g->tensors[i];
    qsort(sorted, g->n_tensors, sizeof(*sorted), compare_tensor_places);
    for (size_t i = 1; i < g->n_tensors; i++)
        if ((size_t)(sorted[i]->data - sorted[i - 1]->data) < sorted[i - 1]->bytes)
            return err_set(err, -EINVAL, "GGUF: tensor %.*s at byte %zu overlaps %.*s", NAME_ARGS(sorted[i]->name),
                           (size_t)(sorted[i]->data - c->data), NAME_ARGS(sorted[i - 1]->name));

    qsort(sorted, g->n_tensors, sizeof(*sorted), compare_tensor_names);
    for (size_t i = 1; i < g->n_tensors; i++)
        if (!compare_tensor_names(&sorted[i - 1], &sorted[i]))
            return err_set(err, -EINVAL, "GGUF: tensor %.*s stands twice", NAME_ARGS(sorted[i]->name));
    return 0;
}

static int take_tensors(struct gguf *g, struct cursor *c, uint64_t n, struct err *err)
{
    cleanup(freep) uint64_t *offsets = NULL;
    size_t alignment = 0, data_start;
    int r;

    r = take_alignment(g, &alignment, err);
    if (r < 0)
        return r;
    /* The header's reader checked n against the file. */
    g->tensors = calloc(MAX(n, 1), sizeof(*g->tensors));
    g->by_name = calloc(MAX(n, 1), sizeof(*g->by_name));
    offsets = calloc(MAX(n, 1), sizeof(*offsets));
    if (!g->tensors || !g->by_name || !offsets)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++) {
        r = take_tensor(c, &g->tensors[i], &offsets[i], err);
        if (r < 0)
            return r;
    }
    if (!size_add(&data_start, c->pos, alignment - 1))
        return cut_short(c, err);
    data_start &= ~(alignment - 1);
    for (size_t i = 0; i < n; i++) {
        r = place_tensor(&g->tensors[i], offsets[i], alignment, data_start, c, err);
        if (r < 0)
            return r;
    }
    g->n_tensors = n;
    return check_tensors(g, c, err);
}

/* ---- the file --------------------------------------------------------------------------------------------------- */

static int take_header(struct cursor *c, uint64_t *ret_tensors, uint64_t *ret_keys, struct err *err)
{
    const uint8_t *magic = NULL;
    uint32_t version = 0;
    int r;

    r = take(c, 4, &magic, err);
    if (r < 0)
        return r;
    if (memcmp(magic, "GGUF", 4))
        return err_set(err, -EINVAL, "not a GGUF file");
    r = take_u32(c, &version, err);
    if (r < 0)
        return r;
    if (version != 2 && version != 3)
        return err_set(err, -EINVAL, "GGUF: version %u; read are little-endian 2 and 3", version);
    r = take_u64(c, ret_tensors, err);
    if (r < 0)
        return r;
    r = take_u64(c, ret_keys, err);
    if (r < 0)
        return r;
    if (*ret_tensors > MAX_TENSORS || *ret_tensors > remains(c) / MIN_TENSOR_BYTES)
        return err_set(err, -EINVAL, "GGUF: %llu tensors, more than %s", (unsigned long long)*ret_tensors,
                       *ret_tensors > MAX_TENSORS ? "4,096" : "the file can hold");
    return 0;
}

int gguf_open(struct gguf **ret, const void *data, size_t size, struct err *err)
{
    cleanup(gguf_freep) struct gguf *g = NULL;
    struct cursor c = { .data = data, .size = size };
    uint64_t n_tensors, n_keys;
    int r;

    r = take_header(&c, &n_tensors, &n_keys, err);
    if (r < 0)
        return r;
    g = calloc(1, sizeof(*g));
    if (!g)
        return -ENOMEM;
    r = take_keys(g, &c, n_keys, err);
    if (r < 0)
        return r;
    r = take_tensors(g, &c, n_tensors, err);
    if (r < 0)
        return r;

    *ret = TAKE(g);
    return 0;
}

void gguf_free(struct gguf *g)
{
    if (!g)
        return;
    for (size_t i = 0; i < g->n_keys; i++)
        free(g->keys[i].starts);
    free(g->keys);
    free(g->tensors);
    free(g->by_name);
    free(g);
}

/* ---- reading it ------------------------------------------------------------------------------------------------- */

static const struct key *find_key(const struct gguf *g, const char *name)
{
    const struct key want = { .name = { name, strlen(name) } };

    return bsearch(&want, g->keys, g->n_keys, sizeof(want), compare_keys);
}

static int wrong_type(const struct key *k, const char *wanted, struct err *err)
{
    return err_set(err, -EINVAL, "GGUF: key %.*s at byte %zu is not %s", NAME_ARGS(k->name), k->at, wanted);
}

/* A number at p; integers of up to 53 bits, which is all a count here may have, pass a double unharmed. */
static double number_at(uint32_t type, const uint8_t *p)
{
    union { uint8_t u8; int8_t i8; uint16_t u16; int16_t i16; uint32_t u32; int32_t i32; float f32; uint64_t u64; int64_t i64;
            double f64; } v;

    memcpy(&v, p, scalar_bytes(type));
    switch (type) {
    case GGUF_U8: case GGUF_BOOL: return v.u8;
    case GGUF_I8: return v.i8;
    case GGUF_U16: return v.u16;
    case GGUF_I16: return v.i16;
    case GGUF_U32: return v.u32;
    case GGUF_I32: return v.i32;
    case GGUF_F32: return v.f32;
    case GGUF_U64: return (double)v.u64;
    case GGUF_I64: return (double)v.i64;
    default: return v.f64;
    }
}

int gguf_get_u64(const struct gguf *g, const char *key, uint64_t *ret, struct err *err)
{
    const struct key *k = find_key(g, key);
    double v;

    if (!k)
        return 0;
    switch (k->type) {
    case GGUF_U64: case GGUF_I64: {
        uint64_t u;

        memcpy(&u, k->value, sizeof(u));
        if (k->type == GGUF_I64 && u >> 63)
            return wrong_type(k, "a number from 0 up", err);
        *ret = u;
        return 1;
    }
    case GGUF_U8: case GGUF_I8: case GGUF_U16: case GGUF_I16: case GGUF_U32: case GGUF_I32:
        v = number_at(k->type, k->value);
        if (v < 0)
            return wrong_type(k, "a number from 0 up", err);
        *ret = (uint64_t)v;
        return 1;
    default:
        return wrong_type(k, "an integer", err);
    }
}

int gguf_get_double(const struct gguf *g, const char *key, double *ret, struct err *err)
{
    const struct key *k = find_key(g, key);

    if (!k)
        return 0;
    if (k->type != GGUF_F32 && k->type != GGUF_F64)
        return wrong_type(k, "a float", err);
    *ret = number_at(k->type, k->value);
    return 1;
}

int gguf_get_bool(const struct gguf *g, const char *key, bool *ret, struct err *err)
{
    const struct key *k = find_key(g, key);

    if (!k)
        return 0;
    if (k->type != GGUF_BOOL)
        return wrong_type(k, "a bool", err);
    *ret = *k->value;
    return 1;
}

int gguf_get_string(const struct gguf *g, const char *key, struct gguf_string *ret, struct err *err)
{
    const struct key *k = find_key(g, key);

    if (!k)
        return 0;
    if (k->type != GGUF_STRING)
        return wrong_type(k, "a string", err);
    *ret = k->string;
    return 1;
}

int gguf_get_array(const struct gguf *g, const char *key, enum gguf_type elem, uint64_t *ret_count, struct err *err)
{
    const struct key *k = find_key(g, key);

    if (!k)
        return 0;
    if (k->type != GGUF_ARRAY || k->elem != elem)
        return wrong_type(k, "an array of the right type", err);
    *ret_count = k->count;
    return 1;
}

struct gguf_string gguf_array_string(const struct gguf *g, const char *key, uint64_t index)
{
    const struct key *k = find_key(g, key);
    const uint8_t *p = k->value + k->starts[index];
    uint64_t len;

    memcpy(&len, p, sizeof(len));
    return (struct gguf_string){ (const char *)p + sizeof(len), len };
}

double gguf_array_number(const struct gguf *g, const char *key, uint64_t index)
{
    const struct key *k = find_key(g, key);

    return number_at(k->elem, k->value + index * scalar_bytes(k->elem));
}

struct gguf_string gguf_key_at(const struct gguf *g, size_t i, struct gguf_string *ret_name)
{
    const struct key *k = i < g->n_keys ? &g->keys[i] : NULL;

    if (!k)
        return (struct gguf_string){0};
    *ret_name = k->name;
    return (struct gguf_string){ k->name.data - sizeof(uint64_t), k->bytes };       /* its length stands before it */
}

const struct gguf_tensor *gguf_tensor(const struct gguf *g, const char *name)
{
    const struct gguf_tensor want = { .name = { name, strlen(name) } }, *p = &want;
    struct gguf_tensor **found = bsearch(&p, g->by_name, g->n_tensors, sizeof(*g->by_name), compare_tensor_names);

    return found ? *found : NULL;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, size_t i)
{
    return i < g->n_tensors ? &g->tensors[i] : NULL;
}
