/* Malformed checkpoints of every container, each refused in words that name the tensor, key or file, at a bounded cost: the
 * files are mapped, so what may be allocated beside them is as much again. One row for each rule of the readers and each
 * peer's bug in safety.md; GGUF's own are in test_gguf.c and test_source.c.
 *
 * Where peers fell (safety.md), and the rows that try it here:
 *     llama.cpp's unchecked counts and wrapping sizes, CVE-2024-21802, -23496, CVE-2025-53630 and its bypass CVE-2026-27940
 *                                             gguf_promises; shapes of 2^64; offsets that wrap; test_gguf.c's *_wrap rows
 *     llama.cpp's signed token lengths, CVE-2025-49847          large_headers' name; test_gguf.c's string rows
 *     Ollama's tensor past the end of the file, CVE-2026-7482   "data_offsets reach past"; test_gguf.c tensor_past_the_end
 *     metadata without bound, 100,000 tensors                   header_lengths, large_headers; test_gguf.c's *_over_the_cap
 *     "<0x-1>" as a byte                                        the unk_token row; test_tokenizer.c
 *
 * The test is linked with --wrap, so that every allocation of the engine is counted. */
#include <criterion/criterion.h>
#include <errno.h>
#include <malloc.h>
#include "engine/container.h"
#include "tests/engine/gguf_write.h"
#include "tests/engine/hf_write.h"

/* ---- counting ---------------------------------------------------------------------------------------------------- */

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t each);
void *__real_realloc(void *p, size_t n);
void __real_free(void *p);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t each);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_reallocarray(void *p, size_t n, size_t each);
void __wrap_free(void *p);

static size_t live, peak;

static void *count(void *p)
{
    live += p ? malloc_usable_size(p) : 0;
    peak = MAX(peak, live);
    return p;
}

void *__wrap_malloc(size_t n) { return count(__real_malloc(n)); }
void *__wrap_calloc(size_t n, size_t each) { return count(__real_calloc(n, each)); }

void __wrap_free(void *p)
{
    size_t n = p ? malloc_usable_size(p) : 0;

    live -= MIN(n, live);
    __real_free(p);
}

void *__wrap_realloc(void *p, size_t n)
{
    size_t old = p ? malloc_usable_size(p) : 0;
    void *now = __real_realloc(p, n);

    live -= now ? MIN(old, live) : 0;
    return count(now);
}

void *__wrap_reallocarray(void *p, size_t n, size_t each)
{
    size_t bytes;

    return size_mul(&bytes, n, each) ? __wrap_realloc(p, bytes) : NULL;
}

/* What even the smallest file may cost: a token's buffer, a list of files. */
#define FLOOR (192u << 10)

static void expect_refused(struct hf *h, const char *name, const char *says)
{
    struct source *s = NULL;
    struct tokenizer *t = NULL;
    struct err err = { "" };
    size_t total, before;
    char dir[64];
    int r;

    total = hf_write(h, dir);
    before = peak = live;
    r = source_open(&s, dir, &err);
    if (!r)
        r = tokenizer_new(&t, source_keys(s), &err);
    hf_remove(h, dir);
    tokenizer_free(t);
    source_free(s);
    cr_expect_lt(r, 0, "%s is accepted", name);
    cr_expect(strstr(err.msg, says), "%s says: %s", name, err.msg);
    cr_expect_lt(peak - before, total + FLOOR, "%s: %zu bytes for files of %zu", name, peak - before, total);
}

/* ---- texts with one thing changed -------------------------------------------------------------------------------- */

#define C "config.json"
#define T "tokenizer.json"
#define H "model.safetensors"       /* its header */
#define Q "model.layers.0.self_attn.q_proj.weight"

