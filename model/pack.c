#include "model/pack.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <strings.h>

#define I2_S_TAIL 32
#define I2_S_BLOCK 128

/* ---- the types -------------------------------------------------------------------------------------------------- */

static const struct type { enum tensor_type type; const char *name; uint32_t file_type; bool dense; } types[] = {
    { TENSOR_I2_S,   "I2_S",   40,  false }, { TENSOR_TQ1_0, "TQ1_0", 36, false }, { TENSOR_TQ2_0, "TQ2_0", 37, false },
    { TENSOR_IQ1_BN, "IQ1_BN", 136, false }, { TENSOR_IQ2_BN, "IQ2_BN", 137, false },
    { TENSOR_F32,    "F32",    0,   true  }, { TENSOR_F16,   "F16",   1,  true  }, { TENSOR_BF16, "BF16", 32, true },
    { TENSOR_Q8_0,   "Q8_0",   7,   true  }, { TENSOR_Q6_K,  "Q6_K",  18, true  }, { TENSOR_Q5_0, "Q5_0", 8,  true },
    { TENSOR_Q4_0,   "Q4_0",   2,   true  }, { TENSOR_HF_U8, "packed u8", 0, false },
};

static const struct type *find_type(uint32_t type)
{
    for (size_t i = 0; i < ARRAY_SIZE(types); i++)
        if (types[i].type == type)
            return &types[i];
    return NULL;
}

const char *type_name(uint32_t type)
{
    const struct type *t = find_type(type);

    return t ? t->name : "unknown";
}

int type_find(const char *name, enum tensor_type *ret)
{
    for (size_t i = 0; i < ARRAY_SIZE(types); i++)
        if (!strcasecmp(types[i].name, name) && types[i].type != TENSOR_HF_U8) {
            *ret = types[i].type;
            return 0;
        }
    return -EINVAL;
}

bool type_is_ternary(enum tensor_type type)
{
    return find_type(type) && !find_type(type)->dense && type != TENSOR_HF_U8;
}

bool type_is_dense(enum tensor_type type)
{
    return find_type(type) && find_type(type)->dense;
}

uint32_t type_file_type(enum tensor_type type)
{
    return find_type(type)->file_type;
}

/* ---- rows of trits ---------------------------------------------------------------------------------------------- */

int packer_init(struct packer *p, const char *name, enum tensor_type type, size_t cols, size_t rows, float scale,
                const float *row_scales, struct err *err)
{
    bool half = type == TENSOR_TQ1_0 || type == TENSOR_TQ2_0 || type == TENSOR_IQ1_BN;
    size_t block = type == TENSOR_IQ1_BN || type == TENSOR_IQ2_BN ? 64 : type == TENSOR_I2_S ? 1 : 256;

    if (cols % block)
        return err_set(err, -EINVAL, "tensor %s: its rows of %zu are not whole blocks of %zu, as %s has them; i2_s can "
                       "hold it", name, cols, block, type_name(type));
    if (type == TENSOR_I2_S && cols * rows % I2_S_BLOCK)
        return err_set(err, -EINVAL, "tensor %s: its %zu elements are not whole blocks of %d, as I2_S has them", name,
                       cols * rows, I2_S_BLOCK);
    if (type == TENSOR_I2_S && row_scales)
        return err_set(err, -EINVAL, "tensor %s: its rows have scales of their own and I2_S has one for all; iq2_bn can hold "
                       "them", name);
    for (size_t r = 0; half && r < (row_scales ? rows : 1); r++) {
        float s = row_scales ? row_scales[r] : scale;

        if (f16_to_f32(f32_to_f16(s)) != s)
            return err_set(err, -EINVAL, "tensor %s: its scale %.9g is not exact in the 16 bits that %s has; i2_s and iq2_bn "
                           "can hold it, or --scale-tensors", name, (double)s, type_name(type));
    }
    *p = (struct packer){ .type = type, .cols = cols, .rows = rows, .scale = scale, .row_scales = row_scales };
    return 0;
}

size_t packer_room(const struct packer *p)
{
    return p->cols + I2_S_BLOCK + I2_S_TAIL;
}

