/* tern-model synth: a model of a known shape with random weights, for tests and benchmarks.
 *
 * Each tensor's numbers come from its own generator, xoshiro256** seeded by splitmix64 from the seed and the
 * tensor's name, so that the same seed gives the same trits and floats whatever the types they are written in. A row
 * is made, packed and written before the next, so memory does not grow with the model. Scales are exact in 16 bits;
 * they and the norms keep activations near one, so that logits are a few units wide. Shapes: bitnet.md 1.3 to 1.6
 * and, from 125m to 100b where nothing else is said, the dummy shapes of 5.1. */
#include "model/tool.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include "engine/gguf_write.h"
#include "model/pack.h"

struct shape {
    const char *name, *arch;
    size_t n_embd, n_ff, n_layer, n_head, n_kv, head_dim, n_vocab, n_ctx;
    float rope_base, eps;
    bool tied;
};

static const struct shape shapes[] = {
    { "tiny",       "bitnet-b1.58", 256,  768,   2,  4,  2,  64,  512,    256,   500000,  1e-5f, true  },
    { "125m",       "bitnet",       768,  3072,  11, 12, 12, 64,  32002,  2048,  10000,   1e-5f, true  },
    { "350m",       "bitnet",       1024, 3072,  24, 16, 16, 64,  32002,  2048,  10000,   1e-5f, true  },
    { "1b",         "bitnet",       2048, 3584,  24, 32, 32, 64,  32002,  2048,  10000,   1e-5f, true  },
    { "1.5b",       "bitnet",       1536, 9216,  28, 32, 32, 48,  32002,  2048,  10000,   1e-5f, true  },
    { "2b4t",       "bitnet-b1.58", 2560, 6912,  30, 20, 5,  128, 128256, 4096,  500000,  1e-5f, true  },
    { "large",      "bitnet",       1536, 4096,  24, 16, 16, 96,  32002,  2048,  10000,   1e-5f, true  },
    { "3b",         "bitnet",       3200, 8640,  26, 32, 32, 100, 32002,  2048,  10000,   1e-5f, true  },
    { "falcon3-1b", "llama",        2048, 8192,  18, 8,  4,  256, 131072, 8192,  1000042, 1e-6f, false },
    { "falcon3-3b", "llama",        3072, 9216,  22, 12, 4,  256, 131072, 32768, 1000042, 1e-6f, false },
    { "falcon3-7b", "llama",        3072, 23040, 28, 12, 4,  256, 131072, 32768, 1000042, 1e-6f, false },
    { "falcon3-10b", "llama",       3072, 23040, 40, 12, 4,  256, 131072, 32768, 1000042, 1e-6f, false },
    { "llama3-8b",  "llama",        4096, 14336, 32, 32, 8,  128, 128256, 8192,  500000,  1e-5f, false },
    { "7b",         "bitnet",       4096, 12032, 32, 32, 32, 128, 32002,  2048,  10000,   1e-5f, true  },
    { "13b",        "bitnet",       5120, 13824, 40, 40, 40, 128, 32002,  2048,  10000,   1e-5f, true  },
    { "30b",        "bitnet",       6656, 16384, 60, 52, 52, 128, 32002,  2048,  10000,   1e-5f, true  },
    { "70b",        "bitnet",       8192, 24576, 80, 64, 64, 128, 32002,  2048,  10000,   1e-5f, true  },
    { "100b",       "bitnet",       8192, 45568, 72, 64, 64, 128, 32002,  2048,  10000,   1e-5f, true  },
};

struct synth {
    struct shape shape;
    enum tensor_type type, embedding;
    uint64_t seed;
    struct gguf_writer *w;
    uint64_t done;                  /* elements written */
    uint64_t total;
    struct progress progress;
    struct err *err;
};

/* ---- random numbers --------------------------------------------------------------------------------------------- */

struct random { uint64_t s[4]; };

