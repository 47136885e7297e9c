/* What the files of the engine share. Other folders include engine/engine.h only; the engine's own tests and tools may
 * include this. */
#pragma once

#include <math.h>

#include "base/arena.h"
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
/* Bytes of a tensor of this type and shape; 0, -ENOTSUP: a type unknown, -EDOM: a shape it cannot have. */
int gguf_tensor_bytes(const struct gguf_tensor *t, size_t *ret);
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
int32_t tokenizer_eos(const struct tokenizer *t);                        /* what closes a text to embed; likewise */
bool tokenizer_is_end(const struct tokenizer *t, int32_t id);            /* in the end-of-generation set, bitnet.md 3.3 */

/* Joins pieces to whole UTF-8 and watches for stop strings. Invalid bytes become U+FFFD once they cannot complete. */
struct textgate { struct buf held; char *const *stop; size_t n_stop; bool stopped; size_t met; /* which stop string */ };
void textgate_init(struct textgate *g, char *const *stop, size_t n_stop);   /* borrows the strings */
void textgate_done(struct textgate *g);
/* Feed one token's bytes; append what may be shown to out. Returns 1 when a stop string was met (nothing of it or after
 * it was, or will be, shown), else 0, or -ENOMEM. */
int textgate_push(struct textgate *g, const char *piece, size_t len, struct buf *out);
int textgate_flush(struct textgate *g, struct buf *out);                    /* end of answer: show what was held; 0 or -ENOMEM */

/* ---- template.c ------------------------------------------------------------------------------------------------- */
/* A template is a name (bitnet, llama3, falcon3, chatml, plain) or a text of pieces, as template.c's head tells. Chosen
 * from the architecture and the control tokens the vocabulary has; never from an embedded Jinja text. */
const char *template_choose(const struct tokenizer *t, const char *architecture);
/* Is it one, and does the vocabulary have what it writes? 0, -ENOMEM, -EINVAL with *err. */
int template_check(const char *template, const struct tokenizer *t, struct err *err);
/* Append the prompt for `messages` (base/chat.h), ready for the assistant to continue: roles as control tokens, contents
 * without special parsing. 0, -ENOMEM, -EINVAL with *err. */
int template_render(const char *template, const struct tokenizer *t, const json_t *messages, struct tokens *out, struct err *err);

struct source_tensor;                                    /* engine/source.h */
struct source;
struct pool;

/* ---- cache.c: what is made of a model's file when it is loaded, kept for the next start ---------------------------- */
struct cache;
/* fd: engine_cache_open()'s, borrowed as long as the cache lives, or 0 or less. layout: what the sections depend on besides
 * the model's file, at most 15 bytes. 0 or -errno; *err then has words, or also when a damaged file is made anew. */
int cache_new(struct cache **ret, int fd, const struct source *s, const char *layout, struct err *err);
void cache_free(struct cache *c);
bool cache_is_warm(const struct cache *c);      /* it is the file, and the model's file passed all checks when it was made */
const char *cache_digest(const struct cache *c);        /* of the model, when it is warm */
/* Room for what `name` says, 64-byte aligned, for the cache's life. 1: it is there and not to be written; 0: to be filled;
 * -ENOMEM. From one thread. */
int cache_section(struct cache *c, const char *name, size_t bytes, void **ret);
/* No more sections: begin to write the file, where there is one, in a thread that then puts it in the region's place; who
 * reads that notices nothing. `failed` (or NULL) is called there with the reason. 0, or -errno: there is no thread. */
int cache_keep(struct cache *c, const char *digest, void (*failed)(const char *why));
int cache_settle(struct cache *c);              /* wait for it: 0, or the -errno of writing */

/* ---- weights.c: matrices, in whatever type the file holds them -------------------------------------------------- */
/* Packed in `layout` (kernels.h), rows of `padded` columns; y = sum * scale * what one step of the input is worth.
 * row_scales (rows) replaces scale where rows have their own, else NULL. norm_in (cols) or NULL: the gain of a norm of
 * this matrix's own input. */
struct ternary {
    const uint8_t *w;
    const struct ternary_layout *layout;
    size_t rows, cols, padded;
    float scale;
    const float *row_scales, *norm_in;
};
struct dense { const void *w; enum tensor_type type; size_t rows, cols; int fd; size_t offset; };
/* Floats or blocks where the file has them; fd 0: in memory only. */

