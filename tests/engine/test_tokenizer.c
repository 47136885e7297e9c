/* Tokenizers against llama.cpp's own vectors (three vocabularies), there and back for random text, hostile input, and
 * vocabularies that must be refused. */
#include <criterion/criterion.h>
#include <errno.h>
#include <time.h>

#include "tests/engine/vectors.h"

/* ---- vectors ---- */

Test(tokenizer, llama3_vectors)
{
    size_t n_merges;
    struct tokenizer *t = vocab_llama3(true, &n_merges);

    need(t);
    cr_expect_eq(n_merges, 280147);   /* as in the official 2B4T file */
    check_vectors(t, "data/tokenizers/llama-bpe.out");
    tokenizer_free(t);
}

Test(tokenizer, gpt2_vectors)
{
    struct tokenizer *t = vocab_from_gguf("data/tokenizers/ggml-vocab-gpt-2.gguf");

    need(t);
    check_vectors(t, "data/tokenizers/gpt-2.out");
    cr_expect_eq(tokenizer_bos(t), -1);
    tokenizer_free(t);
}

Test(tokenizer, spm_vectors)
{
    struct tokenizer *t = vocab_from_gguf("data/tokenizers/ggml-vocab-llama-spm.gguf");

    need(t);
    check_vectors(t, "data/tokenizers/llama-spm.out");
    cr_expect_eq(tokenizer_bos(t), 1);
    cr_expect(tokenizer_is_end(t, 2) && !tokenizer_is_end(t, 1));
    tokenizer_free(t);
}

/* 2B4T's file does not name its pre-tokenizer; the size of the vocabulary does. */
Test(tokenizer, llama3_without_pre)
{
    struct tokenizer *t = vocab_llama3(false, NULL);

    need(t);
    check_vectors(t, "data/tokenizers/llama-bpe.out");
    cr_expect_eq(tokenizer_bos(t), 128000);
    cr_expect(tokenizer_is_end(t, 128001) && tokenizer_is_end(t, 128009) && !tokenizer_is_end(t, 128000));
    tokenizer_free(t);
}

/* ---- there and back ---- */

static struct tokenizer *load(int which)
{
    return which == 0 ? vocab_llama3(true, NULL)
         : which == 1 ? vocab_from_gguf("data/tokenizers/ggml-vocab-gpt-2.gguf")
                      : vocab_from_gguf("data/tokenizers/ggml-vocab-llama-spm.gguf");
}

Test(tokenizer, round_trip)
{
    for (int which = 0; which < 3; which++) {
        struct tokenizer *t = load(which);
        need(t);
        check_round_trips(t, which == 2);
        tokenizer_free(t);
    }
}

/* ---- hostile text ---- */

Test(tokenizer, hostile_length)
{
    static const char *const units[] = { "a", " ", "\n", "!", " \n", "7", "\xff", "\u0e01", "\xf0\x9f", "'", "ab" };
    char *text = malloc(1u << 20);

    for (int which = 0; which < 3; which++) {
        struct tokenizer *t = load(which);
        need(t);
        for (size_t u = 0; u < ARRAY_SIZE(units); u++) {
            /* The first few in full; what is quadratic shows in an eighth as well. */
            const size_t size = u < 3 ? 1u << 20 : 1u << 17;
            struct tokens ids = { 0 };
            clock_t start = clock();
            for (size_t i = 0; i < size; i++)
                text[i] = units[u][i % strlen(units[u])];
            cr_assert_eq(tokenizer_encode(t, text, size, u % 2, &ids), 0);
            cr_expect_lt(clock() - start, 10 * CLOCKS_PER_SEC, "vocabulary %d, text %zu", which, u);
            cr_expect_gt(ids.len, 0);
            tokens_done(&ids);
        }
        tokenizer_free(t);
    }
    free(text);
}

/* ---- small vocabularies ---- */

static const char *const tokens[] = {
    "<unk>", "<s>", "</s>", "1", "2", "3", "4", "12", "123", "1234", "a", "b", "ab", "<", ">", "/", "s", "<|", "<|x",
    "|", "<|x|>", "<|x|>y", "x", "|>", "</", "s>", "y", "\u0120", "x|", "x|>", "<|x|>z", "<s", "z", "34",
};
static const char *const merges[] = { "1 2", "3 4", "12 3", "123 4", "a b", "< |", "<| x", "| >", "x |>" };
enum { N = ARRAY_SIZE(tokens) };

