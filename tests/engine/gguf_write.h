/* A small writer of GGUF v3 files in memory, and tiny random models made with it. Out of memory ends the test. */
#pragma once

#include <stdio.h>
#include <string.h>
#include "base/buf.h"
#include "engine/internal.h"

struct gguf_writer {
    struct buf keys, infos, data;
    uint64_t n_keys, n_tensors;
    size_t alignment;
};

static inline void put(struct buf *b, const void *p, size_t n)
{
    if (buf_append(b, p, n) < 0)
        abort();
}
static inline void put_u32(struct buf *b, uint32_t v) { put(b, &v, sizeof(v)); }
static inline void put_u64(struct buf *b, uint64_t v) { put(b, &v, sizeof(v)); }
static inline void put_string(struct buf *b, const char *s)
{
    put_u64(b, strlen(s));
    put(b, s, strlen(s));
}

static inline void writer_init(struct gguf_writer *w)
{
    *w = (struct gguf_writer){ .alignment = 32 };
    buf_init(&w->keys, 1 << 24);
    buf_init(&w->infos, 1 << 24);
    buf_init(&w->data, 1 << 28);
}

static inline void writer_done(struct gguf_writer *w)
{
    buf_done(&w->keys);
    buf_done(&w->infos);
    buf_done(&w->data);
}

/* The head of a key; its value is put behind. */
static inline struct buf *write_key(struct gguf_writer *w, const char *key, enum gguf_type type)
{
    put_string(&w->keys, key);
    put_u32(&w->keys, type);
    w->n_keys++;
    return &w->keys;
}
static inline void write_u32(struct gguf_writer *w, const char *key, uint32_t v) { put_u32(write_key(w, key, GGUF_U32), v); }
static inline void write_f32(struct gguf_writer *w, const char *key, float v) { put(write_key(w, key, GGUF_F32), &v, sizeof(v)); }
static inline void write_bool(struct gguf_writer *w, const char *key, bool v) { put(write_key(w, key, GGUF_BOOL), &(uint8_t){ v }, 1); }
static inline void write_string(struct gguf_writer *w, const char *key, const char *v) { put_string(write_key(w, key, GGUF_STRING), v); }
static inline struct buf *write_array(struct gguf_writer *w, const char *key, enum gguf_type elem, uint64_t n)
{
    struct buf *b = write_key(w, key, GGUF_ARRAY);

    put_u32(b, elem);
    put_u64(b, n);
    return b;
}

static inline void write_tensor(struct gguf_writer *w, const char *name, uint64_t cols, uint64_t rows, uint32_t type,
                                const void *data, size_t bytes)
{
    static const uint8_t zeros[4096];

    put(&w->data, zeros, -w->data.len % w->alignment);
    put_string(&w->infos, name);
    put_u32(&w->infos, rows > 1 ? 2 : 1);
    put_u64(&w->infos, cols);
    if (rows > 1)
        put_u64(&w->infos, rows);
    put_u32(&w->infos, type);
    put_u64(&w->infos, w->data.len);
    put(&w->data, data, bytes);
    w->n_tensors++;
}

/* The whole file, malloc'd, exactly *ret_size bytes long. */
static inline uint8_t *writer_file(const struct gguf_writer *w, size_t *ret_size)
{
    static const uint8_t zeros[4096];
    struct buf b;
    uint8_t *copy;

    buf_init(&b, 1 << 28);
    put(&b, "GGUF", 4);
    put_u32(&b, 3);
    put_u64(&b, w->n_tensors);
    put_u64(&b, w->n_keys);
    put(&b, w->keys.data, w->keys.len);
    put(&b, w->infos.data, w->infos.len);
    put(&b, zeros, -b.len % w->alignment);
    put(&b, w->data.data, w->data.len);
    copy = malloc(b.len);
    if (!copy)
        abort();
    memcpy(copy, b.data, b.len);
    *ret_size = b.len;
    buf_done(&b);
    return copy;
}

/* ---- tiny models ------------------------------------------------------------------------------------------------ */