static const struct { const char *file, *find, *put, *says; } rows[] = {
    /* safetensors: the header */
    { H, "\"BF16\",\"shape\":[8,8]", "\"BF17\",\"shape\":[8,8]", "embed_tokens.weight: its dtype" },
    { H, "\"dtype\":\"U8\",", "", Q ": its dtype" },
    { H, "\"shape\":[2,8]", "\"shape\":[2,9]", Q ": data_offsets and shape disagree" },
    { H, "\"shape\":[2,8]", "\"shape\":[0,8]", Q ": a dimension" },
    { H, "\"shape\":[2,8]", "\"shape\":[-2,8]", Q ": a dimension" },
    { H, "\"shape\":[2,8]", "\"shape\":[2.5,8]", Q ": a dimension" },
    { H, "\"shape\":[2,8]", "\"shape\":[4294967296,4294967296]", Q ": its shape is larger" },
    { H, "\"shape\":[2,8]", "\"shape\":[18446744073709551615,2]", Q ": its shape is larger" },
    { H, "\"shape\":[2,8]", "\"shape\":[18446744073709551616]", Q ": a dimension" },
    { H, "\"shape\":[2,8]", "\"shape\":[1,1,1,2,8]", Q ": has more than four" },
    { H, "\"shape\":[2,8]", "\"shape\":16", Q ": has no shape" },
    { H, "\"shape\":[2,8]", "\"shape\":[16]", Q " is U8 and no matrix" },
    { H, "[128,144]", "[128,1440]", Q ": data_offsets reach past" },
    { H, "[128,144]", "[18446744073709551600,16]", Q ": data_offsets reach past" },
    { H, "[128,144]", "[144,128]", Q ": data_offsets reach past" },
    { H, "[128,144]", "[-1,15]", Q ": data_offsets are not" },
    { H, "[128,144]", "[128]", Q ": data_offsets are not" },
    { H, "[128,144]", "[128,144,145]", Q ": data_offsets are not" },
    { H, "[128,144]", "[127,143]", Q ": overlaps" },
    { H, "[128,144]", "[0,16]", "overlaps" },
    { H, "[144,146]", "[145,147]", "q_proj.weight_scale: has a gap" },
    { H, "[162,194]", "[162,193]", "model.norm.weight: data_offsets and shape disagree" },
    { H, "\"model.norm.weight\"", "\"model.embed_tokens.weight\"", "token_embd.weight stands twice" },
    { H, "\"model.norm.weight\"", "\"norm.weight\\u0000\"", "with a NUL" },
    { H, "\"dtype\":\"U8\"", "\"dtype\":\"U8\",\"dtype\":\"U8\"", Q ": its dtype" },
    { H, "{\"__metadata__\"", "[\"__metadata__\"", "model.safetensors: byte" },
    { H, "\"pt\"}", "\"pt\xff\"}", "model.safetensors: byte" },
    { H, "\"__metadata__\":{\"format\":\"pt\"}", "\"__metadata__\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]", "32 levels" },
    { H, "\"shape\":[1]", "\"shape\":[1],\"shape\":[1]", "q_proj.weight_scale: has no shape" },
    /* safetensors: meaning */
    { H, "q_proj.weight_scale", "q_proj.weight_scales", "packed and has no weight_scale" },
    { H, "q_proj.weight_scale", "k_proj.weight_scale", "is the scale of no packed tensor" },
    { H, "\"BF16\",\"shape\":[1]", "\"U8\",\"shape\":[2]", "is not one float" },
    { H, "model.embed_tokens", "model.embed_token", "embed_tokens.weight is missing" },
    /* config.json */
    { C, "{\"arch", "{\"arch\":1,\"arch\":", C },
    { C, "\"BitNetForCausalLM\"],\"model_type\":\"bitnet\"", "\"Mamba\"],\"model_type\":\"mamba\"", "architectures" },
    { C, "\"hidden_size\":8", "\"hidden_size\":-8", "hidden_size" },
    { C, "\"hidden_size\":8", "\"hidden_size\":8.5", "hidden_size" },
    { C, "\"hidden_size\":8", "\"hidden_size\":4294967296", "hidden_size" },
    { C, "\"hidden_size\":8", "\"hidden_size\":\"8\"", "hidden_size" },
    { C, "\"hidden_size\":8", "\"hidden_size\":8,\"hidden_size\":8", "hidden_size stands twice" },
    { C, "\"hidden_size\":8,", "", "hidden_size is missing" },
    { C, "\"vocab_size\":8", "\"vocab_size\":9", "vocab_size is not the number" },
    { C, "\"rms_norm_eps\":1e-05,", "", "rms_norm_eps is missing" },
    { C, "\"rms_norm_eps\":1e-05", "\"rms_norm_eps\":1e999", "rms_norm_eps is no number" },
    { C, "\"rope_scaling\":null", "\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4}", "rope_type is nothing" },
    { C, "\"rope_scaling\":null", "\"rope_scaling\":{\"type\":\"linear\"}", "rope_scaling has no factor" },
    { C, "relu2", "tanh", "hidden_act" },
    { C, "\"eos_token_id\":5", "\"eos_token_id\":8", "eos_token_id" },
    { C, "\"eos_token_id\":5", "\"eos_token_id\":[5,-1]", "eos_token_id" },
    { C, "\"eos_token_id\":5", "\"eos_token_id\":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "eos_token_id" },
    { C, "\"bos_token_id\":6", "\"bos_token_id\":4294967295", "bos_token_id" },
    { C, "\"quant_method\":\"bitnet\"", "\"quant_method\":\"gptq\"", "quant_method" },
    { C, "\"quant_method\":\"bitnet\",", "", "quant_method is missing" },
    { C, "\"autobitlinear\"", "\"bitlineal\"", "linear_class" },
    { C, "\"offline\"", "\"sideways\"", "quantization_mode" },
    { C, "\"offline\"", "\"online\"", Q },
    { C, "[\"lm_head\"]", "[\"layers.0\"]", "modules_to_not_convert" },
    { C, "[\"lm_head\"]", "[7]", "modules_to_not_convert" },
    { C, "\"kv_bits\":4", "\"kv_bits\":\"4\"", "tern.kv_bits" },
    { C, "\"kv_bits\":4", "\"kv_bots\":4", "kv_bots" },
    { C, "\"tie_word_embeddings\":true", "\"tie_word_embeddings\":1", "tie_word_embeddings" },
    /* tokenizer.json */
    { T, "\"type\":\"BPE\"", "\"type\":\"Unigram\"", "model.type" },
    { T, "\"vocab\":{", "\"vocab\":7,\"w\":{", "model.vocab" },
    { T, "\"merges\":[", "\"merges\":7,\"w\":[", "model.merges" },
    { T, "\"a\":0", "\"a\":-1", "\"a\"" },
    { T, "\"a\":0", "\"a\":1", "id 1 " },
    { T, "\"a\":0", "\"a\":8", "highest id, 8" },
    { T, "\"a\":0", "\"a\":4294967296", "\"a\"" },
    { T, "\"id\":6", "\"id\":4000000", "4000000" },
    { T, "\"id\":6,", "", "added_tokens" },
    { T, "\"special\":true", "\"special\":3", "special" },
    { T, "\"a b\"", "\"ab\"", "entry 0 of model.merges" },
    { T, "\"a b\"", "[\"a\"]", "entry 0 of model.merges" },
    { T, "\"a b\"", "[\"a\",\"b\",\"c\"]", "entry 0 of model.merges" },
    { T, "\"a b\"", "[\"a\",7]", "entry 0 of model.merges" },
    { T, "\"a b\"", "[\"a \",\"b\"]", "entry 0 of model.merges" },
    { T, "\"a b\"", "\"a zz\"", "tokenizer.ggml.merges" },
    { T, "\"normalizer\":null", "\"normalizer\":{\"type\":\"Lowercase\"}", "normalizer" },
    { T, "\"type\":\"ByteLevel\"", "\"type\":\"Whitespace\"", "pre_tokenizer" },
    { T, "\"add_prefix_space\":false", "\"add_prefix_space\":true", "add_prefix_space" },
    { T, "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}", "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a+)+$\"}}", "pattern" },
    { T, "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}", "null", "pre_tokenizer is missing" },
    { T, "\"type\":\"BPE\"", "\"type\":\"BPE\",\"byte_fallback\":true", "SentencePiece" },
    { T, "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"model\":{\"type\":\"BPE\",",
         "\"pre_tokenizer\":{\"type\":\"Metaspace\"},\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"unk_token\":\"<0x-1>\",", "unk_token" },
    { T, "\\u0120\":4", "\\ud800\":4", "tokenizer.json: byte" },
    { T, "{\"added", "{\"added_tokens\":[],\"added", "stands twice" },
};

Test(hostile, one_thing_changed)
{
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        cleanup(hf_done) struct hf h;
        char name[32];

        hf_init(&h);
        snprintf(name, sizeof(name), "row %zu", i);
        if (strcmp(rows[i].file, H)) {
            cr_assert(hf_replace(hf_file(&h, rows[i].file), rows[i].find, rows[i].put), "%s", name);
        } else {
            cleanup(buf_done) struct buf header = { .max = 1 << 16 };

            hf_put(&header, hf_header, sizeof(hf_header) - 1);
            cr_assert(hf_replace(&header, rows[i].find, rows[i].put), "%s", name);
            hf_weights(hf_file(&h, H), (char *)header.data, HF_DATA);
        }
        expect_refused(&h, name, rows[i].says);
    }
}