struct small {
    const char *model, *pre;
    const char *bad_merge, *bad_token;
    int32_t type_of_bad, bos;
    int n_types;
    float score;
};

static int small_load(const struct small *s, struct tokenizer **ret, struct err *err)
{
    cleanup(vocab_file_done) struct vocab_file v;
    const char *names[N + 1], *joins[ARRAY_SIZE(merges) + 1];
    int32_t types[N + 1];
    float scores[N + 1];
    size_t n = N, m = ARRAY_SIZE(merges);

    for (size_t i = 0; i < N; i++) {
        names[i] = tokens[i];
        scores[i] = (float)i;         /* SentencePiece would join anything it can */
        types[i] = i == 0 ? 2 : i == 1 || i == 2 ? 3 : i == 20 || i == 21 ? 4 : 1;
    }
    scores[3] = s->score ? s->score : 3;
    memcpy(joins, merges, sizeof(merges));
    if (s->bad_token) {
        names[n] = s->bad_token;
        types[n] = s->type_of_bad;
        scores[n++] = 0;
    }
    if (s->bad_merge)
        joins[m++] = s->bad_merge;
    vocab_file_init(&v);
    if (s->model)
        vocab_text(&v, "tokenizer.ggml.model", s->model);
    if (s->pre)
        vocab_text(&v, "tokenizer.ggml.pre", s->pre);
    vocab_texts(&v, "tokenizer.ggml.tokens", names, n);
    vocab_i32s(&v, "tokenizer.ggml.token_type", types, s->n_types ? (size_t)s->n_types : n);
    vocab_f32s(&v, "tokenizer.ggml.scores", scores, n);
    vocab_texts(&v, "tokenizer.ggml.merges", joins, m);
    vocab_bool(&v, "tokenizer.ggml.add_space_prefix", false);
    vocab_u32(&v, "tokenizer.ggml.bos_token_id", s->bos ? (uint32_t)s->bos : 1);
    vocab_u32(&v, "tokenizer.ggml.eos_token_id", 2);
    vocab_u32(&v, "tokenizer.ggml.unknown_token_id", 0);
    return vocab_load(&v, ret, err);
}

static void expect_ids(const struct tokenizer *t, const char *text, bool special, const char *want)
{
    cleanup(buf_done) struct buf got = { .max = 4096 };
    struct tokens ids = { 0 };

    cr_assert_eq(tokenizer_encode(t, text, strlen(text), special, &ids), 0);
    for (size_t i = 0; i < ids.len; i++)
        buf_printf(&got, "%s%s", i ? " " : "", tokenizer_name(t, ids.ids[i]));
    cr_expect_str_eq(got.len ? (char *)got.data : "", want, "for %s", text);
    tokens_done(&ids);
}

