/* Matrices in the types that files hold them in, bitnet.md 2.4 to 2.9.
 *
 * A ternary matrix becomes canonical rows (kernels.h) with one scale, or one a row. I2_S in the canonical order is used
 * where it lies when its rows are whole blocks; anything else is decoded row by row into trits and packed anew. From
 * there it goes to the order that the machine's kernels read. What has more
 * scales than one a row is refused: it could not be computed exactly. Dense matrices stay as they are and are turned
 * into floats a row at a time. */
#include "engine/source.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define I2_S_TAIL 32
#define TQ_BLOCK 256
#define BN_BLOCK 64
#define MIN_SCALE 1e-5f                  /* of a float master, as in training */

int tensor_refuse(const struct source_tensor *t, struct err *err, const char *fmt, ...)
{
    char why[160];
    va_list args;

    va_start(args, fmt);
    vsnprintf(why, sizeof(why), fmt, args);
    va_end(args);
    return err_set(err, -EINVAL, "tensor %.*s: %s", (int)MIN(t->name.len, 64), t->name.data, why);
}

static float half_at(const uint8_t *p)
{
    uint16_t h;

    memcpy(&h, p, sizeof(h));
    return f16_to_f32(h);
}

static float bf16_at(const uint8_t *p)
{
    uint16_t h;

    memcpy(&h, p, sizeof(h));
    return bf16_to_f32(h);
}

static float single_at(const uint8_t *p)
{
    float f;

    memcpy(&f, p, sizeof(f));
    return f;
}

/* ---- dense ------------------------------------------------------------------------------------------------------ */

static void row_f32(const uint8_t *p, size_t n, float *out)
{
    memcpy(out, p, n * sizeof(*out));
}

static void row_f16(const uint8_t *p, size_t n, float *out)
{
    for (size_t c = 0; c < n; c++)
        out[c] = half_at(p + 2 * c);
}

static void row_bf16(const uint8_t *p, size_t n, float *out)
{
    for (size_t c = 0; c < n; c++)
        out[c] = bf16_at(p + 2 * c);
}

static void row_q8_0(const uint8_t *p, size_t n, float *out)
{
    for (; n; n -= 32, p += 34, out += 32) {
        float d = half_at(p);

        for (size_t j = 0; j < 32; j++)
            out[j] = (float)(int8_t)p[2 + j] * d;
    }
}

static void row_q4_0(const uint8_t *p, size_t n, float *out)
{
    for (; n; n -= 32, p += 18, out += 32) {
        float d = half_at(p);

        for (size_t j = 0; j < 16; j++) {
            out[j] = (float)((p[2 + j] & 15) - 8) * d;
            out[j + 16] = (float)((p[2 + j] >> 4) - 8) * d;
        }
    }
}

static void row_q5_0(const uint8_t *p, size_t n, float *out)
{
    for (; n; n -= 32, p += 22, out += 32) {
        float d = half_at(p);
        uint32_t high;

        memcpy(&high, p + 2, sizeof(high));
        for (size_t j = 0; j < 16; j++) {
            out[j] = (float)((int)((p[6 + j] & 15) | (high >> j & 1) << 4) - 16) * d;
            out[j + 16] = (float)((int)(p[6 + j] >> 4 | (high >> (j + 16) & 1) << 4) - 16) * d;
        }
    }
}

/* Sixteen elements with one scale: their low four bits are in 16 bytes of ql, their high two in 16 of qh. */
static inline void sixteen_q6_k(const uint8_t *ql, int low, const uint8_t *qh, int high, float scale, float *out)
{
    for (size_t l = 0; l < 16; l++)
        out[l] = scale * (float)((int)((ql[l] >> low & 15) | (qh[l] >> high & 3) << 4) - 32);
}

static void row_q6_k(const uint8_t *p, size_t n, float *out)
{
    for (; n; n -= 256, p += 210) {
        float d = half_at(p + 208);

        /* Two halves of four quarters of two sixteens; quarters 0 and 1 have the low nibbles, 2 and 3 the high ones. */
        for (size_t i = 0; i < 16; i++, out += 16) {
            size_t half = i / 8, quarter = i / 2 % 4, at = i % 2 * 16;

            sixteen_q6_k(p + 64 * half + quarter % 2 * 32 + at, (int)quarter / 2 * 4, p + 128 + 32 * half + at,
                         2 * (int)quarter, d * (float)(int8_t)p[192 + i], out);
        }
    }
}

