/* An opened checkpoint, whatever contains it: a GGUF file, a set of split GGUF files, or a Hugging Face directory of
 * safetensors. One vocabulary for all: keys and tensors bear GGUF's names (docs/model-metadata.md), so who builds a
 * model from it does not ask where it came from.
 *
 * The files are mapped, read-only and hostile: everything is checked when a source is opened, nothing is allocated for
 * a size that the bytes of the file cannot bear out, and memory beyond the mapping is bounded by their number.
 * A Hugging Face directory's config.json, generation_config.json and tokenizer.json become GGUF keys, among them,
 * beside the ones every GGUF may have (tern.quant.*, tern.activation, ...):
 *
 *     tern.rope                  string  "half": Q and K rows are in Hugging Face's order, also for architecture llama
 *     tern.norm_in.epsilon       f32     of the *_norm_in norms (use_rms_norm), where it is not the model's own
 *     tern.end_token_ids         i32[]   every end-of-generation token
 *     <arch>.pooling_type        u32     1 mean, 2 first, 3 last token, as GGUF has it
 *     <arch>.attention.sliding_window, .sliding_window_pattern (u32), .rope.freq_base_swa (f32)     gemma3
 */
#pragma once

#include "engine/internal.h"

/* How a tensor's `scale` enters the product of its numbers: not at all, multiplied, or the product is divided by it. */
enum scale_kind { SCALE_NONE, SCALE_MULTIPLY, SCALE_DIVIDE };

struct source_tensor {
    struct gguf_string name;        /* GGUF's name; of a tensor that GGUF has no name for, its own */
    enum tensor_type type;          /* TENSOR_HF_U8: row i * dims[1] / 4 + r in bits 2i of packed row r */
    uint32_t n_dims;
    uint64_t dims[4];               /* as in struct gguf_tensor; of TENSOR_HF_U8 those of the matrix it stands for */
    const uint8_t *data;            /* in the mapping, or a copy; at a multiple of its element's size */
    size_t bytes;
    enum scale_kind scale_kind;     /* SCALE_NONE in GGUF, whose scales stand in the data and in .scale tensors */
    float scale;                    /* finite and positive; 1 for SCALE_NONE */
};

struct source;

/* Open a file (GGUF; of a split set any part, beside which the others lie) or a directory. 0, -ENOMEM, -errno of a
 * file, -EINVAL with the key, tensor or file at fault in *err. */
int source_open(struct source **ret, const char *path, struct err *err);
/* One GGUF image that begins at a multiple of 8 and outlives the source (borrowed). */
int source_open_memory(struct source **ret, const void *data, size_t size, struct err *err);
void source_free(struct source *s);
static inline void source_freep(struct source **s) { source_free(*s); }

/* All keys, as GGUF keys; lent. What tokenizer_new() takes. */
const struct gguf *source_keys(const struct source *s);

/* Typed reads of a key: gguf_get_*()'s contract. */
static inline int source_get_u64(const struct source *s, const char *key, uint64_t *ret, struct err *err)
{
    return gguf_get_u64(source_keys(s), key, ret, err);
}
static inline int source_get_double(const struct source *s, const char *key, double *ret, struct err *err)
{
    return gguf_get_double(source_keys(s), key, ret, err);
}
static inline int source_get_bool(const struct source *s, const char *key, bool *ret, struct err *err)
{
    return gguf_get_bool(source_keys(s), key, ret, err);
}
static inline int source_get_string(const struct source *s, const char *key, struct gguf_string *ret, struct err *err)
{
    return gguf_get_string(source_keys(s), key, ret, err);
}
static inline int source_get_array(const struct source *s, const char *key, enum gguf_type elem, uint64_t *ret_count,
                                   struct err *err)
{
    return gguf_get_array(source_keys(s), key, elem, ret_count, err);
}

const struct source_tensor *source_tensor(const struct source *s, const char *name);      /* NULL: none */
const struct source_tensor *source_tensor_at(const struct source *s, size_t i);       /* in order of name; or NULL */
size_t source_tensor_count(const struct source *s);
struct stat;
const struct stat *source_stat(const struct source *s);     /* of its file; NULL: it has several, or lies in memory */
/* The file that data lies in, and where; 0: in none, but in memory. Lent. */
int source_file_of(const struct source *s, const void *data, size_t *ret_offset);
/* Give back the memory that n bytes of a mapped file take; they are read again when they are needed. */
void source_forget(const struct source *s, const void *data, size_t n);
size_t source_bytes(const struct source *s);                                              /* of all its files */
const char *source_container(const struct source *s);       /* "GGUF", "GGUF split", "safetensors" */
/* Write "sha256:<hex>" into ret: of a single file its SHA-256; of several that of the lines "<hex>  <name>\n", in order
 * of name, that sha256sum prints for them. Reads every byte. 0 or -ENOMEM. */
int source_digest(const struct source *s, char ret[80]);