struct ternary_reading {
    char i2s_layout;         /* of an I2_S tensor: 'a' (0 too), 'b' or 'c', bitnet.md 2.6 */
    bool binary;             /* -1 and 1 only; a float master is cut at its mean */
};
/* Check the tensor and make canonical w of it: used where it lies when it is that already, else packed into `copies`. Floats
 * that are not {-c, 0, c} are quantised by their mean magnitude. t is rows x cols as w says. 0, -ENOMEM, or -EINVAL with
 * *err naming the tensor. */
int ternary_load(struct ternary *w, const struct source_tensor *t, struct ternary_reading how, struct arena *copies, struct err *err);
/* The same in another layout, its rows and scales in the cache: read from there when it has them, unchecked. The pool shares
 * the packing. As ternary_load(). */
int ternary_load_packed(struct ternary *w, const struct source_tensor *t, struct ternary_reading how,
                        const struct ternary_layout *layout, struct cache *cache, struct pool *pool, struct err *err);
void ternary_row(const struct ternary *w, size_t row, float *out);              /* (padded) -1, 0, 1: without the scale */
int dense_trust(struct dense *ret, const struct source_tensor *t, struct err *err); /* without a look at its elements */
int dense_load(struct dense *ret, const struct source_tensor *t, struct err *err); /* 0, or -EINVAL with *err */
void dense_row(const struct dense *d, size_t row, float *out);                  /* (cols) */
/* One row as it is: where it lies, or read from its file into `room` (cols floats are enough). For single rows of a file,
 * around each of which the system would otherwise map megabytes. */