/* Blocks along a row, where in a block an f16 or bf16 says whether all is finite, and how a row is read. */
static const struct dense_type {
    enum tensor_type type;
    size_t block, bytes, scale_at;
    uint16_t endless;                   /* the bits of the exponent that infinity and NaN have set; 0: is an f32 */
    void (*row)(const uint8_t *p, size_t n, float *out);
} dense_types[] = {
    { TENSOR_F32,  1,   4,   0,   0,      row_f32  }, { TENSOR_F16,  1,   2,   0,   0x7c00, row_f16  },
    { TENSOR_BF16, 1,   2,   0,   0x7f80, row_bf16 }, { TENSOR_Q8_0, 32,  34,  0,   0x7c00, row_q8_0 },
    { TENSOR_Q4_0, 32,  18,  0,   0x7c00, row_q4_0 }, { TENSOR_Q5_0, 32,  22,  0,   0x7c00, row_q5_0 },
    { TENSOR_Q6_K, 256, 210, 208, 0x7c00, row_q6_k },
};

static const struct dense_type *dense_type(enum tensor_type type)
{
    for (size_t i = 0; i < ARRAY_SIZE(dense_types); i++)
        if (dense_types[i].type == type)
            return &dense_types[i];
    return NULL;
}

static bool is_endless(const struct dense_type *d, const uint8_t *p)
{
    uint16_t h;

    if (!d->endless)
        return !isfinite(single_at(p));
    memcpy(&h, p + d->scale_at, sizeof(h));
    return (h & d->endless) == d->endless;
}

int dense_trust(struct dense *ret, const struct source_tensor *t, struct err *err)
{
    if (!dense_type(t->type))
        return tensor_refuse(t, err, "is of type %u; read here are F32, F16, BF16, Q8_0, Q6_K, Q5_0 and Q4_0", t->type);
    *ret = (struct dense){ .w = t->data, .type = t->type, .rows = t->dims[1], .cols = t->dims[0] };
    return 0;
}

/* Is any of n halves? A loop that vectors can take: embeddings are most of some files. */
static bool has_endless_half(const uint8_t *p, size_t n, uint16_t endless)
{
    bool bad = false;

    for (size_t i = 0; i < n; i++) {
        uint16_t h;

        memcpy(&h, p + 2 * i, sizeof(h));
        bad |= (h & endless) == endless;
    }
    return bad;
}

int dense_load(struct dense *ret, const struct source_tensor *t, struct err *err)
{
    const struct dense_type *d = dense_type(t->type);
    struct dense dense;
    size_t n;
    int r;

    r = dense_trust(&dense, t, err);
    if (r < 0)
        return r;
    n = t->dims[0] * t->dims[1] / d->block;
    for (size_t i = 0; i < n && (d->bytes != 2 || has_endless_half(t->data, n, d->endless)); i++)
        if (is_endless(d, t->data + i * d->bytes))
            return tensor_refuse(t, err, "%s %zu is not finite", d->block > 1 ? "the scale of block" : "element", i);
    *ret = dense;
    return 0;
}

size_t dense_row_bytes(const struct dense *d)
{
    const struct dense_type *type = dense_type(d->type);

    return d->cols / type->block * type->bytes;
}

const void *dense_at(const struct dense *d, size_t row, void *room)
{
    size_t n = dense_row_bytes(d), done = 0;

    while (d->fd > 0 && done < n) {
        ssize_t r = pread(d->fd, (uint8_t *)room + done, n - done, (off_t)(d->offset + row * n + done));

        if (!r || (r < 0 && errno != EINTR))
            break;
        done += r > 0 ? (size_t)r : 0;
    }
    return d->fd > 0 && done == n ? room : (const uint8_t *)d->w + row * n;
}

void dense_row(const struct dense *d, size_t row, float *out)
{
    const struct dense_type *type = dense_type(d->type);

    type->row((const uint8_t *)d->w + row * dense_row_bytes(d), d->cols, out);
}

void dense_read_row(const struct dense *d, size_t row, void *room, float *out)
{
    dense_type(d->type)->row(dense_at(d, row, room), d->cols, out);
}

/* ---- rows of trits ---------------------------------------------------------------------------------------------- */

/* A ternary tensor being read. */
struct trits {
    const struct source_tensor *t;
    size_t rows, cols;
    struct ternary_reading how;
    const struct dense_type *floats;    /* of a master, else NULL */
    float *row;                         /* (cols) of a master */
    float scale, step, cut;             /* of the whole; of a master also: t = rte(w * step), or w > cut when binary */
    struct err *err;
};

