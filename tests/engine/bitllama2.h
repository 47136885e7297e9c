/* bitllama2.c's trained models (data/bitllama2 in the shared files) as GGUF of the "bitnet" architecture: SiLU, norms with
 * gain one, tied float embedding, I2_S.
 *
 * Their BitLinear normalises its own input to rms 1 and divides it by its width; norms with gain one before each
 * product are the same, with scale / width as the tensor's scale. Q and K rows lie in adjacent pairs and are put into
 * halves. Their 1e-12 inside BitLinear becomes the file's epsilon; the 1e-5 of the last norm is then missing, which a
 * final residual stream of magnitude one does not notice. */
#pragma once

#include "tests/engine/gguf_write.h"

#define BITLLAMA2_HEADER_BYTES 256
#define BITLLAMA2_TOKENS 512

struct bitllama2 {
    const uint8_t *p;            /* the next weight */
    int32_t dim, hidden, layers, heads, kv_heads, vocab, seq_len;
};

/* One matrix at b->p: a scale, then 2-bit weights (0: 0, 1: +1, 3: -1), the first in a byte's top bits. */
static inline void bitllama2_matrix(struct bitllama2 *b, struct gguf_writer *w, const char *name, size_t cols, size_t rows,
                                    size_t head_dim)
{
    int8_t *t = malloc(rows * cols);
    uint8_t *packed = calloc(1, rows * cols / 4 + 32);
    float scale;

    if (!t || !packed)
        abort();
    memcpy(&scale, b->p, sizeof(scale));
    b->p += sizeof(scale);
    for (size_t r = 0; r < rows; r++) {
        size_t in_head = head_dim ? r % head_dim : 0;
        size_t to = head_dim ? r - in_head + in_head / 2 + in_head % 2 * (head_dim / 2) : r;

        for (size_t c = 0; c < cols; c++) {
            size_t e = r * cols + c;
            int code = b->p[e / 4] >> (6 - 2 * (e % 4)) & 3;

            t[to * cols + c] = (int8_t)(code == 3 ? -1 : code);
        }
    }
    b->p += rows * cols / 4;
    ternary_pack(packed, t, rows, cols);         /* cols is a multiple of 128 in both models */
    scale /= (float)cols;
    memcpy(packed + rows * cols / 4, &scale, sizeof(scale));
    write_tensor(w, name, cols, rows, TENSOR_I2_S, packed, rows * cols / 4 + 32);
    free(packed);
    free(t);
}

static inline void bitllama2_ones(struct gguf_writer *w, const char *name, size_t n)
{
    float *ones = malloc(n * sizeof(*ones));

    if (!ones)
        abort();
    for (size_t i = 0; i < n; i++)
        ones[i] = 1;
    write_tensor(w, name, n, 1, TENSOR_F32, ones, n * sizeof(*ones));
    free(ones);
}

static inline void bitllama2_token(struct buf *b, const uint8_t *s, size_t len)
{
    struct buf piece;

    buf_init(&piece, 1 << 10);
    put(&piece, "", 0);
    for (size_t i = 0; i < len; i++)
        put(&piece, s[i] == ' ' ? "\xe2\x96\x81" : (const char *)s + i, s[i] == ' ' ? 3 : 1);
    put_u64(b, piece.len);
    put(b, piece.data, piece.len);
    buf_done(&piece);
}

/* tokens is tok512.bin: i32 longest, then f32 score, i32 length, bytes. 0: <unk>, 1: BOS, 2: EOS, 3..258: bytes. */
static inline void bitllama2_vocabulary(struct gguf_writer *w, const uint8_t *tokens)
{
    const uint8_t *p;
    struct buf *b;
    int32_t len;

    write_string(w, "tokenizer.ggml.model", "llama");
    b = write_array(w, "tokenizer.ggml.tokens", GGUF_STRING, BITLLAMA2_TOKENS);
    p = tokens + 4;
    for (int i = 0; i < BITLLAMA2_TOKENS; i++, p += 8 + len) {
        memcpy(&len, p + 4, sizeof(len));
        bitllama2_token(b, p + 8, (size_t)len);
    }
    b = write_array(w, "tokenizer.ggml.scores", GGUF_F32, BITLLAMA2_TOKENS);
    p = tokens + 4;
    for (int i = 0; i < BITLLAMA2_TOKENS; i++, p += 8 + len) {
        memcpy(&len, p + 4, sizeof(len));
        put(b, p, sizeof(float));
    }
    b = write_array(w, "tokenizer.ggml.token_type", GGUF_I32, BITLLAMA2_TOKENS);
    for (int i = 0; i < BITLLAMA2_TOKENS; i++)
        put_u32(b, i == 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : 1);
    write_u32(w, "tokenizer.ggml.bos_token_id", 1);
    write_u32(w, "tokenizer.ggml.eos_token_id", 2);
}