static uint64_t splitmix64(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static void random_init(struct random *r, uint64_t seed, const char *name)
{
    uint64_t h = 0xcbf29ce484222325;         /* FNV-1a */

    for (; *name; name++)
        h = (h ^ (uint8_t)*name) * 0x100000001b3;
    seed ^= h;
    for (size_t i = 0; i < 4; i++)
        r->s[i] = splitmix64(&seed);
}

/* xoshiro256**, Blackman and Vigna. */
static uint64_t random_next(struct random *r)
{
    uint64_t *s = r->s, x = s[1] * 5, t = s[1] << 17;

    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = s[3] << 45 | s[3] >> 19;
    return (x << 7 | x >> 57) * 9;
}

/* Every trit with a third's chance: five are the digits of a byte below 243; other bytes are passed over. */
static void random_trits(struct random *r, int8_t *t, size_t n)
{
    static int8_t digits[243][5];
    size_t i = 0;

    if (!digits[0][0])
        for (size_t b = 0; b < 243; b++)
            for (size_t k = 0, q = b; k < 5; k++, q /= 3)
                digits[b][k] = (int8_t)(q % 3) - 1;
    while (i < n) {
        uint64_t bits = random_next(r);

        for (size_t b = 0; b < 8 && i < n; b++, bits >>= 8)
            if ((bits & 255) < 243) {
                size_t k = MIN(5, n - i);

                memcpy(t + i, digits[bits & 255], k);
                i += k;
            }
    }
}

/* Nearly normal: the sum of four uniform numbers, brought to variance 1. */
static float random_normal(struct random *r)
{
    uint64_t bits = random_next(r);
    int sum = (int)(bits & 0xffff) + (int)(bits >> 16 & 0xffff) + (int)(bits >> 32 & 0xffff) + (int)(bits >> 48);

    return (float)(sum - 131070) * (1.7320508f / 65536);
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

static float exact_half(float f)
{
    return f16_to_f32(f32_to_f16(f));
}

static void advance(struct synth *s, size_t elements)
{
    s->done += elements;
    progress_show(&s->progress, (double)s->done / (double)s->total, "");
}

/* Rows of `cols` trits of variance 2/3 give outputs of variance 1. */
static int write_ternary(struct synth *s, const char *name, size_t cols, size_t rows)
{
    cleanup(freep) uint8_t *out = NULL;
    cleanup(freep) int8_t *t = malloc(cols);
    struct random random;
    struct packer p;
    int r;

    r = packer_init(&p, name, s->type, cols, rows, exact_half(1 / sqrtf((float)cols * 2 / 3)), NULL, s->err);
    if (r < 0)
        return r;
    out = malloc(packer_room(&p));
    if (!t || !out)
        return -ENOMEM;
    random_init(&random, s->seed, name);
    for (size_t row = 0; row < rows; row++) {
        random_trits(&random, t, cols);
        r = gguf_write_data(s->w, out, pack_row(&p, t, out), s->err);
        if (r < 0)
            return r;
        advance(s, cols);
    }
    return 0;
}

/* A final norm of rows of this spread gives logits two and a half wide. */
static int write_embedding(struct synth *s, const char *name, size_t cols, size_t rows)
{
    cleanup(freep) float *x = malloc(cols * sizeof(*x));
    cleanup(freep) uint8_t *out = malloc(cols * 4);
    float spread = 2.5f / sqrtf((float)cols);
    struct random random;

    if (!x || !out)
        return -ENOMEM;
    random_init(&random, s->seed, name);
    for (size_t row = 0; row < rows; row++) {
        int r;

        for (size_t c = 0; c < cols; c++)
            x[c] = exact_half(random_normal(&random) * spread);
        r = gguf_write_data(s->w, out, pack_floats(s->embedding, x, cols, out), s->err);
        if (r < 0)
            return r;
        advance(s, cols);
    }
    return 0;
}

static int write_norm(struct synth *s, const char *name, size_t n, size_t rows)
{
    cleanup(freep) float *x = malloc(n * sizeof(*x));
    struct random random;

    if (!x)
        return -ENOMEM;
    random_init(&random, s->seed, name);
    for (size_t i = 0; i < n; i++)
        x[i] = 0.5f + (float)(random_next(&random) >> 54) / 1024;
    return gguf_write_data(s->w, x, n * sizeof(*x), s->err);
}


struct kind {
    const char *name;
    size_t cols, rows;
    int (*write)(struct synth *s, const char *name, size_t cols, size_t rows);
    bool absent;
};

/* Declare, or else write, all tensors in the file's order. */
static int each_tensor(struct synth *s, bool declare)
{
    const struct shape *h = &s->shape;
    size_t attn = h->n_head * h->head_dim, kv = h->n_kv * h->head_dim;
    bool sub_norms = strcmp(h->arch, "llama");
    const struct kind layer[] = {
        { "attn_norm", h->n_embd, 1, write_norm, false },     { "ffn_norm", h->n_embd, 1, write_norm, false },
        { "attn_sub_norm", attn, 1, write_norm, !sub_norms }, { "ffn_sub_norm", h->n_ff, 1, write_norm, !sub_norms },
        { "attn_q", h->n_embd, attn, write_ternary, false },  { "attn_k", h->n_embd, kv, write_ternary, false },
        { "attn_v", h->n_embd, kv, write_ternary, false },    { "attn_output", attn, h->n_embd, write_ternary, false },
        { "ffn_gate", h->n_embd, h->n_ff, write_ternary, false },
        { "ffn_up", h->n_embd, h->n_ff, write_ternary, false },
        { "ffn_down", h->n_ff, h->n_embd, write_ternary, false },
    };
    const struct kind ends[] = {
        { "token_embd", h->n_embd, h->n_vocab, write_embedding, false },
        { "output_norm", h->n_embd, 1, write_norm, false },
        { "output", h->n_embd, h->n_vocab, write_embedding, h->tied },
    };
    char name[64];
    int r;

    for (size_t i = 0; i < ARRAY_SIZE(ends) + h->n_layer * ARRAY_SIZE(layer); i++) {
        size_t k = i - ARRAY_SIZE(ends);
        const struct kind *kind = i < ARRAY_SIZE(ends) ? &ends[i] : &layer[k % ARRAY_SIZE(layer)];

        if (kind->absent)
            continue;
        if (i < ARRAY_SIZE(ends))
            snprintf(name, sizeof(name), "%s.weight", kind->name);
        else
            snprintf(name, sizeof(name), "blk.%zu.%s.weight", k / ARRAY_SIZE(layer), kind->name);
        if (declare) {
            gguf_write_tensor(s->w, name, kind->write == write_norm ? TENSOR_F32 : kind->write == write_embedding
                              ? s->embedding
                              : s->type, kind->cols, kind->rows);
            s->total += kind->cols * kind->rows;
            continue;
        }
        r = kind->write(s, name, kind->cols, kind->rows);
        if (r < 0)
            return r;
    }
    return 0;
}

/* ---- keys ------------------------------------------------------------------------------------------------------- */

/* A byte in GPT-2's alphabet: itself where that prints, else the next free code point from U+0100 on. */
static void byte_token(unsigned byte, char out[4])
{
    unsigned code = byte, n = 0;

    for (unsigned b = 0; b <= byte; b++) {
        bool prints = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b != 0xad);

        if (b == byte && !prints)
            code = 0x100 + n;
        n += !prints;
    }
    if (code < 0x80)
        snprintf(out, 4, "%c", (char)code);
    else
        snprintf(out, 4, "%c%c", (char)(0xc0 | code >> 6), (char)(0x80 | (code & 0x3f)));
}

/* 256 bytes, one merge, the control tokens, and reserved ones up to the vocabulary's size. */
static void write_vocabulary(struct gguf_writer *w, size_t n_vocab)
{
    static const char *const named[] = { "\xc4\xa0t", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>" };
    size_t first = n_vocab >= 128256 ? 128000 : 257;          /* of the control tokens, where Llama 3 has them */
    char token[40];

    gguf_write_string(w, "tokenizer.ggml.model", "gpt2");
    gguf_write_string(w, "tokenizer.ggml.pre", "llama-bpe");
    gguf_write_array(w, "tokenizer.ggml.tokens", GGUF_STRING, n_vocab);
    for (size_t i = 0; i < n_vocab; i++) {
        if (i < 256)
            byte_token((unsigned)i, token);
        else if (i == 256 || (i >= first && i < first + 3))
            snprintf(token, sizeof(token), "%s", named[i == 256 ? 0 : i - first + 1]);
        else
            snprintf(token, sizeof(token), "<|reserved_%zu|>", i);
        gguf_write_item_string(w, token);
    }
    gguf_write_array(w, "tokenizer.ggml.token_type", GGUF_I32, n_vocab);
    for (size_t i = 0; i < n_vocab; i++)
        gguf_write_item_i32(w, i < 257 ? 1 : 3);
    gguf_write_array(w, "tokenizer.ggml.merges", GGUF_STRING, 1);
    gguf_write_item_string(w, "\xc4\xa0 t");
    gguf_write_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)first);
    gguf_write_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)first + 1);
    gguf_write_u32(w, "tokenizer.ggml.padding_token_id", (uint32_t)first + 1);
    gguf_write_u32(w, "tokenizer.ggml.eot_token_id", (uint32_t)first + 2);
    gguf_write_bool(w, "tokenizer.ggml.add_bos_token", true);
}

