/* From a GGUF file to a struct model: which graph it is, its sizes, and each tensor checked, named and brought into the
 * one shape forward.c computes with.
 *
 * A model is either computed exactly or refused. Ternary tensors become layout A (kernels.h): I2_S already is when its
 * rows are whole blocks and is then used where it lies in the mapping, else it is packed anew; TQ2_0 is packed anew, and
 * only when all its block scales are one number, which is what W1.58A8 has. Tensors that the graph does not use are
 * refused too: they would be biases or norms that change the answer. */
#include "engine/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <openssl/evp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include "base/arena.h"

#define MAX_LAYERS 1024
#define MAX_WIDTH (1u << 20)            /* of any matrix, as the kernels allow */
#define TQ2_0_BLOCK 256
#define TQ2_0_BLOCK_BYTES 66
#define MEMORY_ALIGNMENT 8

struct model_map {
    void *mapping;                      /* NULL: the data is borrowed */
    size_t bytes;
    struct arena copies;                /* layers, norms, repacked tensors */
};

struct loader {
    struct model *m;
    const uint8_t *file;
    const struct gguf *g;
    bool *used;                         /* one a tensor */
    struct err *err;
};

/* The graphs, and what they have that the file does not say (bitnet.md 1.9). */
static const struct graph { const char *name; enum ffn_act act; bool sub_norms, rope_half; } graphs[] = {
    { "bitnet-b1.58", ACT_RELU2, true,  true  },
    { "bitnet-25",    ACT_RELU2, true,  true  },
    { "bitnet",       ACT_SILU,  true,  true  },
    { "llama",        ACT_SILU,  false, false },
};

/* ---- keys ------------------------------------------------------------------------------------------------------- */

static bool string_is(struct gguf_string s, const char *want)
{
    return s.len == strlen(want) && !memcmp(s.data, want, s.len);
}

static int find_graph(struct loader *l, const struct graph **ret)
{
    struct gguf_string arch = {0};
    int r;

    r = gguf_get_string(l->g, "general.architecture", &arch, l->err);
    if (r < 0)
        return r;
    if (!r)
        return err_set(l->err, -EINVAL, "the model does not say general.architecture");
    for (size_t i = 0; i < ARRAY_SIZE(graphs); i++)
        if (string_is(arch, graphs[i].name)) {
            *ret = &graphs[i];
            snprintf(l->m->architecture, sizeof(l->m->architecture), "%s", graphs[i].name);
            return 0;
        }
    return err_set(l->err, -EINVAL, "general.architecture %.*s; run are bitnet-b1.58, bitnet-25, bitnet and llama",
                   (int)MIN(arch.len, 64), arch.data);
}

static void key_of(const struct loader *l, char key[96], const char *suffix)
{
    snprintf(key, 96, "%s.%s", l->m->architecture, suffix);
}

/* An integer from min to max into *ret; absent: what *ret holds, when that is in range. */
static int read_size(struct loader *l, const char *suffix, uint64_t min, uint64_t max, size_t *ret)
{
    uint64_t v = *ret;
    char key[96];
    int r;

    key_of(l, key, suffix);
    r = gguf_get_u64(l->g, key, &v, l->err);
    if (r < 0)
        return r;
    if (v < min || v > max)
        return err_set(l->err, -EINVAL, "%s is %s; allowed are %llu to %llu", key, r ? "out of range" : "missing",
                       (unsigned long long)min, (unsigned long long)max);
    *ret = v;
    return 0;
}

static int read_float(struct loader *l, const char *suffix, double min, double max, float *ret)
{
    double v = *ret;
    char key[96];
    int r;

    key_of(l, key, suffix);
    r = gguf_get_double(l->g, key, &v, l->err);
    if (r < 0)
        return r;
    if (!(v >= min && v <= max))
        return err_set(l->err, -EINVAL, "%s is %s; allowed are %g to %g", key, r ? "out of range" : "missing", min, max);
    *ret = (float)v;
    return 0;
}

static int refuse_rope_scaling(struct loader *l)
{
    struct gguf_string type;
    char key[96];
    int r;

    key_of(l, key, "rope.scaling.type");
    r = gguf_get_string(l->g, key, &type, l->err);
    if (r > 0 && !string_is(type, "none"))
        return err_set(l->err, -EINVAL, "%s is %.*s; only none is computed", key, (int)MIN(type.len, 64), type.data);
    return MIN(r, 0);
}