struct tiny {
    const char *architecture, *vocabulary;       /* "gpt2" or "llama" */
    size_t n_embd, n_ff, n_layer, n_head, n_kv, head_dim, n_vocab, n_ctx;
    enum tensor_type ternary, dense, norm;       /* norm: F32 or F16 */
    bool scale_tensors;                          /* half of each scale in a .scale tensor */
    bool head;                                   /* an output.weight beside token_embd, equal to it */
    bool norms_in, sub_norms;                    /* each projection's own norm; sub-norms where the graph does not need them */
    uint32_t window, kv_bits;                    /* 0: the keys are not written */
    const char *quant, *hadamard, *norm_kind;    /* tern.quant.* of all inputs; inputs of tern.hadamard.*; tern.norm */
    uint32_t pooling;
    const char *leave_out;                       /* a tensor not to write, or NULL */
    const char *extra;                           /* a tensor that does not belong, or NULL */
};

#define TINY (struct tiny){ .architecture = "bitnet-b1.58", .vocabulary = "gpt2", .n_embd = 256, .n_ff = 512, .n_layer = 2, \
    .n_head = 4, .n_kv = 2, .head_dim = 64, .n_vocab = 300, .n_ctx = 96, .ternary = TENSOR_I2_S, .dense = TENSOR_F16, .norm = TENSOR_F32 }

/* Numbers that depend on the tensor's name and the element only, so that two types of one tensor hold the same. */
static inline uint64_t tiny_seed(const char *name)               /* FNV-1a */
{
    uint64_t h = 0xcbf29ce484222325;

    for (; *name; name++)
        h = (h ^ (uint8_t)*name) * 0x100000001b3;
    return h;
}

