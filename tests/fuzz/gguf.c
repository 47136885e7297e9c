/* A GGUF file from anywhere: opened as a source, as a vocabulary, as a model; every key and byte it admits to is read. */
#include "engine/source.h"
#include "tests/fuzz/fuzz.h"

static volatile uint8_t sink;

static void read_tensors(const struct source *s)
{
    const struct source_tensor *t;

    for (size_t i = 0; (t = source_tensor_at(s, i)); i++)
        for (size_t at = 0; at < t->bytes; at += 61)
            sink ^= t->data[at];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tokenizer *t = NULL;
    struct source *s = NULL;
    struct model *m = NULL;
    struct tokens ids = { 0 };
    struct err err;
    uint64_t n = 0;

    if (source_open_memory(&s, data, size, &err) < 0)
        return 0;
    read_tensors(s);
    if (source_get_array(s, "tokenizer.ggml.tokens", GGUF_STRING, &n, &err) == 1)
        for (uint64_t i = 0; i < n; i++)
            sink ^= (uint8_t)gguf_array_string(source_keys(s), "tokenizer.ggml.tokens", i).len;
    if (!tokenizer_new(&t, source_keys(s), &err))
        tokenizer_encode(t, "a b<|x|>\n\xc3\xa9", 11, true, &ids);
    tokens_done(&ids);
    tokenizer_free(t);
    source_free(s);
    if (!model_open_memory(&m, data, size, NULL, &err))
        model_free(m);
    return 0;
}
