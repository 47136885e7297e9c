/* Trits and floats into the types of a GGUF, bitnet.md 2.4 to 2.7. Reading them back is engine/weights.c's. */
#pragma once

#include "engine/internal.h"

#define PACK_MARGIN 32              /* bytes beyond a row's own that pack_row() may need room for */

/* A ternary tensor being packed a row at a time. */
struct packer {
    enum tensor_type type;
    size_t cols, rows, row;
    float scale;                    /* of the whole */
    const float *row_scales;        /* (rows) instead, or NULL */
    int8_t carry[128];              /* I2_S: elements of a block that the row before began */
    size_t n_carry;
};

/* Can these scales be held exactly? 0, or -EINVAL with *err saying what cannot. name is the tensor's. */
int packer_init(struct packer *p, const char *name, enum tensor_type type, size_t cols, size_t rows, float scale,
                const float *row_scales, struct err *err);
size_t packer_room(const struct packer *p);        /* bytes that pack_row() may write */
size_t pack_row(struct packer *p, const int8_t *t, uint8_t *out);        /* t (cols) in -1..1; the bytes written */

/* Floats to F32, F16, BF16, Q8_0, Q6_K, Q5_0 or Q4_0; n a multiple of the type's block. Returns the bytes written,
 * at most 4 * n. Rounded to nearest; of blocks the value of largest magnitude sets the scale. */
size_t pack_floats(enum tensor_type type, const float *x, size_t n, uint8_t *out);

const char *type_name(uint32_t type);               /* "I2_S" */
int type_find(const char *name, enum tensor_type *ret);      /* any case; 0 or -EINVAL */
bool type_is_ternary(enum tensor_type type);        /* one that a packer makes */
bool type_is_dense(enum tensor_type type);          /* one that pack_floats() makes */
uint32_t type_file_type(enum tensor_type type);     /* general.file_type of a file of this ternary type */
