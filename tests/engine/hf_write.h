/* A small Hugging Face directory, text by text, so that a test can change one thing of it. Out of memory or disk ends the
 * test. */
#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "base/buf.h"

#define HF_MAX_FILES 16

struct hf_file { char name[64]; struct buf text; };
struct hf { struct hf_file files[HF_MAX_FILES]; size_t n; };

static const char hf_config[] =
    "{\"architectures\":[\"BitNetForCausalLM\"],\"model_type\":\"bitnet\",\"hidden_size\":8,\"num_hidden_layers\":1,"
    "\"intermediate_size\":16,\"num_attention_heads\":2,\"num_key_value_heads\":1,\"max_position_embeddings\":32,"
    "\"vocab_size\":8,\"rms_norm_eps\":1e-05,\"rope_theta\":500000.0,\"rope_scaling\":null,\"hidden_act\":\"relu2\","
    "\"tie_word_embeddings\":true,\"bos_token_id\":6,\"eos_token_id\":5,\"tern\":{\"kv_bits\":4,\"quant.o\":\"top50-int8\","
    "\"hadamard.o\":true},\"quantization_config\":{\"quant_method\":\"bitnet\",\"linear_class\":\"autobitlinear\","
    "\"quantization_mode\":\"offline\",\"modules_to_not_convert\":[\"lm_head\"]}}";

static const char hf_tokenizer[] =
    "{\"added_tokens\":[{\"id\":6,\"content\":\"<s>\",\"special\":true}],\"normalizer\":null,"
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"\\u0120\":4,\"\u0120ab\":5},"
    "\"merges\":[\"a b\",\"\u0120 ab\"]}}";

/* The header; the data behind it is 128 + 16 + 2 + 8 * 32 bytes. */
static const char hf_header[] =
    "{\"__metadata__\":{\"format\":\"pt\"},"
    "\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[8,8],\"data_offsets\":[0,128]},"
    "\"model.layers.0.self_attn.q_proj.weight\":{\"dtype\":\"U8\",\"shape\":[2,8],\"data_offsets\":[128,144]},"
    "\"model.layers.0.self_attn.q_proj.weight_scale\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[144,146]},"
    "\"model.layers.0.self_attn.inner_attn_ln.weight\":{\"dtype\":\"F16\",\"shape\":[8],\"data_offsets\":[146,162]},"
    "\"model.norm.weight\":{\"dtype\":\"F32\",\"shape\":[8],\"data_offsets\":[162,194]}}";
#define HF_DATA 194

static inline void hf_put(struct buf *b, const void *p, size_t n)
{
    if (buf_append(b, p, n) < 0)
        abort();
}

static inline struct buf *hf_add(struct hf *h, const char *name)
{
    struct hf_file *f = &h->files[h->n++];

    snprintf(f->name, sizeof(f->name), "%s", name);
    buf_init(&f->text, 1u << 28);
    return &f->text;
}

static inline struct buf *hf_file(struct hf *h, const char *name)
{
    for (size_t i = 0; i < h->n; i++)
        if (!strcmp(h->files[i].name, name))
            return &h->files[i].text;
    return hf_add(h, name);
}

/* A safetensors file of a header and n bytes of data, the scale among them 2.5. */
static inline void hf_weights(struct buf *b, const char *header, size_t n)
{
    uint64_t len = strlen(header);

    buf_clear(b);
    hf_put(b, &len, sizeof(len));
    hf_put(b, header, len);
    for (size_t i = 0; i < n; i++)
        hf_put(b, &(uint8_t){ i == 144 ? 0x20 : i == 145 ? 0x40 : 0 }, 1);
}

static inline void hf_init(struct hf *h)
{
    h->n = 0;
    hf_put(hf_add(h, "config.json"), hf_config, sizeof(hf_config) - 1);
    hf_put(hf_add(h, "tokenizer.json"), hf_tokenizer, sizeof(hf_tokenizer) - 1);
    hf_weights(hf_add(h, "model.safetensors"), hf_header, HF_DATA);
}

static inline void hf_done(struct hf *h)
{
    for (size_t i = 0; i < h->n; i++)
        buf_done(&h->files[i].text);
}

/* `find` becomes `put` wherever it stands in a text; how often. */
static inline size_t hf_replace(struct buf *b, const char *find, const char *put)
{
    cleanup(buf_done) struct buf old = *b;
    const char *p = (const char *)old.data, *end = p + old.len, *hit;
    size_t n = 0;

    buf_init(b, old.max);
    while ((hit = memmem(p, (size_t)(end - p), find, strlen(find)))) {
        hf_put(b, p, (size_t)(hit - p));
        hf_put(b, put, strlen(put));
        p = hit + strlen(find);
        n++;
    }
    hf_put(b, p, (size_t)(end - p));
    return n;
}

/* Into a new directory, whose path goes to dir. The total size. */
static inline size_t hf_write(const struct hf *h, char dir[64])
{
    size_t total = 0;

    snprintf(dir, 64, "%s", "/tmp/tern-hf-XXXXXX");
    if (!mkdtemp(dir))
        abort();
    for (size_t i = 0; i < h->n; i++) {
        char path[160];
        FILE *f;

        snprintf(path, sizeof(path), "%s/%s", dir, h->files[i].name);
        if (strchr(h->files[i].name, '/')) {
            *strrchr(path, '/') = '\0';
            mkdir(path, 0700);
            path[strlen(path)] = '/';
        }
        f = fopen(path, "wb");
        if (!f || fwrite(h->files[i].text.data, 1, h->files[i].text.len, f) != h->files[i].text.len || fclose(f))
            abort();
        total += h->files[i].text.len;
    }
    return total;
}

static inline void hf_remove(const struct hf *h, const char *dir)
{
    char path[160];

    for (size_t i = 0; i < h->n; i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, h->files[i].name);
        unlink(path);
        if (strchr(h->files[i].name, '/')) {
            *strrchr(path, '/') = '\0';
            rmdir(path);
        }
    }
    rmdir(dir);
}