/* The good directory is one: else the rows above would prove nothing. */
Test(hostile, nothing_changed)
{
    cleanup(hf_done) struct hf h;
    struct source *s = NULL;
    struct err err = { "" };
    char dir[64];

    hf_init(&h);
    hf_write(&h, dir);
    cr_expect_eq(source_open(&s, dir, &err), 0, "%s", err.msg);
    hf_remove(&h, dir);
    source_free(s);
}

/* ---- lengths that lie, files that are cut ------------------------------------------------------------------------ */

Test(hostile, header_lengths)
{
    static const uint64_t lengths[] = { 0, 1, (100u << 20) + 1, UINT32_MAX, UINT64_MAX, UINT64_MAX - 7, 1ull << 63, 4000 };

    for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        cleanup(hf_done) struct hf h;

        hf_init(&h);
        memcpy(hf_file(&h, H)->data, &lengths[i], 8);
        expect_refused(&h, "a header's length", "a header of");
    }
}

/* A header of more than 100 MB that is really there: a file of holes. */
Test(hostile, header_over_the_cap)
{
    cleanup(hf_done) struct hf h;
    struct source *s = NULL;
    struct err err = { "" };
    char dir[64], path[128];

    hf_init(&h);
    memcpy(hf_file(&h, H)->data, &(uint64_t){ (100u << 20) + 1 }, 8);
    hf_write(&h, dir);
    snprintf(path, sizeof(path), "%s/%s", dir, H);
    cr_assert_eq(truncate(path, 101 << 20), 0);
    cr_expect_eq(source_open(&s, dir, &err), -EINVAL);
    cr_expect(strstr(err.msg, "a header of"), "%s", err.msg);
    hf_remove(&h, dir);
}