/* Trits of row r, code 3 as 2, and their scale; 0 when all are zero, or -EINVAL. */
struct ternary_type {
    enum tensor_type type;
    int (*row)(struct trits *s, size_t r, int8_t *t, float *ret_scale);
};

static int bad_scale(const struct trits *s, size_t r)
{
    return tensor_refuse(s->t, s->err, "the scale of row %zu is not a finite positive number", r);
}

/* Elements e.. of blocks of 4 * quarter that pay no heed to rows. */
static inline void flat_i2s(const uint8_t *p, size_t e, size_t n, size_t quarter, int8_t *t)
{
    for (size_t c = 0; c < n; c++, e++)
        t[c] = (int8_t)((p[e / (4 * quarter) * quarter + e % quarter] >> (6 - e / quarter % 4 * 2) & 3) - 1);
}

static int row_i2s(struct trits *s, size_t r, int8_t *t, float *ret_scale)
{
    const uint8_t *p = s->t->data;

    if (s->how.i2s_layout == 'c')
        for (size_t c = 0; c < s->cols; c++)
            t[c] = (int8_t)((p[r / 4 * s->cols + c] >> (6 - r % 4 * 2) & 3) - 1);
    else if (s->how.i2s_layout == 'b')
        flat_i2s(p, r * s->cols, s->cols, 16, t);
    else
        flat_i2s(p, r * s->cols, s->cols, 32, t);
    *ret_scale = s->scale;
    return 0;
}

/* Take a block's scale into its row's; the trits of a block whose scale is 0 are zeros whatever they say. */
static int take_block_scale(struct trits *s, size_t r, size_t block, float d, int8_t *t, size_t n, float *scale)
{
    if (!isfinite(d) || d < 0)
        return bad_scale(s, r);
    if (d == 0)
        memset(t, 0, n);
    else if (*scale != 0 && d != *scale)
        return tensor_refuse(s->t, s->err, "block %zu has the scale %g, others of row %zu have %g: one scale a row is what "
                             "is computed exactly", block, (double)d, r, (double)*scale);
    else
        *scale = d;
    return 0;
}

/* The n_trits that each of `width` bytes holds in base 3, the most significant first: all first ones, all second, … */
static void decode_base3(const uint8_t *p, size_t width, size_t n_trits, int8_t *t)
{
    static const uint8_t powers[] = { 1, 3, 9, 27, 81 };

    for (size_t n = 0; n < n_trits; n++)
        for (size_t m = 0; m < width; m++)
            *t++ = (int8_t)(((uint8_t)(p[m] * powers[n]) * 3 >> 8) - 1);
}

static void block_tq1_0(const uint8_t *p, int8_t t[TQ_BLOCK])
{
    decode_base3(p, 32, 5, t);
    decode_base3(p + 32, 16, 5, t + 160);
    decode_base3(p + 48, 4, 4, t + 240);
}

static void block_tq2_0(const uint8_t *p, int8_t t[TQ_BLOCK])
{
    for (size_t h = 0; h < 2; h++)
        for (size_t l = 0; l < 4; l++)
            for (size_t m = 0; m < 32; m++)
                t[128 * h + 32 * l + m] = (int8_t)((p[32 * h + m] >> (2 * l) & 3) - 1);
}

static int row_tq(struct trits *s, size_t r, int8_t *t, float *ret_scale, size_t bytes,
                  void (*decode)(const uint8_t *p, int8_t t[TQ_BLOCK]))
{
    size_t n = s->cols / TQ_BLOCK;
    float scale = 0;

    for (size_t b = 0; b < n; b++, t += TQ_BLOCK) {
        const uint8_t *p = s->t->data + (r * n + b) * bytes;
        int e;

        decode(p, t);
        e = take_block_scale(s, r, r * n + b, half_at(p + bytes - 2), t, TQ_BLOCK, &scale);
        if (e < 0)
            return e;
    }
    *ret_scale = scale;
    return 0;
}

static int row_tq1_0(struct trits *s, size_t r, int8_t *t, float *ret_scale)
{
    return row_tq(s, r, t, ret_scale, 54, block_tq1_0);
}

static int row_tq2_0(struct trits *s, size_t r, int8_t *t, float *ret_scale)
{
    return row_tq(s, r, t, ret_scale, 66, block_tq2_0);
}