static void write_keys(const struct synth *s)
{
    const struct shape *h = &s->shape;
    const struct { const char *suffix; size_t v; } sizes[] = {
        { "vocab_size", h->n_vocab }, { "context_length", h->n_ctx }, { "embedding_length", h->n_embd },
        { "block_count", h->n_layer }, { "feed_forward_length", h->n_ff }, { "rope.dimension_count", h->head_dim },
        { "attention.head_count", h->n_head }, { "attention.head_count_kv", h->n_kv },
        { "attention.key_length", h->head_dim }, { "attention.value_length", h->head_dim },
    };
    char key[96];

    gguf_write_string(s->w, "general.architecture", h->arch);
    snprintf(key, sizeof(key), "synth-%s-%llu", h->name, (unsigned long long)s->seed);
    gguf_write_string(s->w, "general.name", key);
    gguf_write_u32(s->w, "general.file_type", type_file_type(s->type));
    gguf_write_u32(s->w, "general.quantization_version", 2);
    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        snprintf(key, sizeof(key), "%s.%s", h->arch, sizes[i].suffix);
        gguf_write_u32(s->w, key, (uint32_t)sizes[i].v);
    }
    snprintf(key, sizeof(key), "%s.rope.freq_base", h->arch);
    gguf_write_f32(s->w, key, h->rope_base);
    snprintf(key, sizeof(key), "%s.attention.layer_norm_rms_epsilon", h->arch);
    gguf_write_f32(s->w, key, h->eps);
    write_vocabulary(s->w, h->n_vocab);
}