Test(hostile, scales)
{
    static const float scales[] = { 0, -1, __builtin_inff(), __builtin_nanf("") };

    for (size_t i = 0; i < ARRAY_SIZE(scales); i++) {
        cleanup(hf_done) struct hf h;
        union { float f; uint32_t u; } v = { .f = scales[i] };
        uint8_t *data;

        hf_init(&h);
        data = hf_file(&h, H)->data + hf_file(&h, H)->len - HF_DATA;
        memcpy(data + 144, &(uint16_t){ (uint16_t)(v.u >> 16) }, 2);
        expect_refused(&h, "a scale", "q_proj.weight_scale is not a finite positive number");
    }
}

Test(hostile, every_cut)
{
    cleanup(hf_done) struct hf whole;

    hf_init(&whole);
    for (size_t f = 0; f < whole.n; f++)
        for (size_t len = 1; len < whole.files[f].text.len; len += len < 16 ? 1 : 13) {
            cleanup(hf_done) struct hf h;

            hf_init(&h);
            h.files[f].text.len = len;
            expect_refused(&h, whole.files[f].name, whole.files[f].name);
        }
}

/* Bytes flipped anywhere: read or refused, never outside the file (under the address sanitizer). */
Test(hostile, every_change)
{
    static const uint8_t with[] = { 0, 0xff, '"', '{', ']', '9', ',' };

    for (size_t i = 0; i < 3000; i++) {
        cleanup(hf_done) struct hf h;
        struct source *s = NULL;
        char dir[64];
        struct buf *b;

        hf_init(&h);
        b = &h.files[i % h.n].text;
        b->data[(i * 2654435761u >> 3) % b->len] = with[i % ARRAY_SIZE(with)];
        hf_write(&h, dir);
        source_open(&s, dir, NULL);
        hf_remove(&h, dir);
        source_free(s);
    }
}

/* ---- much of something ------------------------------------------------------------------------------------------- */

static void put_many(struct buf *b, const char *fmt, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (buf_printf(b, fmt, i) < 0)
            abort();
}

/* A safetensors header of megabytes: of nothing, of tensors, of one name. */
Test(hostile, large_headers)
{
    static const struct { const char *begin, *each, *end, *says; size_t n; } larges[] = {
        { "{\"__metadata__\":[0", ",0", "]", "model.safetensors: byte", 2000000 },
        { "{\"__metadata__\":[0", ",[]", "]}x", "model.safetensors: byte", 1500000 },
        { "{\"__metadata__\":{}", ",\"t%zu\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}", "}", "more than 4,096", 100000 },
        { "{\"__metadata__\":{}", ",\"t%zu\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}", "}", "overlaps", 4000 },
        { "{\"", "a", "\":{\"dtype\":\"U8\",\"shape\":[194],\"data_offsets\":[0,194]}}", "253 bytes", 4000000 },
        { "{\"t\":{\"shape\":[1", ",1", "],\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", "more than four", 2000000 },
    };

    for (size_t i = 0; i < ARRAY_SIZE(larges); i++) {
        cleanup(hf_done) struct hf h;
        cleanup(buf_done) struct buf header = { .max = 1u << 27 };

        hf_init(&h);
        hf_put(&header, larges[i].begin, strlen(larges[i].begin));
        put_many(&header, larges[i].each, larges[i].n);
        hf_put(&header, larges[i].end, strlen(larges[i].end));
        hf_weights(hf_file(&h, H), (char *)header.data, HF_DATA);
        expect_refused(&h, larges[i].each, larges[i].says);
    }
}

