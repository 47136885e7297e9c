/* A chat from anywhere in every template. No content can be a control token: what a template adds is counted. */
#include <stdlib.h>
#include <string.h>
#include "engine/container.h"
#include "tests/fuzz/fuzz.h"

/* Every byte, then the control tokens of all templates. */
static const char *const controls[] = {
    "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>",
};

static struct tokenizer *make_tokenizer(void)
{
    struct tokenizer *t = NULL;
    struct gguf *g = NULL;
    struct buf image;
    struct keys k;

    buf_init(&image, 1 << 20);
    keys_init(&k, &image);
    keys_string(&k, "tokenizer.ggml.model", "gpt2", 4);
    keys_string(&k, "tokenizer.ggml.pre", "llama-bpe", 9);
    keys_array(&k, "tokenizer.ggml.tokens", GGUF_STRING, 256 + ARRAY_SIZE(controls));
    for (unsigned b = 0, next = 0x100; b < 256; b++) {
        unsigned cp = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae ? b : next++;
        char utf8[2] = { (char)(cp < 0x80 ? cp : 0xc0 | cp >> 6), (char)(0x80 | (cp & 0x3f)) };

        keys_text(&k, utf8, cp < 0x80 ? 1 : 2);
    }
    for (size_t i = 0; i < ARRAY_SIZE(controls); i++)
        keys_text(&k, controls[i], strlen(controls[i]));
    keys_array(&k, "tokenizer.ggml.token_type", GGUF_I32, 256 + ARRAY_SIZE(controls));
    for (size_t i = 0; i < 256 + ARRAY_SIZE(controls); i++)
        keys_bytes(&k, &(int32_t){ i < 256 ? 1 : 3 }, 4);
    keys_array(&k, "tokenizer.ggml.merges", GGUF_STRING, 0);
    keys_u32(&k, "tokenizer.ggml.bos_token_id", 256);
    if (keys_done(&k) < 0 || gguf_open(&g, image.data, image.len, NULL) < 0 || tokenizer_new(&t, g, NULL) < 0)
        abort();
    gguf_free(g);
    buf_done(&image);
    return t;
}

static size_t count_controls(const struct tokens *ids)
{
    size_t n = 0;

    for (size_t i = 0; i < ids->len; i++)
        n += ids->ids[i] >= 256;
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    /* Of each template: control tokens of the whole, of a message, and more of an answer. */
    static const struct { const char *name; size_t whole, message, answer; } adds[] = {
        { "bitnet", 1, 1, 0 }, { "llama3", 3, 3, 0 }, { "falcon3", 1, 0, 1 },
        { "chatml", 2, 2, 0 }, { "plain", 1, 0, 0 },
    };
    static struct tokenizer *t;
    cleanup(chat_request_freep) struct chat_request *r = NULL;
    json_t *body, *message;
    size_t answers = 0, i;
    struct err err;

    if (!t)
        t = make_tokenizer();
    body = json_parse(data, size, &err);
    if (!body)
        return 0;
    if (!chat_request_from_json(&r, body, &err)) {
        json_array_foreach(r->messages, i, message)
            answers += !strcmp(json_string_value(json_object_get(message, "role")), "assistant");
        for (size_t kind = 0; kind < ARRAY_SIZE(adds); kind++) {
            struct tokens ids = { 0 };

            if (!template_render(adds[kind].name, t, r->messages, &ids, &err) &&
                count_controls(&ids) != adds[kind].whole + adds[kind].message * json_array_size(r->messages) +
                                        adds[kind].answer * answers)
                abort();
            tokens_done(&ids);
        }
    }
    json_decref(body);
    return 0;
}