static int read_sizes(struct loader *l)
{
    struct model *m = l->m;
    size_t value_dim;
    int r;

    if ((r = read_size(l, "context_length", 1, MAX_WIDTH, &m->n_ctx)) < 0 ||
        (r = read_size(l, "embedding_length", 1, MAX_WIDTH, &m->n_embd)) < 0 ||
        (r = read_size(l, "block_count", 1, MAX_LAYERS, &m->n_layer)) < 0 ||
        (r = read_size(l, "feed_forward_length", 1, MAX_WIDTH, &m->n_ff)) < 0 ||
        (r = read_size(l, "attention.head_count", 1, 4096, &m->n_head)) < 0)
        return r;
    m->n_kv = m->n_head;
    m->head_dim = m->n_embd / m->n_head;
    if ((r = read_size(l, "attention.head_count_kv", 1, m->n_head, &m->n_kv)) < 0 ||
        (r = read_size(l, "attention.key_length", 2, 4096, &m->head_dim)) < 0)
        return r;
    value_dim = m->rope_dim = m->head_dim;
    if ((r = read_size(l, "attention.value_length", m->head_dim, m->head_dim, &value_dim)) < 0 ||
        (r = read_size(l, "rope.dimension_count", 2, m->head_dim, &m->rope_dim)) < 0)
        return r;
    m->rope_base = 10000;
    m->rms_eps = -1;
    if ((r = read_float(l, "rope.freq_base", 1, 1e12, &m->rope_base)) < 0 ||
        (r = read_float(l, "attention.layer_norm_rms_epsilon", 1e-20, 1, &m->rms_eps)) < 0 ||
        (r = refuse_rope_scaling(l)) < 0)
        return r;
    if (m->n_head % m->n_kv || m->rope_dim % 2 || m->n_head * m->head_dim > MAX_WIDTH)
        return err_set(l->err, -EINVAL, "%s: %zu heads, %zu key heads, %zu wide, %zu turned: not a shape attention can have",
                       m->architecture, m->n_head, m->n_kv, m->head_dim, m->rope_dim);
    return 0;
}

/* bitnet-b1.58 is also written for 1bitLLM's models, which use SiLU and a SentencePiece vocabulary; no key says so. */
static int read_activation(struct loader *l, const struct graph *graph)
{
    struct gguf_string vocabulary = {0};
    int r;

    l->m->act = graph->act;
    r = gguf_get_string(l->g, "tokenizer.ggml.model", &vocabulary, l->err);
    if (r > 0 && !strcmp(graph->name, "bitnet-b1.58") && string_is(vocabulary, "llama"))
        l->m->act = ACT_SILU;
    return MIN(r, 0);
}