static inline void bitllama2_sizes(const struct bitllama2 *b, struct gguf_writer *w)
{
    write_string(w, "general.architecture", "bitnet");
    write_string(w, "general.name", "bitllama2");
    write_u32(w, "bitnet.context_length", (uint32_t)b->seq_len);
    write_u32(w, "bitnet.embedding_length", (uint32_t)b->dim);
    write_u32(w, "bitnet.block_count", (uint32_t)b->layers);
    write_u32(w, "bitnet.feed_forward_length", (uint32_t)b->hidden);
    write_u32(w, "bitnet.attention.head_count", (uint32_t)b->heads);
    write_u32(w, "bitnet.attention.head_count_kv", (uint32_t)b->kv_heads);
    write_f32(w, "bitnet.attention.layer_norm_rms_epsilon", 1e-12f);
    write_f32(w, "bitnet.rope.freq_base", 10000);
}

static inline void bitllama2_layers(struct bitllama2 *b, struct gguf_writer *w)
{
    size_t dim = (size_t)b->dim, hidden = (size_t)b->hidden, head_dim = dim / (size_t)b->heads, kv = head_dim * (size_t)b->kv_heads;
    const struct { const char *name; size_t cols, rows, head_dim; } kinds[] = {
        { "attn_q", dim, dim, head_dim }, { "attn_k", dim, kv, head_dim }, { "attn_v", dim, kv, 0 }, { "attn_output", dim, dim, 0 },
        { "ffn_gate", dim, hidden, 0 }, { "ffn_down", hidden, dim, 0 }, { "ffn_up", dim, hidden, 0 },
    };
    const struct { const char *name; size_t n; } norms[] = {
        { "attn_norm", dim }, { "attn_sub_norm", dim }, { "ffn_norm", dim }, { "ffn_sub_norm", hidden },
    };
    char name[64];

    for (size_t k = 0; k < ARRAY_SIZE(kinds); k++)
        for (int i = 0; i < b->layers; i++) {
            snprintf(name, sizeof(name), "blk.%d.%s.weight", i, kinds[k].name);
            bitllama2_matrix(b, w, name, kinds[k].cols, kinds[k].rows, kinds[k].head_dim);
        }
    for (int i = 0; i < b->layers; i++)
        for (size_t k = 0; k < ARRAY_SIZE(norms); k++) {
            snprintf(name, sizeof(name), "blk.%d.%s.weight", i, norms[k].name);
            bitllama2_ones(w, name, norms[k].n);
        }
}

/* weights is a *.msb.bin. The GGUF, malloc'd. Trusts its input, which is test data. */
static inline uint8_t *bitllama2_file(const uint8_t *weights, const uint8_t *tokens, size_t *ret_size)
{
    struct bitllama2 b = {0};
    struct gguf_writer w;
    uint8_t *file;

    memcpy(&b.dim, weights + 8, 7 * sizeof(int32_t));
    b.p = weights + BITLLAMA2_HEADER_BYTES;
    writer_init(&w);
    bitllama2_sizes(&b, &w);
    bitllama2_vocabulary(&w, tokens);
    write_tensor(&w, "output_norm.weight", (size_t)b.dim, 1, TENSOR_F32, b.p, (size_t)b.dim * 4);
    b.p += (size_t)b.dim * 4;
    write_tensor(&w, "token_embd.weight", (size_t)b.dim, (size_t)b.vocab, TENSOR_F32, b.p, (size_t)b.dim * (size_t)b.vocab * 4);
    b.p += (size_t)b.dim * (size_t)b.vocab * 4;
    bitllama2_layers(&b, &w);
    file = writer_file(&w, ret_size);
    writer_done(&w);
    return file;
}