static size_t row_i2s(struct packer *p, const int8_t *t, uint8_t *out)
{
    size_t n = 0, c = 0;

    if (!p->n_carry && p->cols % I2_S_BLOCK == 0) {
        ternary_pack(out, t, 1, p->cols);
        n = p->cols / 4;
    } else {
        while (c < p->cols) {
            p->carry[p->n_carry++] = t[c++];
            if (p->n_carry == I2_S_BLOCK) {
                ternary_pack(out + n, p->carry, 1, I2_S_BLOCK);
                n += I2_S_BLOCK / 4;
                p->n_carry = 0;
            }
        }
    }
    if (p->row + 1 == p->rows) {
        memset(out + n, 0, I2_S_TAIL);
        memcpy(out + n, &p->scale, sizeof(p->scale));
        n += I2_S_TAIL;
    }
    return n;
}

static void put_half(uint8_t *out, float f)
{
    uint16_t h = f32_to_f16(f);

    memcpy(out, &h, sizeof(h));
}

static size_t row_tq2_0(const int8_t *t, size_t cols, float scale, uint8_t *out)
{
    size_t n = 0;

    for (; cols; cols -= 256, t += 256, n += 66) {
        for (size_t i = 0; i < 64; i++) {
            const int8_t *e = t + i / 32 * 128 + i % 32;

            out[n + i] = (uint8_t)((e[0] + 1) | (e[32] + 1) << 2 | (e[64] + 1) << 4 | (e[96] + 1) << 6);
        }
        put_half(out + n + 64, scale);
    }
    return n;
}

/* Trits t[0], t[step], ... as digits of a number below 243, the first the most significant, so placed that multiplying
 * by 3 carries one digit after the other out of the byte. */
static uint8_t five_trits(const int8_t *t, size_t step, size_t n)
{
    unsigned q = 0;

    for (size_t i = 0; i < 5; i++)
        q = q * 3 + (i < n ? (unsigned)(t[i * step] + 1) : 0);
    return (uint8_t)((q * 256 + 242) / 243);
}

static size_t row_tq1_0(const int8_t *t, size_t cols, float scale, uint8_t *out)
{
    size_t n = 0;

    for (; cols; cols -= 256, t += 256, n += 54) {
        for (size_t m = 0; m < 32; m++)
            out[n + m] = five_trits(t + m, 32, 5);
        for (size_t m = 0; m < 16; m++)
            out[n + 32 + m] = five_trits(t + 160 + m, 16, 5);
        for (size_t m = 0; m < 4; m++)
            out[n + 48 + m] = five_trits(t + 240 + m, 4, 4);
        put_half(out + n + 52, scale);
    }
    return n;
}

static size_t row_iq2_bn(const int8_t *t, size_t cols, float scale, uint8_t *out)
{
    size_t n = sizeof(scale);

    memcpy(out, &scale, sizeof(scale));
    for (; cols; cols -= 64, t += 64)
        for (size_t i = 0; i < 16; i++)
            out[n++] = (uint8_t)((t[i] + 1) | (t[i + 16] + 1) << 2 | (t[i + 32] + 1) << 4 | (t[i + 48] + 1) << 6);
    return n;
}

static size_t row_iq1_bn(const int8_t *t, size_t cols, float scale, uint8_t *out)
{
    size_t n = 2;

    put_half(out, scale);
    for (; cols; cols -= 64, t += 64) {
        unsigned last = 0;

        for (size_t i = 0; i < 12; i++) {
            const int8_t *e = t + i / 3 * 16 + i % 3 * 5;
            const int8_t reversed[] = { e[4], e[3], e[2], e[1], e[0] };

            out[n++] = five_trits(reversed, 1, 5);
        }
        for (size_t i = 4; i-- > 0;)
            last = last * 3 + (unsigned)(t[i * 16 + 15] + 1);
        out[n++] = (uint8_t)((last * 256 + 242) / 243);
    }
    return n;
}

size_t pack_row(struct packer *p, const int8_t *t, uint8_t *out)
{
    float scale = p->row_scales ? p->row_scales[p->row] : p->scale;
    size_t n = p->type == TENSOR_I2_S  ? row_i2s(p, t, out)
             : p->type == TENSOR_TQ1_0 ? row_tq1_0(t, p->cols, scale, out)
             : p->type == TENSOR_TQ2_0 ? row_tq2_0(t, p->cols, scale, out)
             : p->type == TENSOR_IQ1_BN ? row_iq1_bn(t, p->cols, scale, out)
                                        : row_iq2_bn(t, p->cols, scale, out);

    p->row++;
    return n;
}

/* ---- floats ----------------------------------------------------------------------------------------------------- */