/* The name goes into headers and logs: no spaces, nothing but ASCII. */
static int read_name(struct loader *l)
{
    struct gguf_string name = {0};
    size_t n;
    int r;

    r = gguf_get_string(l->g, "general.name", &name, l->err);
    if (r < 0)
        return r;
    if (!name.len)
        name = (struct gguf_string){ l->m->architecture, strlen(l->m->architecture) };
    n = MIN(name.len, sizeof(l->m->name) - 1);
    for (size_t i = 0; i < n; i++)
        l->m->name[i] = name.data[i] > ' ' && name.data[i] < 0x7f ? name.data[i] : '-';
    return 0;
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

static int refuse(struct loader *l, const struct gguf_tensor *t, const char *fmt, ...) PRINTF_LIKE(3, 4);
static int refuse(struct loader *l, const struct gguf_tensor *t, const char *fmt, ...)
{
    char why[160];
    va_list args;

    va_start(args, fmt);
    vsnprintf(why, sizeof(why), fmt, args);
    va_end(args);
    return err_set(l->err, -EINVAL, "tensor %.*s: %s", (int)MIN(t->name.len, 64), t->name.data, why);
}

static int refuse_missing(struct loader *l, const char *name)
{
    return err_set(l->err, -EINVAL, "tensor %s is missing", name);
}

/* The tensor of this name with cols * rows elements (rows 1: a vector), or NULL where there is none. */
static int take_tensor(struct loader *l, const char *name, size_t cols, size_t rows, const struct gguf_tensor **ret)
{
    const struct gguf_tensor *t = gguf_tensor(l->g, name);

    *ret = t;
    if (!t)
        return 0;
    if (t->dims[0] != cols || t->dims[1] != rows || t->n_dims > 2)
        return refuse(l, t, "is %llu x %llu where the keys make it %zu x %zu", (unsigned long long)t->dims[0],
                      (unsigned long long)t->dims[1], cols, rows);
    l->used[t - gguf_tensor_at(l->g, 0)] = true;
    return 0;
}

static int take_needed(struct loader *l, const char *name, size_t cols, size_t rows, const struct gguf_tensor **ret)
{
    int r = take_tensor(l, name, cols, rows, ret);

    return !r && !*ret ? refuse_missing(l, name) : r;
}

static void *copy_room(struct loader *l, size_t n, size_t each)
{
    size_t bytes;

    return size_mul(&bytes, n, each) ? arena_alloc(&l->m->map->copies, bytes) : NULL;
}

static float float_at(const struct gguf_tensor *t, size_t i)
{
    uint16_t h;
    float f;

    if (t->type == TENSOR_F32) {
        memcpy(&f, t->data + 4 * i, sizeof(f));
        return f;
    }
    memcpy(&h, t->data + 2 * i, sizeof(h));
    return t->type == TENSOR_F16 ? f16_to_f32(h) : bf16_to_f32(h);
}

static bool is_float(const struct gguf_tensor *t)
{
    return t->type == TENSOR_F32 || t->type == TENSOR_F16 || t->type == TENSOR_BF16;
}

/* A copy of a float tensor as f32, every element finite. */
static int copy_floats(struct loader *l, const struct gguf_tensor *t, size_t n, const float **ret)
{
    float *copy;

    if (!is_float(t))
        return refuse(l, t, "is not of floats");
    copy = copy_room(l, n, sizeof(*copy));
    if (!copy)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++) {
        copy[i] = float_at(t, i);
        if (!isfinite(copy[i]))
            return refuse(l, t, "element %zu is not finite", i);
    }
    *ret = copy;
    return 0;
}

static int load_vector(struct loader *l, const char *name, size_t n, const float **ret)
{
    const struct gguf_tensor *t;
    int r;

    r = take_needed(l, name, n, 1, &t);
    return r < 0 ? r : copy_floats(l, t, n, ret);
}

/* The element of the first f16 whose exponent says infinity or NaN, of n that stand `stride` bytes apart; n: none. */
static size_t find_endless_half(const uint8_t *p, size_t n, size_t stride)
{
    size_t i = 0;

    for (; i < n; i++) {
        uint16_t h;

        memcpy(&h, p + i * stride, sizeof(h));
        if ((h & 0x7c00) == 0x7c00)
            break;
    }
    return i;
}

static int load_dense(struct loader *l, const struct gguf_tensor *t, struct dense *ret)
{
    size_t n = t->dims[0] * t->dims[1], at;

    *ret = (struct dense){ .w = t->data, .type = t->type, .rows = t->dims[1], .cols = t->dims[0] };
    switch (t->type) {
    case TENSOR_F16:
        at = find_endless_half(t->data, n, 2);
        return at < n ? refuse(l, t, "element %zu is not finite", at) : 0;
    case TENSOR_Q8_0:
        n /= Q8_0_BLOCK;
        at = find_endless_half(t->data, n, Q8_0_BLOCK_BYTES);
        return at < n ? refuse(l, t, "the scale of block %zu is not finite", at) : 0;
    case TENSOR_F32:
        for (at = 0; at < n; at++)
            if (!isfinite(float_at(t, at)))
                return refuse(l, t, "element %zu is not finite", at);
        return 0;
    case TENSOR_BF16: {
        const float *copy;
        int r = copy_floats(l, t, n, &copy);

        ret->w = copy;
        ret->type = TENSOR_F32;
        return r;
    }
    default:
        return refuse(l, t, "is of type %u; read here are F32, F16, BF16 and Q8_0", t->type);
    }
}

/* ---- ternary tensors -------------------------------------------------------------------------------------------- */

static bool has_code_3(const uint8_t *p, size_t n, size_t *ret_at)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] & p[i] >> 1 & 0x55) {
            *ret_at = i;
            return true;
        }
    return false;
}

