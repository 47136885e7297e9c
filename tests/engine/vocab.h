/* Vocabularies for tests: GGUF files without tensors, made in memory, also one from Llama 3's published ranks. */
#pragma once

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "engine/internal.h"

struct vocab_file { struct buf kv; uint64_t n_kv; struct buf file; };

static inline void vocab_file_init(struct vocab_file *v)
{
    v->n_kv = 0;
    buf_init(&v->kv, 64u << 20);
    buf_init(&v->file, 64u << 20);
}

static inline void vocab_file_done(struct vocab_file *v)
{
    buf_done(&v->kv);
    buf_done(&v->file);
}

static inline void put(struct buf *b, const void *data, size_t len)
{
    if (buf_append(b, data, len) < 0)
        abort();
}

static inline void put_string(struct buf *b, const char *s, size_t len)
{
    uint64_t n = len;
    put(b, &n, 8);
    put(b, s, len);
}

static inline void put_key(struct vocab_file *v, const char *key, uint32_t type)
{
    put_string(&v->kv, key, strlen(key));
    put(&v->kv, &type, 4);
    v->n_kv++;
}

static inline void put_array(struct vocab_file *v, const char *key, uint32_t type, uint64_t n)
{
    put_key(v, key, GGUF_ARRAY);
    put(&v->kv, &type, 4);
    put(&v->kv, &n, 8);
}

static inline void vocab_u32(struct vocab_file *v, const char *key, uint32_t value)
{
    put_key(v, key, GGUF_U32);
    put(&v->kv, &value, 4);
}

static inline void vocab_bool(struct vocab_file *v, const char *key, bool value)
{
    put_key(v, key, GGUF_BOOL);
    put(&v->kv, &value, 1);
}

static inline void vocab_text(struct vocab_file *v, const char *key, const char *value)
{
    put_key(v, key, GGUF_STRING);
    put_string(&v->kv, value, strlen(value));
}

static inline void vocab_texts(struct vocab_file *v, const char *key, const char *const *s, size_t n)
{
    put_array(v, key, GGUF_STRING, n);
    for (size_t i = 0; i < n; i++)
        put_string(&v->kv, s[i], strlen(s[i]));
}

static inline void vocab_i32s(struct vocab_file *v, const char *key, const int32_t *x, size_t n)
{
    put_array(v, key, GGUF_I32, n);
    put(&v->kv, x, 4 * n);
}

static inline void vocab_f32s(struct vocab_file *v, const char *key, const float *x, size_t n)
{
    put_array(v, key, GGUF_F32, n);
    put(&v->kv, x, 4 * n);
}

/* Load what was put; the result of tokenizer_new(). */
static inline int vocab_load(struct vocab_file *v, struct tokenizer **ret, struct err *err)
{
    struct { char magic[4]; uint32_t version; uint64_t n_tensors, n_kv; } head = { "GGUF", 3, 0, v->n_kv };
    struct gguf *g;
    int r;

    memcpy(head.magic, "GGUF", 4);
    put(&v->file, &head, sizeof(head));
    put(&v->file, v->kv.data, v->kv.len);
    r = gguf_open(&g, v->file.data, v->file.len, err);
    if (r < 0)
        return r;
    r = tokenizer_new(ret, g, err);
    gguf_free(g);
    return r;
}

/* The whole of $TERN_SHARED/path, or false where there is none. */
static inline bool shared_read(const char *path, struct buf *ret)
{
    const char *shared = getenv("TERN_SHARED");
    char name[4096], chunk[65536];
    FILE *f;
    size_t n;

    snprintf(name, sizeof(name), "%s/%s", shared ? shared : ".", path);
    f = fopen(name, "rb");
    if (!f)
        return false;
    buf_init(ret, 64u << 20);
    while ((n = fread(chunk, 1, sizeof(chunk), f)) > 0)
        put(ret, chunk, n);
    fclose(f);
    return true;
}

static inline struct tokenizer *vocab_from_gguf(const char *path)
{
    struct tokenizer *t = NULL;
    struct err err = { "" };
    struct buf file;
    struct gguf *g;

    if (!shared_read(path, &file))
        return NULL;
    cr_assert_eq(gguf_open(&g, file.data, file.len, &err), 0, "%s", err.msg);
    cr_assert_eq(tokenizer_new(&t, g, &err), 0, "%s", err.msg);
    gguf_free(g);
    buf_done(&file);                  /* the tokenizer has copied what it needs */
    return t;
}

/* A byte in GPT-2's alphabet, as UTF-8. */
static inline void put_mapped(struct buf *b, const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        unsigned byte = (uint8_t)s[i], cp = byte, next = 0x100;
        char utf8[2];

        for (unsigned x = 0; x <= byte; x++)
            if (!((x >= 0x21 && x <= 0x7e) || (x >= 0xa1 && x <= 0xac) || x >= 0xae)) {
                if (x == byte)
                    cp = next;
                next++;
            }
        utf8[0] = (char)(cp < 0x80 ? cp : 0xc0 | cp >> 6);
        utf8[1] = (char)(0x80 | (cp & 0x3f));
        put(b, utf8, cp < 0x80 ? 1 : 2);
    }
}

#define LLAMA3_RANKS 128000
#define LLAMA3_SIZE  128256

struct rank { const char *s; size_t len; };

