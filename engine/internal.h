/* What the files of the engine share. Other folders include engine/engine.h only; the engine's own tests and tools may
 * include this. */
#pragma once

#include "base/chat.h"
#include "base/err.h"
#include "engine/engine.h"
#include "kernels/kernels.h"

/* ---- gguf.c: a bounded reader of GGUF v2/v3 --------------------------------------------------------------------
 * Everything is checked before it is believed: counts against what remains of the file, every size in checked
 * arithmetic, alignment a power of two <= 4096, at most 4,096 tensors and 65,536 keys, dims <= 4, tensors inside the
 * file and not overlapping, no duplicate names. Errors name the key or tensor and the byte. */
enum gguf_type { GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STRING, GGUF_ARRAY,
                 GGUF_U64, GGUF_I64, GGUF_F64 };
enum tensor_type { TENSOR_F32 = 0, TENSOR_F16 = 1, TENSOR_Q4_0 = 2, TENSOR_Q5_0 = 6, TENSOR_Q8_0 = 8, TENSOR_Q6_K = 14,
                   TENSOR_BF16 = 30, TENSOR_TQ1_0 = 34, TENSOR_TQ2_0 = 35, TENSOR_I2_S = 36, TENSOR_I8_S = 37, TENSOR_TL1 = 38,
                   TENSOR_TL2 = 39, TENSOR_IQ1_BN = 134, TENSOR_IQ2_BN = 135,
                   TENSOR_HF_U8 = 1000 /* no GGUF number: Hugging Face's packed u8, rows striped by quarters */ };

struct gguf_string { const char *data; size_t len; };     /* not NUL-terminated; points into the file */
struct gguf_tensor {
    struct gguf_string name;
    uint32_t n_dims, type;
    uint64_t dims[4];          /* dims[0] is the input width (ne0); unused ones are 1 */
    const uint8_t *data;       /* into the file */
    size_t bytes;
};
struct gguf;

/* Parse the `size` bytes at data, which must outlive the reader (borrowed). 0, -ENOMEM, -EINVAL with *err. */
int gguf_open(struct gguf **ret, const void *data, size_t size, struct err *err);
void gguf_free(struct gguf *g);
static inline void gguf_freep(struct gguf **g) { gguf_free(*g); }
/* Typed reads of a key. 1: read; 0: absent; -EINVAL with *err: there, but of another type. Any integer type is widened
 * to u64 (negative refused), f32/f64 to double. */
int gguf_get_u64(const struct gguf *g, const char *key, uint64_t *ret, struct err *err);
int gguf_get_double(const struct gguf *g, const char *key, double *ret, struct err *err);
int gguf_get_bool(const struct gguf *g, const char *key, bool *ret, struct err *err);
int gguf_get_string(const struct gguf *g, const char *key, struct gguf_string *ret, struct err *err);
/* Arrays: how many, then each; index < count. */
int gguf_get_array(const struct gguf *g, const char *key, enum gguf_type elem, uint64_t *ret_count, struct err *err);
struct gguf_string gguf_array_string(const struct gguf *g, const char *key, uint64_t index);   /* O(1) after the first call's index */
double gguf_array_number(const struct gguf *g, const char *key, uint64_t index);
/* The i-th key in order of name as the file has it: name, type and value; data NULL: i >= count. */
struct gguf_string gguf_key_at(const struct gguf *g, size_t i, struct gguf_string *ret_name);
const struct gguf_tensor *gguf_tensor(const struct gguf *g, const char *name);                /* NULL: none */
const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, size_t i);                     /* NULL: i >= count */

/* ---- tokenizer.c ------------------------------------------------------------------------------------------------ */
struct tokens { int32_t *ids; size_t len, cap; };
int tokens_push(struct tokens *t, int32_t id);            /* 0 or -ENOMEM */
void tokens_done(struct tokens *t);

struct tokenizer;
/* Build from a GGUF's tokenizer.ggml.* keys ("gpt2" byte-level BPE with the llama-bpe, falcon3, qwen2 or gpt-2 pre-tokenizer;
 * "llama" SentencePiece BPE). Copies what it needs. 0, -ENOMEM, -EINVAL with *err. */
int tokenizer_new(struct tokenizer **ret, const struct gguf *g, struct err *err);
void tokenizer_free(struct tokenizer *t);
/* Append the ids of text. parse_special: recognise control tokens in the text (templates only, never user content).
 * No BOS or EOS is added. 0, -ENOMEM, -EINVAL (not UTF-8 where the vocabulary has no bytes for it). */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, bool parse_special, struct tokens *out);
/* The bytes of a token, lent; control tokens give 0 bytes. id in range. */
const char *tokenizer_piece(const struct tokenizer *t, int32_t id, size_t *ret_len);
const char *tokenizer_name(const struct tokenizer *t, int32_t id);        /* as in the vocabulary, also of control tokens */
int32_t tokenizer_find(const struct tokenizer *t, const char *token);    /* id of exactly this vocabulary entry, or -1 */
size_t tokenizer_size(const struct tokenizer *t);
int32_t tokenizer_bos(const struct tokenizer *t);                        /* -1: none or not added */
bool tokenizer_is_end(const struct tokenizer *t, int32_t id);            /* in the end-of-generation set, bitnet.md 3.3 */

/* Joins pieces to whole UTF-8 and watches for stop strings. Invalid bytes become U+FFFD once they cannot complete. */
struct textgate { struct buf held; char *const *stop; size_t n_stop; bool stopped; };
void textgate_init(struct textgate *g, char *const *stop, size_t n_stop);   /* borrows the strings */
void textgate_done(struct textgate *g);
/* Feed one token's bytes; append what may be shown to out. Returns 1 when a stop string was met (nothing of it or after
 * it was, or will be, shown), else 0, or -ENOMEM. */
