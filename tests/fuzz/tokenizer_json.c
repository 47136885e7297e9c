/* A tokenizer.json from anywhere, and text through what it makes. */
#include "engine/container.h"
#include "tests/fuzz/fuzz.h"

static const char text[] = "ab  ab<s>\n\n 12\u0120\u2581<tool>\xff";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct vocabulary_hints hints = { .n_rows = size % 3 ? 0 : 300 };
    struct tokenizer *t = NULL;
    struct tokens ids = { 0 };
    struct gguf *g = NULL;
    struct buf image;
    struct err err;
    struct keys k;
    size_t len;

    buf_init(&image, 1u << 26);
    keys_init(&k, &image);
    if (!vocabulary_read(&k, data, size, &hints, &err) && !keys_done(&k)) {
        /* What is written is a file that our own reader takes. */
        if (gguf_open(&g, image.data, image.len, &err) < 0)
            abort();
        if (!tokenizer_new(&t, g, &err)) {
            tokenizer_encode(t, text, sizeof(text) - 1, false, &ids);
            tokenizer_encode(t, text, sizeof(text) - 1, true, &ids);
            for (size_t i = 0; i < ids.len; i++)
                tokenizer_piece(t, ids.ids[i], &len);
        }
    }
    tokens_done(&ids);
    tokenizer_free(t);
    gguf_free(g);
    buf_done(&image);
    return 0;
}