static int check_codes(struct loader *l, const struct gguf_tensor *t, const uint8_t *p, size_t n)
{
    size_t at;

    if (has_code_3(p, n, &at))
        return refuse(l, t, "code 3 at byte %zu of the file", (size_t)(p - l->file) + at);
    return 0;
}

static int check_scale(struct loader *l, const struct gguf_tensor *t, const uint8_t *p, float scale)
{
    if (!isfinite(scale) || !(scale > 0))
        return refuse(l, t, "the scale at byte %zu of the file is not a finite positive number", (size_t)(p - l->file));
    return 0;
}

/* Trit e of a tensor that lies in blocks of 128 (I2_S) whatever its rows. */
static int8_t i2s_trit(const uint8_t *p, size_t e)
{
    size_t in_block = e % TERNARY_BLOCK;

    return (int8_t)((p[e / TERNARY_BLOCK * 32 + in_block % 32] >> (6 - in_block / 32 * 2) & 3) - 1);
}

/* Trit e of a tensor in TQ2_0's blocks: bits 2l of byte 32h + m hold element 128h + 32l + m. */
static int8_t tq2_0_trit(const uint8_t *p, size_t e)
{
    const uint8_t *block = p + e / TQ2_0_BLOCK * TQ2_0_BLOCK_BYTES;
    size_t i = e % TQ2_0_BLOCK;

    return (int8_t)((block[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3) - 1);
}

static int repack(struct loader *l, const struct gguf_tensor *t, int8_t (*trit)(const uint8_t *, size_t), struct ternary *w)
{
    cleanup(freep) int8_t *row = malloc(w->cols);
    uint8_t *out = copy_room(l, w->rows, w->padded / 4);

    if (!row || !out)
        return -ENOMEM;
    for (size_t r = 0; r < w->rows; r++) {
        for (size_t c = 0; c < w->cols; c++)
            row[c] = trit(t->data, r * w->cols + c);
        ternary_pack(out + r * (w->padded / 4), row, 1, w->cols);
    }
    w->w = out;
    return 0;
}

static int load_i2s(struct loader *l, const struct gguf_tensor *t, struct ternary *w)
{
    size_t bytes = w->rows * w->cols / 4;
    int r;

    /* The order inside a last half block is told nowhere. */
    if (w->rows * w->cols % TERNARY_BLOCK)
        return refuse(l, t, "is I2_S with %zu elements, not a multiple of %d", w->rows * w->cols, TERNARY_BLOCK);
    memcpy(&w->scale, t->data + bytes, sizeof(w->scale));
    r = check_scale(l, t, t->data + bytes, w->scale);
    if (r < 0)
        return r;
    r = check_codes(l, t, t->data, bytes);
    if (r < 0)
        return r;
    if (w->cols % TERNARY_BLOCK)
        return repack(l, t, i2s_trit, w);
    w->w = t->data;
    return 0;
}

static int load_tq2_0(struct loader *l, const struct gguf_tensor *t, struct ternary *w)
{
    size_t n_blocks = t->bytes / TQ2_0_BLOCK_BYTES;
    uint16_t first, half;
    int r;

    memcpy(&first, t->data + 64, sizeof(first));
    w->scale = f16_to_f32(first);
    r = check_scale(l, t, t->data + 64, w->scale);
    if (r < 0)
        return r;
    for (size_t b = 0; b < n_blocks; b++) {
        const uint8_t *block = t->data + b * TQ2_0_BLOCK_BYTES;

        memcpy(&half, block + 64, sizeof(half));
        if (half != first)
            return refuse(l, t, "block %zu has the scale %g, block 0 has %g: one scale a tensor is what is computed exactly",
                          b, (double)f16_to_f32(half), (double)w->scale);
        r = check_codes(l, t, block, 64);
        if (r < 0)
            return r;
    }
    return repack(l, t, tq2_0_trit, w);
}

/* blk.N.<name>.weight, and what blk.N.<name>.scale multiplies onto it where there is one. */
static int load_ternary(struct loader *l, size_t layer, const char *name, size_t cols, size_t rows, struct ternary *w)
{
    const struct gguf_tensor *t, *scale;
    const float *factor;
    char full[64];
    int r;

    snprintf(full, sizeof(full), "blk.%zu.%s.weight", layer, name);
    r = take_needed(l, full, cols, rows, &t);
    if (r < 0)
        return r;
    *w = (struct ternary){ .rows = rows, .cols = cols, .padded = (cols + TERNARY_BLOCK - 1) / TERNARY_BLOCK * TERNARY_BLOCK };
    if (t->type != TENSOR_I2_S && t->type != TENSOR_TQ2_0)
        return refuse(l, t, "is of type %u; ternary weights are read from I2_S and TQ2_0", t->type);
    r = t->type == TENSOR_I2_S ? load_i2s(l, t, w) : load_tq2_0(l, t, w);
    if (r < 0)
        return r;

    snprintf(full, sizeof(full), "blk.%zu.%s.scale", layer, name);
    r = take_tensor(l, full, 1, 1, &scale);
    if (r < 0 || !scale)
        return r;
    r = copy_floats(l, scale, 1, &factor);
    if (r < 0)
        return r;
    w->scale *= *factor;
    return check_scale(l, scale, scale->data, w->scale);
}

static int load_norm(struct loader *l, size_t layer, const char *name, size_t n, const float **ret)
{
    char full[64];

    snprintf(full, sizeof(full), "blk.%zu.%s.weight", layer, name);
    return load_vector(l, full, n, ret);
}

static int load_layer(struct loader *l, size_t i, const struct graph *graph)
{
    const struct model *m = l->m;
    struct model_layer *y = &l->m->layers[i];
    size_t attn = m->n_head * m->head_dim, kv = m->n_kv * m->head_dim;
    int r;

    if ((r = load_norm(l, i, "attn_norm", m->n_embd, &y->attn_norm)) < 0 ||
        (r = load_norm(l, i, "ffn_norm", m->n_embd, &y->ffn_norm)) < 0 ||
        (r = load_ternary(l, i, "attn_q", m->n_embd, attn, &y->q)) < 0 ||
        (r = load_ternary(l, i, "attn_k", m->n_embd, kv, &y->k)) < 0 ||
        (r = load_ternary(l, i, "attn_v", m->n_embd, kv, &y->v)) < 0 ||
        (r = load_ternary(l, i, "attn_output", attn, m->n_embd, &y->o)) < 0 ||
        (r = load_ternary(l, i, "ffn_gate", m->n_embd, m->n_ff, &y->gate)) < 0 ||
        (r = load_ternary(l, i, "ffn_up", m->n_embd, m->n_ff, &y->up)) < 0 ||
        (r = load_ternary(l, i, "ffn_down", m->n_ff, m->n_embd, &y->down)) < 0)
        return r;
    if (!graph->sub_norms)
        return 0;
    r = load_norm(l, i, "attn_sub_norm", attn, &y->attn_sub_norm);
    return r < 0 ? r : load_norm(l, i, "ffn_sub_norm", m->n_ff, &y->ffn_sub_norm);
}

static int load_ends(struct loader *l)
{
    const struct gguf_tensor *t = gguf_tensor(l->g, "token_embd.weight");
    struct model *m = l->m;
    int r;

    m->n_vocab = tokenizer_size(m->tokenizer);
    if (!t)
        return refuse_missing(l, "token_embd.weight");
    r = take_tensor(l, "token_embd.weight", m->n_embd, m->n_vocab, &t);
    if (r < 0)
        return r;
    r = load_dense(l, t, &m->embd);
    if (r < 0)
        return r;
    r = take_tensor(l, "output.weight", m->n_embd, m->n_vocab, &t);
    if (r < 0)
        return r;
    m->head = m->embd;
    if (t && (r = load_dense(l, t, &m->head)) < 0)
        return r;
    r = load_vector(l, "output_norm.weight", m->n_embd, &m->output_norm);
    if (r < 0)
        return r;

    r = take_tensor(l, "rope_freqs.weight", m->rope_dim / 2, 1, &t);
    if (r < 0 || !t)
        return r;
    r = copy_floats(l, t, m->rope_dim / 2, &m->rope_freqs);
    for (size_t j = 0; !r && j < m->rope_dim / 2; j++)
        if (!(m->rope_freqs[j] > 0))
            r = refuse(l, t, "element %zu is not positive", j);
    return r;
}

static int refuse_unused(struct loader *l)
{
    const struct gguf_tensor *t;

    for (size_t i = 0; (t = gguf_tensor_at(l->g, i)); i++)
        if (!l->used[i])
            return refuse(l, t, "is no part of the %s graph", l->m->architecture);
    return 0;
}

/* ---- the file --------------------------------------------------------------------------------------------------- */

static int digest_of(struct model *m, const void *data, size_t size)
{
    static const char prefix[] = "sha256:";
    uint8_t sum[EVP_MAX_MD_SIZE];
    unsigned n;

    if (!EVP_Digest(data, size, sum, &n, EVP_sha256(), NULL))
        return -ENOMEM;
    memcpy(m->digest, prefix, sizeof(prefix));
    for (unsigned i = 0; i < n; i++)
        snprintf(m->digest + sizeof(prefix) - 1 + 2 * (size_t)i, 3, "%02x", sum[i]);
    return 0;
}

static size_t count_tensors(const struct gguf *g)
{
    size_t n = 0;

    while (gguf_tensor_at(g, n))
        n++;
    return n;
}

static int load(struct model *m, const void *data, size_t size, struct err *err)
{
    cleanup(gguf_freep) struct gguf *g = NULL;
    cleanup(freep) bool *used = NULL;
    const struct graph *graph = NULL;
    struct loader l;
    int r;

    if ((uintptr_t)data % MEMORY_ALIGNMENT)
        return err_set(err, -EINVAL, "a model in memory must begin at a multiple of %d", MEMORY_ALIGNMENT);
    r = gguf_open(&g, data, size, err);
    if (r < 0)
        return r;
    used = calloc(count_tensors(g) + 1, sizeof(*used));
    if (!used)
        return -ENOMEM;

    l = (struct loader){ .m = m, .file = data, .g = g, .used = used, .err = err };
    m->file_bytes = size;
    if ((r = find_graph(&l, &graph)) < 0 || (r = read_sizes(&l)) < 0 || (r = read_activation(&l, graph)) < 0 ||
        (r = read_name(&l)) < 0 || (r = tokenizer_new(&m->tokenizer, g, err)) < 0 || (r = load_ends(&l)) < 0)
        return r;
    m->rope_half = graph->rope_half;
    m->template = template_choose(m->tokenizer, m->architecture);

    m->layers = copy_room(&l, m->n_layer, sizeof(*m->layers));
    if (!m->layers)
        return -ENOMEM;
    for (size_t i = 0; i < m->n_layer; i++) {
        r = load_layer(&l, i, graph);
        if (r < 0)
            return r;
    }
    r = refuse_unused(&l);
    return r < 0 ? r : digest_of(m, data, size);
}

static int map_file(struct model_map *map, const char *path, struct err *err)
{
    cleanup(closep) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);      /* NONBLOCK: a FIFO must not hold us */
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0)
        return err_set(err, -errno, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode) || !st.st_size)
        return err_set(err, -EINVAL, "%s: %s", path, S_ISREG(st.st_mode) ? "is empty" : "is not a file");
    map->bytes = (size_t)st.st_size;
    map->mapping = mmap(NULL, map->bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (map->mapping == MAP_FAILED) {
        map->mapping = NULL;
        return err_set(err, -errno, "%s: %s", path, strerror(errno));
    }
    return 0;
}

/* path NULL: data. */
static int model_new(struct model **ret, const char *path, const void *data, size_t size, struct err *err)
{
    cleanup(model_freep) struct model *m = calloc(1, sizeof(*m));
    int r;

    if (!m)
        return -ENOMEM;
    m->map = calloc(1, sizeof(*m->map));
    if (!m->map)
        return -ENOMEM;
    arena_init(&m->map->copies);
    if (path) {
        r = map_file(m->map, path, err);
        if (r < 0)
            return r;
        data = m->map->mapping;
        size = m->map->bytes;
    }
    r = load(m, data, size, err);
    if (r < 0)
        return r;
    *ret = TAKE(m);
    return 0;
}

int model_open(struct model **ret, const char *path, struct err *err)
{
    return model_new(ret, path, NULL, 0, err);
}

int model_open_memory(struct model **ret, const void *data, size_t size, struct err *err)
{
    return model_new(ret, NULL, data, size, err);
}

void model_free(struct model *m)
{
    if (!m)
        return;
    tokenizer_free(m->tokenizer);
    if (m->map) {
        arena_done(&m->map->copies);
        if (m->map->mapping)
            munmap(m->map->mapping, m->map->bytes);
        free(m->map);
    }
    free(m);
}