Test(tokenizer, digits_by_pattern)
{
    static const struct { const char *pre, *want; } cases[] = {
        { "llama-bpe", "123 4" }, { "falcon3", "123 4" }, { "falcon_e", "123 4" }, { "qwen2", "1 2 3 4" },
        /* One word; its merges go by rank. */
        { "gpt-2", "12 34" }, { NULL, "12 34" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct tokenizer *t;
        struct err err;
        cr_assert_eq(small_load(&(struct small){ .model = "gpt2", .pre = cases[i].pre }, &t, &err), 0, "%s", err.msg);
        expect_ids(t, "1234", false, cases[i].want);
        tokenizer_free(t);
    }
}

/* Text never yields a control or user token, however it is spelt; a template's text does, the longest first. */
Test(tokenizer, special_tokens)
{
    struct small forgetful;
    struct tokenizer *t;
    struct err err;

    cr_assert_eq(small_load(&(struct small){ .model = "gpt2", .pre = "llama-bpe" }, &t, &err), 0, "%s", err.msg);
    expect_ids(t, "<|x|>y", false, "<| x |> y");
    expect_ids(t, "<|x|>y", true, "<|x|>y");
    expect_ids(t, "a<|x|>za</s>", true, "a <|x|> z a </s>");
    expect_ids(t, "</s>", false, "</ s >");
    cr_expect_eq(tokenizer_find(t, "</s>"), 2);
    cr_expect_eq(tokenizer_find(t, "nothing"), -1);
    tokenizer_free(t);

    cr_assert_eq(small_load(&(struct small){ .model = "llama" }, &t, &err), 0, "%s", err.msg);
    expect_ids(t, "</s>", false, "</ s>");
    expect_ids(t, "<s>", false, "<s >");
    expect_ids(t, "<s>ab</s>", true, "<s> ab </s>");
    expect_ids(t, "a?", false, "a <unk>");
    tokenizer_free(t);

    /* A file that forgets to call its end a control token. */
    forgetful = (struct small){ .model = "llama", .bad_token = "<|eot_id|>", .type_of_bad = 1 };
    cr_assert_eq(small_load(&forgetful, &t, &err), 0);
    cr_expect(tokenizer_is_end(t, N));
    expect_ids(t, "<|eot_id|>", true, "<|eot_id|>");
    size_t len;
    tokenizer_piece(t, N, &len);
    cr_expect_eq(len, 0);
    tokenizer_free(t);
}

Test(tokenizer, refused)
{
    static const struct { struct small s; const char *word; } cases[] = {
        { { .model = NULL }, "tokenizer.ggml.model" },
        { { .model = "bert" }, "bert" },
        { { .model = "gpt2", .pre = "unheard-of" }, "unheard-of" },
        { { .model = "gpt2", .pre = "gpt-2", .bos = N }, "bos_token_id" },
        { { .model = "gpt2", .pre = "gpt-2", .bos = -1 }, "bos_token_id" },
        { { .model = "gpt2", .pre = "gpt-2", .n_types = N - 1 }, "token_type" },
        { { .model = "gpt2", .pre = "gpt-2", .bad_merge = "ab" }, "merges: entry 9" },
        { { .model = "gpt2", .pre = "gpt-2", .bad_merge = "a y" }, "merges: entry 9" },
        { { .model = "gpt2", .pre = "gpt-2", .bad_merge = "a missing" }, "merges: entry 9" },
        /* It would make a control token. */
        { { .model = "gpt2", .pre = "gpt-2", .bad_merge = "< s>" }, "merges: entry 9" },
        { { .model = "llama", .bad_token = "<0x-1>", .type_of_bad = 6 }, "entry 34" },
        { { .model = "llama", .bad_token = "<0xFFF>", .type_of_bad = 6 }, "entry 34" },
        { { .model = "llama", .bad_token = "<0xG0>", .type_of_bad = 6 }, "entry 34" },
        { { .model = "llama", .bad_token = "q", .type_of_bad = 7 }, "token_type" },
        { { .model = "llama", .bad_token = "q", .type_of_bad = 0 }, "token_type" },
        { { .model = "llama", .bad_token = "q", .type_of_bad = -1 }, "token_type" },
        { { .model = "llama", .score = NAN }, "scores" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct tokenizer *t = NULL;
        struct err err = { "" };
        cr_expect_eq(small_load(&cases[i].s, &t, &err), -EINVAL, "case %zu", i);
        cr_expect(strstr(err.msg, cases[i].word), "case %zu: %s", i, err.msg);
        cr_expect_null(t);
    }
}

Test(tokenizer, utf8_scan)
{
    static const struct { const char *s; int want; } cases[] = {
        { "a", 1 }, { "\xc2\x80", 2 }, { "\xdf\xbf", 2 }, { "\xe0\xa0\x80", 3 }, { "\xed\x9f\xbf", 3 },
        { "\xee\x80\x80", 3 }, { "\xf0\x90\x80\x80", 4 }, { "\xf4\x8f\xbf\xbf", 4 },
        { "\x80", -1 }, { "\xc0\x80", -1 }, { "\xc1\xbf", -1 },
        { "\xe0\x9f\x80", -1 }, { "\xed\xa0\x80", -1 }, { "\xf0\x8f\x80\x80", -1 }, { "\xf4\x90\x80\x80", -1 },
        { "\xf5\x80\x80\x80", -1 }, { "\xe2\x96", 0 }, { "\xf0\x9f\xa6", 0 }, { "\xe2\x28\xa1", -1 },
        { "\xf0\x9f\x28", -2 }, { "\xf0\x9f\xa6\x28", -3 }, { "\xc3", 0 }, { "\xff", -1 },
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        cr_expect_eq(utf8_scan(cases[i].s, strlen(cases[i].s), NULL), cases[i].want, "case %zu", i);
}