/* ---- the verb --------------------------------------------------------------------------------------------------- */

static int synth_write(struct synth *s, const char *path)
{
    cleanup(gguf_writer_freep) struct gguf_writer *w = NULL;
    int r = gguf_writer_new(&w);

    if (r < 0)
        return r;
    s->w = w;
    write_keys(s);
    each_tensor(s, true);
    r = gguf_writer_begin(w, path, s->err);
    if (r < 0)
        return r;
    progress_begin(&s->progress, "writing");
    r = each_tensor(s, false);
    progress_end(&s->progress);
    return r < 0 ? r : gguf_writer_end(w, s->err);
}

static int find_shape(const char *name, struct shape *ret)
{
    for (size_t i = 0; i < ARRAY_SIZE(shapes); i++)
        if (!strcasecmp(shapes[i].name, name)) {
            *ret = shapes[i];
            return 0;
        }
    return usage_error(&synth_verb, "unknown shape '%s'; --help lists them", name);
}

static int find_architecture(const char *name, struct shape *ret)
{
    static const char *const names[] = { "bitnet-b1.58", "bitnet-25", "bitnet", "llama" };

    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (!strcmp(names[i], name)) {
            ret->arch = names[i];
            return 0;
        }
    return usage_error(&synth_verb, "unknown architecture '%s'; made are bitnet-b1.58, bitnet-25, bitnet and llama",
                       name);
}