static inline uint64_t tiny_random_of(uint64_t seed, uint64_t i) /* splitmix64 */
{
    uint64_t z = seed + i * 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static inline uint64_t tiny_random(const char *name, uint64_t i)
{
    return tiny_random_of(tiny_seed(name), i);
}

static inline float tiny_float(const char *name, uint64_t i)     /* -1..1, exact in F16 */
{
    return (float)((int)(tiny_random(name, i) % 255) - 127) / 128;
}

static inline float tiny_gain(const char *name, uint64_t i)      /* 0.5..1.5, exact in F16 */
{
    return (float)(512 + tiny_random(name, i) % 1024) / 1024;
}

static inline void tiny_ternary(struct gguf_writer *w, const struct tiny *spec, const char *stem, size_t cols, size_t rows)
{
    float scale = 0.0625f, factor = 0.5f;
    struct buf b;
    uint64_t seed;
    char name[96];
    int8_t block[256];

    snprintf(name, sizeof(name), "%s.weight", stem);
    if (spec->leave_out && !strcmp(spec->leave_out, name))
        return;
    if (spec->scale_tensors)
        scale /= factor;
    seed = tiny_seed(name);
    buf_init(&b, 1 << 26);
    /* One flat stream of elements in either type: blocks of 128 may straddle rows. */
    for (size_t e = 0; e < rows * cols; e += spec->ternary == TENSOR_I2_S ? 128 : 256) {
        uint8_t packed[66] = {0};

        for (size_t i = 0; i < sizeof(block); i++)
            block[i] = (int8_t)(tiny_random_of(seed, e + i) % 3) - 1;
        if (spec->ternary == TENSOR_I2_S) {
            ternary_pack(packed, block, 1, 128);
            put(&b, packed, 32);
            continue;
        }
        for (size_t i = 0; i < 256; i++)
            packed[i / 128 * 32 + i % 32] |= (block[i] + 1) << (i % 128 / 32 * 2);
        memcpy(packed + 64, &(uint16_t){ f32_to_f16(scale) }, 2);
        put(&b, packed, 66);
    }
    if (spec->ternary == TENSOR_I2_S) {
        put(&b, &scale, sizeof(scale));
        put(&b, (uint8_t[28]){0}, 28);
    }
    write_tensor(w, name, cols, rows, spec->ternary, b.data, b.len);
    buf_done(&b);
    if (spec->scale_tensors) {
        snprintf(name, sizeof(name), "%s.scale", stem);
        write_tensor(w, name, 1, 1, TENSOR_F32, &factor, sizeof(factor));
    }
}

static inline void tiny_dense(struct gguf_writer *w, const char *name, const char *seed, enum tensor_type type, size_t cols,
                              size_t rows)
{
    struct buf b;

    buf_init(&b, 1 << 26);
    for (size_t i = 0; i < rows * cols; i++) {
        union { float f; uint32_t u; } v = { .f = tiny_float(seed, i) };

        if (type == TENSOR_Q8_0 && i % 32 == 0)
            put(&b, &(uint16_t){ f32_to_f16(1.0f / 128) }, 2);
        if (type == TENSOR_Q8_0)
            put(&b, &(int8_t){ (int8_t)(v.f * 128) }, 1);
        else if (type == TENSOR_F16)
            put(&b, &(uint16_t){ f32_to_f16(v.f) }, 2);
        else if (type == TENSOR_BF16)
            put(&b, &(uint16_t){ (uint16_t)(v.u >> 16) }, 2);
        else
            put(&b, &v.f, 4);
    }
    write_tensor(w, name, cols, rows, type, b.data, b.len);
    buf_done(&b);
}

static inline void tiny_norm(struct gguf_writer *w, const struct tiny *spec, const char *name, size_t n)
{
    size_t each = spec->norm == TENSOR_F32 ? 4 : 2;
    struct buf b;

    buf_init(&b, 1 << 20);
    for (size_t i = 0; i < n; i++) {
        float gain = tiny_gain(name, i);
        uint16_t half = f32_to_f16(gain);

        put(&b, each == 4 ? (void *)&gain : (void *)&half, each);
    }
    if (!spec->leave_out || strcmp(spec->leave_out, name))
        write_tensor(w, name, n, 1, spec->norm, b.data, b.len);
    buf_done(&b);
}

static inline void tiny_layer(struct gguf_writer *w, const struct tiny *spec, size_t i)
{
    size_t attn = spec->n_head * spec->head_dim, kv = spec->n_kv * spec->head_dim;
    const struct { const char *name; size_t cols, rows; } matrices[] = {
        { "attn_q", spec->n_embd, attn }, { "attn_k", spec->n_embd, kv }, { "attn_v", spec->n_embd, kv },
        { "attn_output", attn, spec->n_embd }, { "ffn_gate", spec->n_embd, spec->n_ff }, { "ffn_up", spec->n_embd, spec->n_ff },
        { "ffn_down", spec->n_ff, spec->n_embd },
    };
    bool bitnet = !strncmp(spec->architecture, "bitnet", 6), gemma = !strcmp(spec->architecture, "gemma3");
    bool qk = gemma || !strcmp(spec->architecture, "qwen3");
    const struct { const char *name; size_t n; bool written; } norms[] = {
        { "attn_norm", spec->n_embd, true }, { "ffn_norm", spec->n_embd, true },
        { "attn_sub_norm", attn, bitnet || spec->sub_norms }, { "ffn_sub_norm", spec->n_ff, bitnet || spec->sub_norms },
        { "attn_q_norm", spec->head_dim, qk }, { "attn_k_norm", spec->head_dim, qk },
        { "post_attention_norm", spec->n_embd, gemma }, { "post_ffw_norm", spec->n_embd, gemma },
    };
    char name[64];

    for (size_t k = 0; k < ARRAY_SIZE(matrices); k++) {
        snprintf(name, sizeof(name), "blk.%zu.%s", i, matrices[k].name);
        tiny_ternary(w, spec, name, matrices[k].cols, matrices[k].rows);
        snprintf(name, sizeof(name), "blk.%zu.%s_norm_in.weight", i, matrices[k].name);
        if (spec->norms_in)
            tiny_norm(w, spec, name, matrices[k].cols);
    }
    for (size_t k = 0; k < ARRAY_SIZE(norms); k++) {
        snprintf(name, sizeof(name), "blk.%zu.%s.weight", i, norms[k].name);
        if (norms[k].written)
            tiny_norm(w, spec, name, norms[k].n);
    }
}

/* Tokens are their number's hexadecimal digits; no merges. */
static inline void tiny_vocabulary(struct gguf_writer *w, const struct tiny *spec)
{
    struct buf *b;
    char token[32];

    write_string(w, "tokenizer.ggml.model", spec->vocabulary);
    b = write_array(w, "tokenizer.ggml.tokens", GGUF_STRING, spec->n_vocab);
    for (size_t i = 0; i < spec->n_vocab; i++) {
        snprintf(token, sizeof(token), "%zx", i);
        put_string(b, token);
    }
    b = write_array(w, "tokenizer.ggml.token_type", GGUF_I32, spec->n_vocab);
    for (size_t i = 0; i < spec->n_vocab; i++)
        put_u32(b, 1);
    b = write_array(w, "tokenizer.ggml.scores", GGUF_F32, spec->n_vocab);
    for (size_t i = 0; i < spec->n_vocab; i++)
        put(b, &(float){ 0 }, sizeof(float));
    write_array(w, "tokenizer.ggml.merges", GGUF_STRING, 0);
    write_string(w, "tokenizer.ggml.pre", "llama-bpe");
}

static inline void tiny_variant(struct gguf_writer *w, const struct tiny *spec)
{
    static const char *const inputs[] = { "qkv", "o", "gate_up", "down" };
    char key[96];

    for (size_t i = 0; i < ARRAY_SIZE(inputs); i++) {
        snprintf(key, sizeof(key), "tern.quant.%s", inputs[i]);
        if (spec->quant)
            write_string(w, key, spec->quant);
        snprintf(key, sizeof(key), "tern.hadamard.%s", inputs[i]);
        if (spec->hadamard && strstr(spec->hadamard, inputs[i]))
            write_bool(w, key, true);
    }
    if (spec->norm_kind)
        write_string(w, "tern.norm", spec->norm_kind);
    if (spec->kv_bits)
        write_u32(w, "tern.kv_bits", spec->kv_bits);
    snprintf(key, sizeof(key), "%s.attention.sliding_window", spec->architecture);
    if (spec->window)
        write_u32(w, key, spec->window);
    snprintf(key, sizeof(key), "%s.pooling_type", spec->architecture);
    if (spec->pooling)
        write_u32(w, key, spec->pooling);
}

static inline void tiny_write(struct gguf_writer *w, const struct tiny *spec)
{
    const struct { const char *suffix; size_t value; } sizes[] = {
        { "context_length", spec->n_ctx }, { "embedding_length", spec->n_embd }, { "block_count", spec->n_layer },
        { "feed_forward_length", spec->n_ff }, { "attention.head_count", spec->n_head },
        { "attention.head_count_kv", spec->n_kv }, { "attention.key_length", spec->head_dim },
        { "attention.value_length", spec->head_dim },
    };
    char key[96];

    write_string(w, "general.architecture", spec->architecture);
    write_string(w, "general.name", "tiny model");
    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        snprintf(key, sizeof(key), "%s.%s", spec->architecture, sizes[i].suffix);
        write_u32(w, key, (uint32_t)sizes[i].value);
    }
    snprintf(key, sizeof(key), "%s.attention.layer_norm_rms_epsilon", spec->architecture);
    write_f32(w, key, 1e-5f);
    tiny_variant(w, spec);
    tiny_vocabulary(w, spec);

    tiny_dense(w, "token_embd.weight", "embeddings", spec->dense, spec->n_embd, spec->n_vocab);
    if (spec->head)
        tiny_dense(w, "output.weight", "embeddings", spec->dense, spec->n_embd, spec->n_vocab);
    for (size_t i = 0; i < spec->n_layer; i++)
        tiny_layer(w, spec, i);
    tiny_norm(w, spec, "output_norm.weight", spec->n_embd);
    if (spec->extra)
        tiny_dense(w, spec->extra, spec->extra, TENSOR_F32, spec->n_embd, 1);
}

static inline uint8_t *tiny_file(const struct tiny *spec, size_t *ret_size)
{
    struct gguf_writer w;
    uint8_t *file;

    writer_init(&w);
    tiny_write(&w, spec);
    file = writer_file(&w, ret_size);
    writer_done(&w);
    return file;
}