static int row_iq1_bn(struct trits *s, size_t r, int8_t *t, float *ret_scale)
{
    static const uint8_t powers[] = { 81, 27, 9, 3, 1 };
    const uint8_t *p = s->t->data + r * (2 + s->cols / BN_BLOCK * 13);
    float d = half_at(p);

    *ret_scale = 0;
    p += 2;
    for (size_t c = 0; c < s->cols; c++) {
        /* Fifteen of sixteen trits stand in three bytes, five each; the sixteenths in the thirteenth. */
        size_t i = c % BN_BLOCK, last = i % 16 == 15;
        uint8_t v = p[c / BN_BLOCK * 13 + (last ? 12 : i / 16 * 3 + i % 16 / 5)];

        v = (uint8_t)(v * powers[last ? i / 16 : i % 16 % 5]);
        t[c] = (int8_t)(((v + (v >> 1)) >> 7) - 1);
    }
    return take_block_scale(s, r, 0, d, t, s->cols, ret_scale);
}

static int row_iq2_bn(struct trits *s, size_t r, int8_t *t, float *ret_scale)
{
    const uint8_t *p = s->t->data + r * (4 + s->cols / 4);
    float d = single_at(p);

    *ret_scale = 0;
    p += 4;
    for (size_t c = 0; c < s->cols; c++)
        t[c] = (int8_t)((p[c / BN_BLOCK * 16 + c % 16] >> (c % BN_BLOCK / 16 * 2) & 3) - 1);
    return take_block_scale(s, r, 0, d, t, s->cols, ret_scale);
}

/* Rows striped by quarters: bits 2i of packed row p are row i * (rows / 4) + p. */
static int row_hf(struct trits *s, size_t r, int8_t *t, float *ret_scale)
{
    size_t packed = (s->rows + 3) / 4;
    const uint8_t *p = s->t->data + r % packed * s->cols;

    for (size_t c = 0; c < s->cols; c++)
        t[c] = (int8_t)((p[c] >> (r / packed * 2) & 3) - 1);
    *ret_scale = s->scale;
    return 0;
}

static int row_master(struct trits *s, size_t r, int8_t *t, float *ret_scale)
{
    s->floats->row(s->t->data + r * s->cols * s->floats->bytes, s->cols, s->row);
    if (s->how.binary)
        for (size_t c = 0; c < s->cols; c++)
            t[c] = s->row[c] > s->cut ? 1 : -1;
    else
        for (size_t c = 0; c < s->cols; c++)
            t[c] = (int8_t)fminf(fmaxf(rintf(s->row[c] * s->step), -1), 1);
    *ret_scale = s->scale;
    return 0;
}

static const struct ternary_type ternary_types[] = {
    { TENSOR_I2_S, row_i2s },       { TENSOR_TQ1_0, row_tq1_0 },   { TENSOR_TQ2_0, row_tq2_0 },
    { TENSOR_IQ1_BN, row_iq1_bn },  { TENSOR_IQ2_BN, row_iq2_bn }, { TENSOR_HF_U8, row_hf },
    { TENSOR_F32, row_master },     { TENSOR_F16, row_master },    { TENSOR_BF16, row_master },
};

/* ---- what is known of a whole tensor before its rows ------------------------------------------------------------ */

static int measure_i2s(struct trits *s)
{
    size_t n = s->rows * s->cols, block = s->how.i2s_layout == 'b' ? 64 : TERNARY_BLOCK;

    /* The order inside a last part of a block is told nowhere. */
    if (s->how.i2s_layout == 'c' ? s->rows % 4 : n % block)
        return s->how.i2s_layout == 'c'
            ? tensor_refuse(s->t, s->err, "is I2_S in groups of 4 rows with %zu rows", s->rows)
            : tensor_refuse(s->t, s->err, "is I2_S with %zu elements, not a multiple of %zu", n, block);
    s->scale = single_at(s->t->data + n / 4);
    if (!isfinite(s->scale) || !(s->scale > 0))
        return tensor_refuse(s->t, s->err, "the scale at byte %zu is not a finite positive number", n / 4);
    return 0;
}