static int synth_run(int argc, char **argv)
{
    static const struct option options[] = {
        { "shape", required_argument, NULL, 's' },  { "type", required_argument, NULL, 't' },
        { "embedding", required_argument, NULL, 'e' }, { "seed", required_argument, NULL, 'S' },
        { "vocab", required_argument, NULL, 'v' },  { "layers", required_argument, NULL, 'l' },
        { "architecture", required_argument, NULL, 'a' }, { 0 },
    };
    uint64_t vocab = 0, layers = 0;
    struct err err = {0};
    struct synth s = { .type = TENSOR_I2_S, .embedding = TENSOR_F16, .err = &err };
    const char *arch = NULL;
    int opt, r;

    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (opt) {
        case 's': if (find_shape(optarg, &s.shape)) return TOOL_USAGE; break;
        case 't':
            if (type_find(optarg, &s.type) || !type_is_ternary(s.type))
                return usage_error(&synth_verb, "--type %s is not a ternary type", optarg);
            break;
        case 'e':
            if (type_find(optarg, &s.embedding) || !type_is_dense(s.embedding))
                return usage_error(&synth_verb, "--embedding %s is not a type for embeddings", optarg);
            break;
        case 'S':
            if (parse_number(optarg, 0, UINT64_MAX, &s.seed))
                return usage_error(&synth_verb, "--seed takes a whole number");
            break;
        case 'v':
            if (parse_number(optarg, 260, 1 << 20, &vocab))
                return usage_error(&synth_verb, "--vocab takes a number from 260 to 1048576");
            break;
        case 'l':
            if (parse_number(optarg, 1, 256, &layers))
                return usage_error(&synth_verb, "--layers takes a number from 1 to 256");
            break;
        case 'a': arch = optarg; break;
        default: return usage_error(&synth_verb, "unknown option");
        }
    }
    if (!s.shape.name || optind + 1 != argc)
        return usage_error(&synth_verb, "expected --shape and one file to write");
    if (arch && find_architecture(arch, &s.shape))
        return TOOL_USAGE;
    if (vocab)
        s.shape.n_vocab = vocab;
    if (layers)
        s.shape.n_layer = layers;
    r = synth_write(&s, argv[optind]);
    return r < 0 ? failure(r, &err) : TOOL_OK;
}

const struct verb synth_verb = {
    .name = "synth", .arguments = "--shape SHAPE [OPTIONS] OUT", .summary = "Write a model with random ternary weights",
    .help = "\n  --shape SHAPE        tiny, 125m, 350m, 1b, 1.5b, 2b4t, large, 3b, falcon3-1b, falcon3-3b, falcon3-7b,\n"
            "                       falcon3-10b, llama3-8b, 7b, 13b, 30b, 70b or 100b\n"
            "  --type TYPE          i2_s (default), tq1_0, tq2_0, iq1_bn or iq2_bn\n"
            "  --embedding TYPE     f32, f16 (default), bf16, q8_0, q6_k, q5_0 or q4_0\n"
            "  --seed N             another N, other weights (default 0); every --type holds the same\n"
            "  --vocab N            so many tokens instead of the shape's own\n"
            "  --layers N           so many layers instead of the shape's own\n"
            "  --architecture NAME  bitnet-b1.58, bitnet-25, bitnet or llama instead of the shape's own\n",
    .run = synth_run,
};
