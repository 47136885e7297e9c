/* What the readers of containers share: source.c, safetensors.c, huggingface.c and vocabulary.c. */
#pragma once

#include <sys/stat.h>

#include "base/arena.h"
#include "base/buf.h"
#include "engine/json_view.h"
#include "engine/source.h"

#define MAX_SOURCE_TENSORS 4096

struct source_file {
    char name[256];                 /* in its directory */
    const uint8_t *data;
    size_t size;
    bool mapped;                    /* else borrowed */
    int fd;                         /* of a mapped one, and what it was when it was opened */
    struct stat st;
};

struct source {
    const char *container;
    struct source_file *files;
    size_t n_files;
    struct gguf *keys;              /* the file's, the first part's, or image's */
    struct buf image;               /* a GGUF without tensors that huggingface.c wrote, or empty */
    struct gguf **parts;            /* of a split set: those behind the first */
    size_t n_parts;
    struct source_tensor *tensors;  /* in order of name */
    size_t n_tensors;
    struct arena copies;            /* names, tensors that had to be moved */
};

/* Map dir/name (name alone when dir is NULL) and add it to s->files. 0, or -errno with *err. */
int source_map(struct source *s, const char *dir, const char *name, struct source_file *ret, struct err *err);
/* Put s->tensors in order of name. 0, or -EINVAL: a name stands twice. */
int source_sort(struct source *s, struct err *err);

/* ---- keys: a GGUF image in memory, without tensors --------------------------------------------------------------- */
/* Each appends one key; that memory ran out is kept and told by keys_done(). */
struct keys { struct buf *b; uint64_t n; int error; };
void keys_init(struct keys *k, struct buf *b);            /* an initialised, empty buf */
void keys_u32(struct keys *k, const char *name, uint32_t v);
void keys_f32(struct keys *k, const char *name, float v);
void keys_bool(struct keys *k, const char *name, bool v);
void keys_string(struct keys *k, const char *name, const char *s, size_t len);
void keys_array(struct keys *k, const char *name, enum gguf_type elem, uint64_t count);    /* elements follow */
void keys_bytes(struct keys *k, const void *data, size_t n);                               /* of an element */
void keys_text(struct keys *k, const char *s, size_t len);                            /* a string element */
int keys_done(struct keys *k);                            /* the image is whole; 0 or -ENOMEM */

/* ---- safetensors.c ----------------------------------------------------------------------------------------------- */
enum safetensor_type { SAFETENSOR_F32, SAFETENSOR_F16, SAFETENSOR_BF16, SAFETENSOR_U8 };
struct safetensor {
    struct json_view name;
    enum safetensor_type type;
    uint32_t n_dims;
    uint64_t dims[4];               /* as the file has them: the last is the input width; unused ones are 1 */
    const uint8_t *data;
    size_t bytes;
};
/* Read one file's header: bounded, every offset checked, tensors neither overlapping nor with gaps between. *ret is
 * malloc'd and points into data. 0, -ENOMEM, -EINVAL with the tensor in *err. */
int safetensors_read(struct safetensor **ret, size_t *ret_n, const struct source_file *f, struct err *err);

/* ---- huggingface.c: a directory ---------------------------------------------------------------------------------- */
int huggingface_read(struct source *s, const char *dir, struct err *err);        /* fills files, image, tensors */

/* ---- vocabulary.c: tokenizer.json -------------------------------------------------------------------------------- */
/* What other files say about the vocabulary. */
struct vocabulary_hints {
    uint64_t n_rows;                /* of the embedding: ids above the last token are written as unused; 0: no such */
    struct json_view config;        /* tokenizer_config.json; s NULL: none */
};
/* Append the tokenizer.ggml.* keys of a tokenizer.json, all but those of end-of-generation tokens. 0, -ENOMEM, -EINVAL
 * with "tokenizer.json: ..." in *err. */
int vocabulary_read(struct keys *k, const void *data, size_t size, const struct vocabulary_hints *hints,
                    struct err *err);
