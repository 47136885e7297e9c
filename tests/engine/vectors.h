/* What every vocabulary must do: llama.cpp's vectors, and random text there and back. */
#pragma once

#include "engine/utf8.h"
#include "tests/engine/vocab.h"

static inline void need(const struct tokenizer *t)
{
    if (!t) {
        fprintf(stderr, "SKIPPED: no tokenizer data under $TERN_SHARED\n");
        cr_skip_test("no tokenizer data under $TERN_SHARED");
    }
}

/* ---- vectors ---- */

static inline void check_vectors(const struct tokenizer *t, const char *out)
{
    static const char separator[] = "\n__ggml_vocab_test__\n";
    cleanup(buf_done) struct buf in = { 0 }, want = { 0 };
    const char *text, *ids;
    size_t n = 0;

    cr_assert(shared_read("data/tokenizers/vocab_tests.inp", &in) && shared_read(out, &want));
    text = (const char *)in.data;
    ids = (const char *)want.data;
    for (; *text; n++) {               /* a separator ends the last one too */
        const char *end = strstr(text, separator), *eol = strchr(ids, '\n');
        struct tokens got = { 0 };

        cr_assert_eq(tokenizer_encode(t, text, (size_t)(end - text), false, &got), 0);
        for (size_t i = 0;; i++) {
            char *after;
            long id = strtol(ids, &after, 10);
            if (after == ids || after > eol) {
                cr_expect_eq(got.len, i, "vector %zu: %zu ids instead of %zu", n, got.len, i);
                break;
            }
            cr_expect(i < got.len && got.ids[i] == id, "vector %zu, id %zu", n, i);
            ids = after;
        }
        tokens_done(&got);
        ids = eol + 1;
        text = end + strlen(separator);
    }
    cr_assert_eq(n, 46);
}

/* ---- there and back ---- */

static uint64_t rng = 42;

static inline uint32_t rnd(uint32_t n)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((rng >> 33) % n);
}

static inline void put_utf8(struct buf *b, uint32_t cp)
{
    uint8_t s[4];

    if (cp < 0x80) {
        put(b, &(uint8_t){ (uint8_t)cp }, 1);
        return;
    }
    int more = cp < 0x800 ? 1 : cp < 0x10000 ? 2 : 3;
    for (int i = more; i > 0; i--, cp >>= 6)
        s[i] = 0x80 | (cp & 0x3f);
    s[0] = (uint8_t)(0xff00 >> (more + 1) | cp);
    put(b, s, (size_t)more + 1);
}

static inline void random_text(struct buf *b)
{
    static const uint32_t ranges[][2] = {
        { 'a', 'z' }, { 'a', 'z' }, { ' ', ' ' }, { 0, 0x7f }, { '0', '9' }, { '\n', '\r' }, { 0x80, 0x7ff },
        { 0x800, 0xd7ff }, { 0xe000, 0xffff }, { 0x10000, 0x10ffff }, { 0x1f300, 0x1f6ff }, { 0x4e00, 0x9fff },
    };

    buf_clear(b);
    for (uint32_t n = rnd(40); n > 0; n--) {
        const uint32_t *range = ranges[rnd(ARRAY_SIZE(ranges))];
        uint32_t cp = range[0] + rnd(range[1] - range[0] + 1);
        put_utf8(b, cp == 0x2581 ? 'x' : cp);        /* SentencePiece's own space cannot come back */
    }
}

static inline void check_round_trip(const struct tokenizer *t, const struct buf *text, size_t strip)
{
    cleanup(buf_done) struct buf back = { .max = 1u << 20 };
    struct tokens ids = { 0 };

    cr_assert_eq(tokenizer_encode(t, (const char *)text->data, text->len, false, &ids), 0);
    for (size_t i = 0; i < ids.len; i++) {
        size_t len;
        cr_assert(ids.ids[i] >= 0 && (size_t)ids.ids[i] < tokenizer_size(t));
        const char *piece = tokenizer_piece(t, ids.ids[i], &len);
        put(&back, piece, len);
    }
    strip = text->len ? strip : 0;
    cr_assert_eq(back.len, text->len + strip);
    cr_assert(!text->len || memcmp(back.data + strip, text->data, text->len) == 0);
    tokens_done(&ids);
}

static inline void check_round_trips(const struct tokenizer *t, size_t strip)
{
    cleanup(buf_done) struct buf b = { .max = 1u << 20 };

    for (int i = 0; i < 100000; i++) {
        random_text(&b);
        check_round_trip(t, &b, strip);
    }
    /* Bytes that are no text come back as they were, too. */
    for (int i = 0; i < 2000; i++) {
        random_text(&b);
        for (size_t k = 0; k < b.len; k++)
            if (rnd(4) == 0)
                b.data[k] = (uint8_t)rnd(256);
        if (!memmem(b.data, b.len, "\u2581", 3))
            check_round_trip(t, &b, strip);
    }
}