/* The value of largest magnitude, with its sign. */
static float extreme(const float *x, size_t n)
{
    float e = 0;

    for (size_t i = 0; i < n; i++)
        if (fabsf(x[i]) > fabsf(e))
            e = x[i];
    return e;
}

static int quantum(float x, float step, int low, int high)
{
    return step == 0 ? 0 : (int)fminf(fmaxf(rintf(x / step), (float)low), (float)high);
}

/* The step as its 16 bits will give it back, so that rounding is to what is read. */
static float put_step(uint8_t *out, float step)
{
    put_half(out, step);
    return f16_to_f32(f32_to_f16(step));
}

static void block_q8_0(const float *x, uint8_t *out)
{
    float step = put_step(out, fabsf(extreme(x, 32)) / 127);

    for (size_t i = 0; i < 32; i++)
        out[2 + i] = (uint8_t)(int8_t)quantum(x[i], step, -127, 127);
}

static void block_q4_0(const float *x, uint8_t *out)
{
    float step = put_step(out, extreme(x, 32) / -8);

    for (size_t i = 0; i < 16; i++)
        out[2 + i] = (uint8_t)((quantum(x[i], step, -8, 7) + 8) | (quantum(x[i + 16], step, -8, 7) + 8) << 4);
}

static void block_q5_0(const float *x, uint8_t *out)
{
    float step = put_step(out, extreme(x, 32) / -16);
    uint32_t high = 0;

    for (size_t i = 0; i < 16; i++) {
        unsigned a = (unsigned)(quantum(x[i], step, -16, 15) + 16);
        unsigned b = (unsigned)(quantum(x[i + 16], step, -16, 15) + 16);

        out[6 + i] = (uint8_t)((a & 15) | (b & 15) << 4);
        high |= a >> 4 << i | b >> 4 << (i + 16);
    }
    memcpy(out + 2, &high, sizeof(high));
}

static void block_q6_k(const float *x, uint8_t *out)
{
    float steps[16], whole, step;

    memset(out, 0, 210);
    for (size_t s = 0; s < 16; s++)
        steps[s] = extreme(x + 16 * s, 16) / -32;
    whole = put_step(out + 208, extreme(steps, 16) / -128);
    for (size_t s = 0; s < 16; s++)
        out[192 + s] = (uint8_t)(int8_t)quantum(steps[s], whole, -128, 127);
    for (size_t i = 0; i < 256; i++) {
        size_t half = i / 128, l = i % 32, quarter = i % 128 / 32;
        unsigned q;

        step = whole * (float)(int8_t)out[192 + i / 16];
        q = (unsigned)(quantum(x[i], step, -32, 31) + 32);
        out[64 * half + l + quarter % 2 * 32] |= (uint8_t)((q & 15) << (quarter / 2 * 4));
        out[128 + 32 * half + l] |= (uint8_t)(q >> 4 << (2 * quarter));
    }
}

static uint16_t to_bf16(float f)
{
    union { float f; uint32_t u; } v = { .f = f };

    return (uint16_t)((v.u + 0x7fff + (v.u >> 16 & 1)) >> 16);       /* to nearest, ties to even; f is finite */
}

size_t pack_floats(enum tensor_type type, const float *x, size_t n, uint8_t *out)
{
    static const struct {
        enum tensor_type type;
        size_t block, bytes;
        void (*fn)(const float *x, uint8_t *out);
    } blocks[] = {
        { TENSOR_Q8_0, 32, 34, block_q8_0 }, { TENSOR_Q6_K, 256, 210, block_q6_k },
        { TENSOR_Q5_0, 32, 22, block_q5_0 }, { TENSOR_Q4_0, 32, 18, block_q4_0 },
    };

    for (size_t b = 0; b < ARRAY_SIZE(blocks); b++)
        if (blocks[b].type == type) {
            for (size_t i = 0; i < n / blocks[b].block; i++)
                blocks[b].fn(x + i * blocks[b].block, out + i * blocks[b].bytes);
            return n / blocks[b].block * blocks[b].bytes;
        }
    if (type == TENSOR_F32) {
        memcpy(out, x, 4 * n);
        return 4 * n;
    }
    for (size_t i = 0; i < n; i++) {
        uint16_t h = type == TENSOR_F16 ? f32_to_f16(x[i]) : to_bf16(x[i]);

        memcpy(out + 2 * i, &h, sizeof(h));
    }
    return 2 * n;
}