const void *dense_at(const struct dense *d, size_t row, void *room);
void dense_read_row(const struct dense *d, size_t row, void *room, float *out);     /* dense_row() of it */
size_t dense_row_bytes(const struct dense *d);
/* -EINVAL, with "tensor NAME: " and the words in *err. */
int tensor_refuse(const struct source_tensor *t, struct err *err, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* ---- activation.c: what is done to a row of activations besides kernels ------------------------------------------ */
enum quantizer { QUANT_INT8_ABSMAX, QUANT_INT4_ABSMEAN, QUANT_TOP50_INT8, QUANT_NONE };
/* Integers for x and what one step of them is worth. QUANT_TOP50_INT8 zeroes the dropped half of x. Not for QUANT_NONE. */
float activation_quantize(const struct kernels *k, enum quantizer how, int8_t *q, float *x, size_t n);
void activation_hadamard(float *x, size_t n);            /* normalised, in blocks of the largest power of two dividing n */
void activation_center(float *out, const float *x, size_t n);                   /* x less its mean; out may be x */
void activation_round(float *x, size_t n, unsigned bits);  /* to symmetric absmax levels of so many bits, 2..8 */
void activation_gelu_mul(float *out, const float *gate, const float *up, size_t n);   /* tanh's GELU of gate, times up */

/* ---- model.c ---------------------------------------------------------------------------------------------------- */
enum pooling { POOLING_NONE, POOLING_MEAN, POOLING_CLS, POOLING_LAST };          /* GGUF's numbers */
enum projection_input { INPUT_QKV, INPUT_O, INPUT_GATE_UP, INPUT_DOWN, N_INPUTS };

/* What the file does not say, or says wrongly. NULL for all defaults. */
struct model_options {
    int cache_fd;                   /* engine_cache_open()'s, borrowed, open as long as the model; 0 or less: none */
    unsigned threads;               /* to load with; 0: one */
    char i2s_layout;                /* 'a' (0 too), 'b' or 'c' */
    bool weight_only;               /* activations are not quantised */
    enum ffn_act act_override;
    const char *template;           /* instead of template_choose()'s, borrowed; NULL or "auto": that one */
};

/* A norm that is NULL is not in the graph. */
struct model_layer {
    const float *attn_norm, *q_norm, *k_norm, *attn_sub_norm, *post_attn_norm;
    const float *ffn_norm, *ffn_sub_norm, *post_ffn_norm;
    struct ternary q, k, v, o, gate, up, down;
    bool local;                                      /* sees the last `window` tokens only, turned by rope_base_local */
};
/* The graph of every model of the family is forward.c's; what varies is here. Mapped, shared and constant once opened. */
struct model {
    char name[64], architecture[32], digest[80];     /* digest "sha256:<hex>" of the whole file */
    size_t n_vocab, n_ctx, n_embd, n_layer, n_head, n_kv, head_dim, n_ff, rope_dim;
    float rope_base, rms_eps, norm_in_eps, embd_scale, attn_scale;
    bool rope_half;                                  /* half-rotated, else adjacent pairs */
    bool layer_norm;                                 /* norms take the mean away first (b1) */
    bool binary;                                     /* weights are -1 and 1 (b1) */
    size_t window, window_pattern;                   /* of local layers (0: there are none): all but each pattern-th */
    float rope_base_local;
    float rope_shrink;                               /* what positions are divided by in layers that see all */
    struct { enum quantizer quant; bool hadamard; } inputs[N_INPUTS];
    unsigned kv_bits;                                /* 32: as computed; 4, 3: rounded */
    enum ffn_act act;
    enum pooling pooling;
    struct dense embd, head;                         /* head == embd when tied */
    const float *output_norm, *rope_freqs;           /* rope_freqs NULL or (rope_dim/2) */
    struct model_layer *layers;
    struct tokenizer *tokenizer;
    const char *template;                            /* for template_render() */
    size_t file_bytes;
    struct err note;                                 /* words about what was odd at opening, or empty */
    struct cache *cache;                             /* what was made of the file */
    struct model_map *map;                           /* model.c's own: the mapping and copies */
};
/* From a file (mapped) or from memory (borrowed for the model's life). Refuses, naming tensor or key, what it cannot
 * compute exactly. */
int model_open(struct model **ret, const char *path, const struct model_options *options, struct err *err);
int model_open_memory(struct model **ret, const void *data, size_t size, const struct model_options *options, struct err *err);
void model_free(struct model *m);
/* When all that is to be kept for the next start has been made: cache_keep(). */
int model_keep(struct model *m, void (*failed)(const char *why));
/* Give back the memory of n bytes of the model's file (source_forget()). */
void model_forget(const struct model *m, const void *data, size_t n);
static inline void model_freep(struct model **m) { model_free(*m); }

/* ---- pool.c: threads that share the rows of one product ---------------------------------------------------------- */
struct pool;
int pool_new(struct pool **ret, unsigned threads);     /* threads >= 1, the caller counted; 0 or -errno */
void pool_free(struct pool *p);
static inline void pool_freep(struct pool **p) { pool_free(*p); }
unsigned pool_threads(const struct pool *p);
/* Run fn(arg, begin, end) over [0, n) split into ranges that are multiples of `grain`, each taken by whichever thread is
 * free, the caller included; returns when all are done. From one thread only. */
void pool_run(struct pool *p, size_t n, size_t grain, void (*fn)(void *arg, size_t begin, size_t end), void *arg);

/* ---- kv.c: keys and values in pages ------------------------------------------------------------------------------
 * A pool makes pages of ATTEND_TOKENS tokens each; whoever holds one holds a reference to it: sessions do, and who
 * keeps prefixes may. One thread calls these, but for kv_block() and kv_block_put() of different tokens. */
#define MAX_HEAD_DIM 4096
struct kv_pool;
struct kv_page;
/* Room for max_tokens in all pages together, rounded up to whole pages; 0: as much as there is memory. 0 or -errno. */
int kv_pool_new(struct kv_pool **ret, const struct model *m, enum kv_type type, size_t max_tokens, struct err *err);
void kv_pool_free(struct kv_pool *kv);                /* after everything that holds pages of it; takes NULL */
static inline void kv_pool_freep(struct kv_pool **kv) { kv_pool_free(*kv); }
enum kv_type kv_pool_type(const struct kv_pool *kv);
const struct model *kv_pool_model(const struct kv_pool *kv);
size_t kv_pool_room(const struct kv_pool *kv);        /* pages that may still be made */
size_t kv_pool_page_bytes(const struct kv_pool *kv);
int kv_page_new(struct kv_page **ret, struct kv_pool *kv);        /* 0, -ENOBUFS: no room, -ENOMEM */
struct kv_page *kv_page_ref(struct kv_page *page);                /* returns it */
void kv_page_unref(struct kv_pool *kv, struct kv_page *page);     /* takes NULL */
/* Put a copy in place of a page that others hold too, so that it may be written. As kv_page_new(). */
int kv_page_own(struct kv_page **page, struct kv_pool *kv);
/* One layer's and head's part of a page, in the order of the kernel of its type; the units of KV_INT8 only. */
struct kv_block { void *k, *v; float *k_units, *v_units; };
struct kv_block kv_block(const struct kv_pool *kv, const struct kv_page *page, size_t layer, size_t head);
/* Write k and v (head_dim), finite, as token t of the page. */
void kv_block_put(const struct kv_pool *kv, const struct kv_block *b, size_t t, const float *k, const float *v);

/* ---- session.c: one mutable timeline ----------------------------------------------------------------------------- */
struct session {
    struct kv_pool *kv;
    size_t n_ctx, n;             /* capacity and tokens held */
    struct kv_page **pages;      /* (n_pages), enough for n tokens */
    size_t n_pages;
};
/* n_ctx 0, or more than the model has: the model's. Costs nothing until tokens come. 0 or -ENOMEM. */
int session_new(struct session **ret, struct kv_pool *kv, size_t n_ctx);
void session_free(struct session *s);
void session_reset(struct session *s, size_t keep);       /* forget all but the first `keep` tokens */
/* Hold instead the n tokens of these pages of the same pool, which get a reference each; n need not fill the last one.
 * To share a prefix: session_adopt(s, other->pages, n) with n <= other->n. 0, -ENOSPC: n > n_ctx, nothing was changed. */
int session_adopt(struct session *s, struct kv_page *const pages[], size_t n);
/* Make room for one more token and count it. 0, -ENOSPC: n_ctx; -ENOBUFS, -ENOMEM as kv_page_new(). */
int session_grow(struct session *s);

/* ---- forward.c --------------------------------------------------------------------------------------------------- */
struct forward_row {
    struct session *session;
    int32_t token;
    float *logits;               /* (n_vocab) or NULL: not wanted */
    /* How many of the best logits must be those of the whole product, to the bit, each better than any that is not; at
     * most SCREEN_LEADING, 0: all must. The others may then be estimates, none off by more than *within. */
    size_t leading;
    const uint64_t *allowed;     /* (n_vocab bits) the same also of the best among these tokens; NULL: of all only */
    float *within;               /* set with logits: 0 when all are exact; NULL: not wanted */
};
struct forward;
int forward_new(struct forward **ret, const struct model *m, struct pool *p, size_t max_rows, struct err *err);
void forward_free(struct forward *f);
size_t forward_head_bytes(const struct forward *f);       /* what the last run read of the head and its copy */
/* Run n <= max_rows rows. Rows of one session stand in order and are appended to its timeline; rows of several sessions
 * may be mixed. Bit-identical for any split into batches, any number of threads and any sharing of pages. -ENOSPC: a
 * session is full; -ENOBUFS: the pool of pages is; -ENOMEM; -EINVAL: a token the vocabulary lacks, or n > max_rows.
 * Nothing was changed then. */
int forward_run(struct forward *f, const struct forward_row *rows, size_t n);
/* The vector of a text as the model's pooling makes it, of length 1; with POOLING_NONE a row for each token, (n, n_embd),
 * as output_norm gives it. The session is reset first. 0; as forward_run, the session then holding part of the text. */
int forward_embed(struct forward *f, struct session *s, const int32_t *ids, size_t n, float *ret);
/* Append n <= max_rows tokens to the session; ret (n, n_embd): what output_norm gives of each. As forward_run(). */
int forward_hidden(struct forward *f, struct session *s, const int32_t *ids, size_t n, float *ret);
/* Their mean, the first or the last of n rows, made of length 1. */
void forward_pool(float *out, const float *rows, size_t n, size_t width, enum pooling how);
/* Call fn for every stage of every row that runs from now on, from the caller's thread: "l0.attn_norm", "l0.q", …,
 * "final_norm"; row is the position. NULL: no more. */
void forward_trace(struct forward *f, void (*fn)(void *arg, const char *name, size_t row, const float *x, size_t n), void *arg);

/* ---- screen.c: a small copy of the head that tells which of its rows can matter ----------------------------------
 * Row i of the head, w, is kept as six-bit integers q and a step s, with numbers size >= |s q| and error >= |w - s q|
 * (Euclidean norms, of exact differences). An activation x becomes integers p and a step t with r >= |x - t p|. Then
 *     w x = s t (q p) + s q (x - t p) + (w - s q) x,
 * and by Cauchy and Schwarz the last two are at most size * r + error * |x|. The head's kernels, sixteen running sums,
 * round each product at most k = cols / 16 + 6 times on its way, so what they give is off from w x by at most
 * g * |w| |x| + cols * 2^-149 (underflow) with g = k u / (1 - k u), u = 2^-24 and |w| <= size + error. The integer sum
 * q p is exact; s t (q p) is rounded to float once, by half of |e| * 2^-23. So, with e the float estimate,
 *     |head's logit - e| <= size * (r + g |x|) + error * (|x| + g |x|) + |e| * 2^-23 + 2^-120,
 * which is evaluated in float and made larger by 2^-20, more than its own five roundings take away. The other half of
 * |e| * 2^-23 pays for the rounding of e plus this. */
#define SCREEN_LEADING 128         /* the most leading logits that it is used for */
struct screen_row { float step, size, error; };
struct screen {
    size_t rows, cols, padded;     /* padded: cols rounded up to 128 */
    uint8_t *w;                    /* (rows, padded) as sixbit_matmul() reads them */
    struct screen_row *of;         /* (rows), behind w in one piece */
    void *own;                     /* the same memory when it is not the cache's */
    float most_size, most_error;   /* over all rows */
};
/* Is a copy worth its memory: would reading the head take much longer than all else? */
bool screen_is_worth(const struct dense *head);
/* Its memory is a section of the cache, taken as it is when it is there; NULL: its own. 0 or -ENOMEM. */
int screen_new(struct screen **ret, const struct dense *head, struct cache *cache, struct pool *p);
void screen_free(struct screen *s);
static inline size_t screen_row_bytes(const struct screen *s) { return s->padded / TERNARY_BLOCK * SIXBIT_BLOCK_BYTES; }
/* An activation row to screen with. */
struct screen_query {
    int8_t *planes;                /* (2, padded) p = 128 * first + second */
    double step;
    float of_size, of_error;       /* a row is off by at most size * of_size + error * of_error, and rounding */
    bool possible;                 /* false: numbers too large to bound */
};
void screen_ask(const struct screen *s, struct screen_query *q, const float *x);
/* The estimate from the two planes' sums, and how far off the logit may be. */
static inline float screen_estimate(const struct screen *s, const struct screen_query *q, size_t row,
                                    int32_t first, int32_t second)
{
    return (float)((double)s->of[row].step * q->step * (128.0 * first + second));
}
static inline float screen_within(const struct screen *s, const struct screen_query *q, size_t row, float estimate)
{
    const struct screen_row *of = &s->of[row];

    return (of->size * q->of_size + of->error * q->of_error + fabsf(estimate) * 0x1p-23f) * (1 + 0x1p-20f) + 0x1p-120f;
}
float screen_within_all(const struct screen *s, const struct screen_query *q);    /* no less than any row's */

/* ---- sampler.c --------------------------------------------------------------------------------------------------- */
struct sampler;
/* Defaults already filled in: temperature, top_p given. Copies params. seed -1: from the kernel. */
int sampler_new(struct sampler **ret, const struct chat_params *params, size_t n_vocab);
void sampler_free(struct sampler *s);
/* Choose the next token from logits (n_vocab; used as scratch). Fills id, logprob, margin, entropy and, when logprobs were
 * asked for, top ids and logprobs (pieces are the caller's). allowed: (n_vocab bits) what may be chosen, at least one
 * token; NULL: all. Measures are of all tokens even so. Temperature 0 is argmax, lowest id on a tie. Order: penalties,
 * top-k, top-p, min-p, temperature, one uniform draw (xoshiro256**, seeded by splitmix64). */
void sampler_pick(struct sampler *s, float *logits, const uint64_t *allowed, struct engine_token *ret);
/* How many leading logits must be exact for it (struct forward_row); 0: all. Where others are estimates within e of
 * theirs, what it picks is the same, and so is the margin; logprob is off by at most e, and in practice by
 * thousandths (docs/performance.md), since the errors of many rows cancel out. */
size_t sampler_leading(const struct sampler *s);