/* Is it {-c, 0, c}, then those are its trits; else it is a master, quantised as in training (bitnet.md 1.1). */
static int measure_master(struct trits *s)
{
    double sum = 0, magnitudes = 0, n = (double)s->rows * (double)s->cols;
    bool exact = true;
    float c = 0;

    s->floats = dense_type(s->t->type);
    for (size_t r = 0; r < s->rows; r++) {
        s->floats->row(s->t->data + r * s->cols * s->floats->bytes, s->cols, s->row);
        for (size_t i = 0; i < s->cols; i++) {
            float w = s->row[i], a = fabsf(w);

            if (!isfinite(w))
                return tensor_refuse(s->t, s->err, "element %zu is not finite", r * s->cols + i);
            c = c == 0 ? a : c;
            exact = exact && (a == c || (a == 0 && !s->how.binary));
            sum += (double)w;
            magnitudes += (double)a;
        }
    }
    exact = exact && c > 0;
    s->cut = exact ? 0 : (float)(sum / n);
    s->scale = exact ? c : (float)(magnitudes / n);
    if (!s->how.binary)
        s->scale = exact ? c : fmaxf(s->scale, MIN_SCALE);
    s->step = 1 / s->scale;
    if (!(s->scale > 0) || !isfinite(s->step))
        return tensor_refuse(s->t, s->err, "its values are too small to have a scale");
    return 0;
}

static int measure_hf(struct trits *s)
{
    s->scale = s->t->scale_kind == SCALE_DIVIDE ? 1 / s->t->scale : s->t->scale;
    if (!isfinite(s->scale) || !(s->scale > 0))
        return tensor_refuse(s->t, s->err, "its scale is not a finite positive number");
    return 0;
}

static int measure(struct trits *s, const struct ternary_type **ret)
{
    for (size_t i = 0; i < ARRAY_SIZE(ternary_types); i++)
        if (ternary_types[i].type == s->t->type) {
            *ret = &ternary_types[i];
            return s->t->type == TENSOR_I2_S ? measure_i2s(s) : s->t->type == TENSOR_HF_U8 ? measure_hf(s)
                 : dense_type(s->t->type) ? measure_master(s) : 0;
        }
    return tensor_refuse(s->t, s->err, "is of type %u; ternary weights are read from I2_S, TQ1_0, TQ2_0, IQ1_BN, "
                         "IQ2_BN, packed u8 and floats", s->t->type);
}

/* ---- packing ---------------------------------------------------------------------------------------------------- */

/* Already layout A: only its codes are checked. */
static int load_in_place(struct trits *s, struct ternary *w)
{
    size_t n = s->rows * s->cols / 4;
    uint8_t any = 0;

    for (size_t i = 0; i < n; i++)
        any |= s->t->data[i] & (s->t->data[i] >> 1 | (s->how.binary ? 0xff : 0)) & 0x55;
    for (size_t i = 0; any && i < n; i++) {
        uint8_t p = s->t->data[i], low = p & 0x55, high = p >> 1 & 0x55;

        if (low & high)
            return tensor_refuse(s->t, s->err, "code 3 at byte %zu", i);
        if (s->how.binary && low)
            return tensor_refuse(s->t, s->err, "a zero at byte %zu of weights that are -1 and 1", i);
    }
    w->w = s->t->data;
    w->scale = s->scale;
    return 0;
}

static int check_row(const struct trits *s, size_t r, const int8_t *t)
{
    for (size_t c = 0; c < s->cols; c++) {
        if (t[c] > 1)
            return tensor_refuse(s->t, s->err, "code 3 at row %zu, column %zu", r, c);
        if (s->how.binary && !t[c])
            return tensor_refuse(s->t, s->err, "a zero at row %zu, column %zu of weights that are -1 and 1", r, c);
    }
    return 0;
}

/* Scales of rows become one when they are one; a row of zeros has any. */
static int settle_scales(const struct trits *s, struct ternary *w, float *scales)
{
    bool one = true;

    for (size_t r = 0; r < w->rows; r++) {
        if (w->scale == 0)
            w->scale = scales[r];
        one = one && (scales[r] == w->scale || scales[r] == 0);
    }
    if (w->scale == 0)
        return tensor_refuse(s->t, s->err, "all its scales are 0");
    if (!one)
        w->row_scales = scales;
    return 0;
}

