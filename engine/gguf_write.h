/* A writer of GGUF v3 files that holds the header only: keys and tensors are declared first, then the tensors' bytes
 * are given in the order declared, however many at a time. The file appears under its name when it is whole.
 *
 * What goes wrong while declaring is kept and reported by gguf_writer_begin(). */
#pragma once

#include "engine/internal.h"

struct gguf_writer;

int gguf_writer_new(struct gguf_writer **ret);                                   /* 0 or -ENOMEM */
void gguf_writer_free(struct gguf_writer *w);                                    /* an unfinished file is removed */
static inline void gguf_writer_freep(struct gguf_writer **w) { gguf_writer_free(*w); }

void gguf_write_u32(struct gguf_writer *w, const char *key, uint32_t v);
void gguf_write_f32(struct gguf_writer *w, const char *key, float v);
void gguf_write_bool(struct gguf_writer *w, const char *key, bool v);
void gguf_write_string(struct gguf_writer *w, const char *key, const char *v);
/* The head of an array of n strings or 32-bit integers; its n elements are given next. */
void gguf_write_array(struct gguf_writer *w, const char *key, enum gguf_type elem, uint64_t n);
void gguf_write_item_string(struct gguf_writer *w, const char *s);
void gguf_write_item_i32(struct gguf_writer *w, int32_t v);
void gguf_write_key(struct gguf_writer *w, struct gguf_string whole);            /* as gguf_key_at() gives it */

/* Declare a tensor (rows 1: a vector). */
void gguf_write_tensor(struct gguf_writer *w, const char *name, enum tensor_type type, uint64_t cols, uint64_t rows);
uint64_t gguf_writer_bytes(const struct gguf_writer *w);                         /* of the tensors declared */

/* Write the header. 0, -ENOMEM, -errno of the file, or -EINVAL with *err. */
int gguf_writer_begin(struct gguf_writer *w, const char *path, struct err *err);
/* The next n bytes of the tensors; padding is the writer's. 0 or -errno with *err. */
int gguf_write_data(struct gguf_writer *w, const void *data, size_t n, struct err *err);
/* All tensors were given: put the file in its place. 0 or -errno with *err. */
int gguf_writer_end(struct gguf_writer *w, struct err *err);