/* A tokenizer.json of megabytes, refused at its very end. */
Test(hostile, large_vocabularies)
{
    static const struct { const char *find, *begin, *each, *says; size_t n; } larges[] = {
        { "\"a\":0", "\"a\":0", ",\"t%zu\":9", "highest id", 500000 },
        { "\"a\":0", "\"a\":0", ",\"t%zu\":7", "also another token's", 500000 },
        { "\"a b\"", "\"a b\"", ",\"a b\",\"ab\"", "entry 2 of model.merges", 300000 },
        { "{\"added_tokens\":[", "{\"added_tokens\":[", "{\"id\":7,\"content\":\"%zu\"},", "also another", 100000 },
        { "\"normalizer\":null", "\"normalizer\":[0", ",0", "", 2000000 },
    };

    for (size_t i = 0; i < ARRAY_SIZE(larges); i++) {
        cleanup(hf_done) struct hf h;
        cleanup(buf_done) struct buf text = { .max = 1u << 27 };

        hf_init(&h);
        hf_put(&text, larges[i].begin, strlen(larges[i].begin));
        put_many(&text, larges[i].each, larges[i].n);
        if (i == 4)
            hf_put(&text, "]", 1);
        hf_replace(hf_file(&h, T), larges[i].find, (char *)text.data);
        expect_refused(&h, larges[i].each, larges[i].says);
    }
}

/* Few tokens for many rows of a narrow embedding: each row would cost more than it has. */
Test(hostile, far_ids)
{
    cleanup(hf_done) struct hf h;
    char header[1024];

    hf_init(&h);
    snprintf(header, sizeof(header), "{\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[1000000,1],"
             "\"data_offsets\":[0,2000000]}}");
    hf_weights(hf_file(&h, H), header, 2000000);
    hf_replace(hf_file(&h, C), "\"vocab_size\":8", "\"vocab_size\":1000000");
    hf_replace(hf_file(&h, T), "\"id\":6", "\"id\":999999");
    expect_refused(&h, "far ids", "7 tokens for 1000000 ids");
}

/* GGUF files that promise more than they hold. */
Test(hostile, gguf_promises)
{
    for (int which = 0; which < 4; which++) {
        struct source *s = NULL;
        struct err err = { "" };
        struct gguf_writer w;
        uint8_t *file;
        size_t size, before;

        writer_init(&w);
        if (which == 0)
            write_array(&w, "x.list", GGUF_STRING, 1u << 31);
        if (which == 1)
            put_u64(write_array(&w, "x.list", GGUF_STRING, 1), UINT64_MAX - 7);
        if (which == 2)
            write_array(&w, "x.list", GGUF_F64, UINT64_MAX / 8 + 2);
        if (which == 3) {                /* many real strings, then nothing good */
            struct buf *b = write_array(&w, "x.list", GGUF_STRING, 1000600);

            for (size_t i = 0; i < 1000000; i++)
                put_string(b, "");
        }
        put(&w.data, (uint8_t[4096]){ 0 }, 4096);
        file = writer_file(&w, &size);
        before = peak = live;
        cr_expect_eq(source_open_memory(&s, file, size, &err), -EINVAL);
        cr_expect(strstr(err.msg, which == 1 || which == 3 ? "byte" : "x.list"), "%d says: %s", which, err.msg);
        cr_expect_lt(peak - before, size + FLOOR, "%d: %zu bytes for a file of %zu", which, peak - before, size);
        free(file);
        writer_done(&w);
    }
}

/* Files that are none. */
Test(hostile, no_files)
{
    static const char *const missing[] = { C, T, H };

    for (size_t i = 0; i < ARRAY_SIZE(missing); i++) {
        cleanup(hf_done) struct hf h;

        hf_init(&h);
        snprintf(h.files[i].name, sizeof(h.files[i].name), "other-%zu", i);       /* hf_init() has them in this order */
        expect_refused(&h, missing[i], missing[i]);
    }
}