int textgate_push(struct textgate *g, const char *piece, size_t len, struct buf *out);
int textgate_flush(struct textgate *g, struct buf *out);                    /* end of answer: show what was held; 0 or -ENOMEM */

/* ---- template.c ------------------------------------------------------------------------------------------------- */
enum template_kind { TEMPLATE_BITNET /* 2B4T: "User: …<|eot_id|>Assistant: " */, TEMPLATE_LLAMA3, TEMPLATE_FALCON3, TEMPLATE_CHATML,
                     TEMPLATE_PLAIN };
/* Chosen from the architecture and the control tokens the vocabulary has; never from an embedded Jinja text. */
enum template_kind template_choose(const struct tokenizer *t, const char *architecture);
/* Append the prompt for `messages` (base/chat.h), ready for the assistant to continue: BOS once, roles as control tokens,
 * contents without special parsing. 0, -ENOMEM, -EINVAL with *err. */
int template_render(enum template_kind kind, const struct tokenizer *t, const json_t *messages, struct tokens *out, struct err *err);

/* ---- model.c ---------------------------------------------------------------------------------------------------- */
struct ternary { const uint8_t *w; size_t rows, cols, padded; float scale; };     /* layout A; y = sum * scale * a / 127 */
struct dense { const void *w; enum tensor_type type; size_t rows, cols; };       /* F32 (BF16 is copied to it), F16, Q8_0 */
enum ffn_act { ACT_RELU2, ACT_SILU };
struct model_layer {
    const float *attn_norm, *attn_sub_norm, *ffn_norm, *ffn_sub_norm;            /* sub-norms NULL where the graph has none */
    struct ternary q, k, v, o, gate, up, down;
};
/* Mapped, shared and constant once opened. */
struct model {
    char name[64], architecture[32], digest[80];     /* digest "sha256:<hex>" of the whole file */
    size_t n_vocab, n_ctx, n_embd, n_layer, n_head, n_kv, head_dim, n_ff, rope_dim;
    float rope_base, rms_eps;
    bool rope_half;                                  /* half-rotated, else adjacent pairs */
    enum ffn_act act;
    struct dense embd, head;                         /* head == embd when tied */
    const float *output_norm, *rope_freqs;           /* rope_freqs NULL or (rope_dim/2) */
    struct model_layer *layers;
    struct tokenizer *tokenizer;
    enum template_kind template;
    size_t file_bytes;
    struct model_map *map;                           /* model.c's own: the mapping and repacked copies */
};
/* From a file (mapped) or from memory (borrowed for the model's life). Refuses, naming tensor or key, what it cannot
 * compute exactly. */
int model_open(struct model **ret, const char *path, struct err *err);
int model_open_memory(struct model **ret, const void *data, size_t size, struct err *err);
void model_free(struct model *m);
static inline void model_freep(struct model **m) { model_free(*m); }

/* ---- pool.c: threads that share the rows of one product ---------------------------------------------------------- */
struct pool;
int pool_new(struct pool **ret, unsigned threads);     /* threads >= 1, the caller counted; 0 or -errno */
void pool_free(struct pool *p);
unsigned pool_threads(const struct pool *p);
/* Run fn(arg, begin, end) over [0, n) split into ranges that are multiples of `grain`, each taken by whichever thread is
 * free, the caller included; returns when all are done. From one thread only. */
void pool_run(struct pool *p, size_t n, size_t grain, void (*fn)(void *arg, size_t begin, size_t end), void *arg);

/* ---- session.c: one mutable timeline ----------------------------------------------------------------------------- */
struct session {
    const struct model *model;
    size_t n_ctx, n;             /* capacity and tokens held */
    float *k, *v;                /* (layer, n_ctx, n_kv * head_dim) f32 */
};
int session_new(struct session **ret, const struct model *m, size_t n_ctx);    /* 0 or -ENOMEM */
void session_free(struct session *s);
void session_reset(struct session *s, size_t keep);       /* forget all but the first `keep` tokens */

/* ---- forward.c --------------------------------------------------------------------------------------------------- */
struct forward_row { struct session *session; int32_t token; float *logits; };   /* logits (n_vocab) or NULL: not wanted */
struct forward;
int forward_new(struct forward **ret, const struct model *m, struct pool *p, size_t max_rows, struct err *err);
void forward_free(struct forward *f);
/* Run n <= max_rows rows. Rows of one session stand in order and are appended to its timeline; rows of several sessions
 * may be mixed. Bit-identical for any split into batches and any number of threads. -ENOSPC: a session is full; -EINVAL:
 * a token the vocabulary lacks, or n > max_rows; nothing was changed. */
int forward_run(struct forward *f, const struct forward_row *rows, size_t n);

/* ---- sampler.c --------------------------------------------------------------------------------------------------- */
struct sampler;
/* Defaults already filled in: temperature, top_p given. Copies params. seed -1: from the kernel. */
int sampler_new(struct sampler **ret, const struct chat_params *params, size_t n_vocab);
void sampler_free(struct sampler *s);
/* Choose the next token from logits (n_vocab; used as scratch). Fills id, logprob, margin, entropy and, when logprobs were
 * asked for, top ids and logprobs (pieces are the caller's). Temperature 0 is argmax, lowest id on a tie. Order: penalties,
 * top-k, top-p, min-p, temperature, one uniform draw (xoshiro256**, seeded by splitmix64). */
void sampler_pick(struct sampler *s, float *logits, struct engine_token *ret);