static int load_rows(struct trits *s, const struct ternary_type *type, struct ternary *w, struct arena *copies)
{
    cleanup(freep) int8_t *t = malloc(w->cols);
    size_t bytes, scale_bytes;
    uint8_t *out;
    float *scales;
    int r;

    if (!t || !size_mul(&bytes, w->rows, w->padded / 4) || !size_mul(&scale_bytes, w->rows, sizeof(*scales)))
        return -ENOMEM;
    out = arena_alloc(copies, bytes);
    scales = arena_alloc(copies, scale_bytes);
    if (!out || !scales)
        return -ENOMEM;
    for (size_t row = 0; row < w->rows; row++) {
        r = type->row(s, row, t, &scales[row]);
        if (r < 0 || (r = check_row(s, row, t)) < 0)
            return r;
        ternary_pack(out + row * (w->padded / 4), t, 1, w->cols);
    }
    w->w = out;
    return settle_scales(s, w, scales);
}

int ternary_load(struct ternary *w, const struct source_tensor *t, struct ternary_reading how, struct arena *copies,
                 struct err *err)
{
    struct trits s = { .t = t, .rows = t->dims[1], .cols = t->dims[0], .how = how, .err = err };
    cleanup(freep) float *row = malloc(s.cols * sizeof(*row));
    const struct ternary_type *type = NULL;
    int r;

    if (!row)
        return -ENOMEM;
    s.row = row;
    r = measure(&s, &type);
    if (r < 0)
        return r;
    *w = (struct ternary){ .layout = &ternary_canonical, .rows = s.rows, .cols = s.cols,
                           .padded = (s.cols + TERNARY_BLOCK - 1) / TERNARY_BLOCK * TERNARY_BLOCK };
    if (t->type == TENSOR_I2_S && (!how.i2s_layout || how.i2s_layout == 'a') && s.cols % TERNARY_BLOCK == 0)
        return load_in_place(&s, w);
    return load_rows(&s, type, w, copies);
}

/* Behind packed rows, when they are kept. */
struct kept { float scale; uint32_t per_row; float row_scales[]; };

struct packing { const struct ternary *w; const struct ternary_layout *layout; uint8_t *out; };

static void pack_groups(void *arg, size_t begin, size_t end)
{
    const struct packing *p = arg;
    size_t first = begin * p->layout->group, last = MIN(end * p->layout->group, p->w->rows), padded = p->w->padded;

    p->layout->pack(p->out + p->layout->bytes(first, padded), p->w->w + first * (padded / 4), last - first, padded);
}

int ternary_load_packed(struct ternary *w, const struct source_tensor *t, struct ternary_reading how,
                        const struct ternary_layout *layout, struct cache *cache, struct pool *pool, struct err *err)
{
    size_t rows = t->dims[1], padded = (t->dims[0] + TERNARY_BLOCK - 1) / TERNARY_BLOCK * TERNARY_BLOCK, bytes, most;
    cleanup(arena_done) struct arena copies;
    struct packing p = { .w = w, .layout = layout };
    struct kept *kept;
    void *room = NULL;
    char name[64];
    int r;

    arena_init(&copies);
    if (!size_mul(&most, rows, padded + TERNARY_BLOCK * sizeof(float)))         /* more than all of it */
        return -ENOMEM;
    bytes = (layout->bytes(rows, padded) + 63) / 64 * 64;
    snprintf(name, sizeof(name), "%.*s", (int)MIN(t->name.len, sizeof(name) - 1), t->name.data);
    r = cache_section(cache, name, bytes + sizeof(*kept) + rows * sizeof(*kept->row_scales), &room);
    if (r < 0)
        return r;
    kept = (struct kept *)(void *)((uint8_t *)room + bytes);
    if (!r) {
        r = ternary_load(w, t, how, &copies, err);
        if (r < 0)
            return r;
        p.out = room;
        pool_run(pool, (rows + layout->group - 1) / layout->group, 4, pack_groups, &p);
        kept->scale = w->scale;
        kept->per_row = w->row_scales != NULL;
        if (w->row_scales)
            memcpy(kept->row_scales, w->row_scales, rows * sizeof(*w->row_scales));
    }
    *w = (struct ternary){ .layout = layout, .w = room, .rows = rows, .cols = t->dims[0], .padded = padded,
                           .scale = kept->scale, .row_scales = kept->per_row ? kept->row_scales : NULL };
    return 0;
}

void ternary_row(const struct ternary *w, size_t row, float *out)
{
    int8_t *t = (int8_t *)(out + w->padded) - w->padded;       /* at the end of out: each is read before it is overwritten */

    w->layout->row(t, w->w, row, w->padded);
    for (size_t i = 0; i < w->padded; i++)
        out[i] = t[i];
}