/* Base64 to bytes in place; returns how many. */
static inline size_t unbase64(char *s, size_t len)
{
    uint32_t bits = 0, have = 0;
    size_t n = 0;

    for (size_t i = 0; i < len && s[i] != '='; i++) {
        char c = s[i];
        uint32_t v = (uint32_t)(c >= 'a' ? c - 'a' + 26 : c >= 'A' ? c - 'A' : c >= '0' ? c - '0' + 52
                                : c == '+' ? 62 : 63);
        bits = bits << 6 | v;
        have += 6;
        if (have >= 8) {
            have -= 8;
            s[n++] = (char)(bits >> have);
        }
    }
    return n;
}

static inline int rank_compare(const void *a, const void *b, void *ranks)
{
    const struct rank *all = ranks, *x = all + *(const uint32_t *)a, *y = all + *(const uint32_t *)b;
    int c = memcmp(x->s, y->s, MIN(x->len, y->len));

    return c ? c : (x->len > y->len) - (x->len < y->len);
}

static inline int64_t rank_find(const struct rank *ranks, const uint32_t *sorted, const char *s, size_t len)
{
    size_t lo = 0, hi = LLAMA3_RANKS;

    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        const struct rank *m = &ranks[sorted[mid]];
        int c = memcmp(m->s, s, MIN(m->len, len));
        c = c ? c : (m->len > len) - (m->len < len);
        if (c == 0)
            return sorted[mid];
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return -1;
}

/* Llama 3's tokenizer from its rank file: the names are the ranks, the merges every cut of a token into two tokens, in
 * the order of what they make. NULL without the file. with_pre: say which pre-tokenizer, as 2B4T's file does not. */
static inline struct tokenizer *vocab_llama3(bool with_pre, size_t *ret_merges)
{
    static struct rank ranks[LLAMA3_RANKS];
    static uint32_t sorted[LLAMA3_RANKS];
    static int32_t types[LLAMA3_SIZE];
    cleanup(vocab_file_done) struct vocab_file v = { .n_kv = 0 };
    cleanup(buf_done) struct buf text = { 0 }, merges = { 0 }, names = { 0 };
    struct tokenizer *t = NULL;
    struct err err = { "" };
    uint64_t n_merges = 0;
    char *line;

    if (!shared_read("data/tokenizers/llama3_tokenizer.model", &text))
        return NULL;
    vocab_file_init(&v);
    buf_init(&merges, 64u << 20);
    buf_init(&names, 64u << 20);
    line = (char *)text.data;
    for (uint32_t i = 0; i < LLAMA3_RANKS; i++) {
        size_t len = strcspn(line, " ");
        char *next = strchr(line, '\n') + 1;
        cr_assert_eq(strtoul(line + len, NULL, 10), i);
        ranks[i] = (struct rank){ line, unbase64(line, len) };
        sorted[i] = i;
        line = next;
    }
    qsort_r(sorted, LLAMA3_RANKS, sizeof(*sorted), rank_compare, ranks);

    for (size_t i = 0; i < LLAMA3_SIZE; i++) {
        static const char *const special[] = {
            [0] = "<|begin_of_text|>", [1] = "<|end_of_text|>", [6] = "<|start_header_id|>", [7] = "<|end_header_id|>",
            [9] = "<|eot_id|>",
        };
        cleanup(buf_done) struct buf name = { .max = 4096 };

        types[i] = i < LLAMA3_RANKS ? 1 : 3;
        if (i < LLAMA3_RANKS)
            put_mapped(&name, ranks[i].s, ranks[i].len);
        else if (i - LLAMA3_RANKS < ARRAY_SIZE(special) && special[i - LLAMA3_RANKS])
            buf_puts(&name, special[i - LLAMA3_RANKS]);
        else
            buf_printf(&name, "<|reserved_special_token_%zu|>", i);
        put_string(&names, (const char *)name.data, name.len);
        for (size_t cut = 1; i < LLAMA3_RANKS && cut < ranks[i].len; cut++) {
            cleanup(buf_done) struct buf merge = { .max = 4096 };
            if (rank_find(ranks, sorted, ranks[i].s, cut) < 0 ||
                rank_find(ranks, sorted, ranks[i].s + cut, ranks[i].len - cut) < 0)
                continue;
            put_mapped(&merge, ranks[i].s, cut);
            put(&merge, " ", 1);
            put_mapped(&merge, ranks[i].s + cut, ranks[i].len - cut);
            put_string(&merges, (const char *)merge.data, merge.len);
            n_merges++;
        }
    }
    vocab_text(&v, "tokenizer.ggml.model", "gpt2");
    if (with_pre)
        vocab_text(&v, "tokenizer.ggml.pre", "llama-bpe");
    put_array(&v, "tokenizer.ggml.tokens", GGUF_STRING, LLAMA3_SIZE);
    put(&v.kv, names.data, names.len);
    vocab_i32s(&v, "tokenizer.ggml.token_type", types, LLAMA3_SIZE);
    put_array(&v, "tokenizer.ggml.merges", GGUF_STRING, n_merges);
    put(&v.kv, merges.data, merges.len);
    vocab_u32(&v, "tokenizer.ggml.bos_token_id", 128000);
    vocab_u32(&v, "tokenizer.ggml.eos_token_id", 128001);
    cr_assert_eq(vocab_load(&v, &t, &err), 0, "%s", err.msg);
    if (ret_merges)
        *ret_merges = n_merges;
    return t;
}
