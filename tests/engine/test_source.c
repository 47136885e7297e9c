/* What a source presents of each container: a GGUF file, a split set opened from any part, a Hugging Face directory. */
#include <criterion/criterion.h>
#include <errno.h>
#include <openssl/evp.h>
#include "engine/source.h"
#include "tests/engine/gguf_write.h"
#include "tests/engine/hf_write.h"

static struct source *open_hf(struct hf *h, struct err *err)
{
    struct source *s = NULL;
    char dir[64];

    hf_write(h, dir);
    source_open(&s, dir, err);
    hf_remove(h, dir);              /* the files stay mapped */
    return s;
}

static uint64_t u64_of(const struct source *s, const char *key)
{
    uint64_t v = UINT64_MAX;
    struct err err;

    cr_assert_eq(source_get_u64(s, key, &v, &err), 1, "%s", key);
    return v;
}

static double double_of(const struct source *s, const char *key)
{
    double v = -1;

    cr_assert_eq(source_get_double(s, key, &v, NULL), 1, "%s", key);
    return v;
}

static bool string_is(const struct source *s, const char *key, const char *want)
{
    struct gguf_string v = { 0 };

    return source_get_string(s, key, &v, NULL) == 1 && v.len == strlen(want) && !memcmp(v.data, want, v.len);
}

static void hex_of(const void *data, size_t size, char out[65])
{
    uint8_t sum[32];

    EVP_Digest(data, size, sum, NULL, EVP_sha256(), NULL);
    for (size_t i = 0; i < 32; i++)
        snprintf(out + 2 * i, 3, "%02x", sum[i]);
}

/* ---- Hugging Face ------------------------------------------------------------------------------------------------ */

Test(source, huggingface)
{
    cleanup(hf_done) struct hf h;
    cleanup(source_freep) struct source *s = NULL;
    struct tokenizer *tokenizer = NULL;
    const struct source_tensor *t;
    struct err err = { "" };
    bool flag = false;
    uint64_t n = 0;

    hf_init(&h);
    hf_put(hf_file(&h, "generation_config.json"), "{\"eos_token_id\":[3,5,2]}", 24);
    hf_put(hf_file(&h, "1_Pooling/config.json"), "{\"pooling_mode_mean_tokens\":false,\"pooling_mode_lasttoken\":true}", 64);
    s = open_hf(&h, &err);
    cr_assert(s, "%s", err.msg);
    cr_expect_str_eq(source_container(s), "safetensors");
    cr_expect(string_is(s, "general.architecture", "bitnet-b1.58") && string_is(s, "tern.rope", "half"));
    cr_expect(string_is(s, "tern.activation", "relu2") && string_is(s, "tern.quant.o", "top50-int8"));
    cr_expect_eq(u64_of(s, "bitnet-b1.58.embedding_length"), 8);
    cr_expect_eq(u64_of(s, "bitnet-b1.58.block_count"), 1);
    cr_expect_eq(u64_of(s, "bitnet-b1.58.feed_forward_length"), 16);
    cr_expect_eq(u64_of(s, "bitnet-b1.58.attention.head_count"), 2);
    cr_expect_eq(u64_of(s, "bitnet-b1.58.attention.head_count_kv"), 1);
    cr_expect_eq(u64_of(s, "bitnet-b1.58.context_length"), 32);
    cr_expect_eq(u64_of(s, "bitnet-b1.58.pooling_type"), 3);
    cr_expect_eq(u64_of(s, "tern.kv_bits"), 4);
    cr_expect_eq(u64_of(s, "tokenizer.ggml.eos_token_id"), 5);
    cr_expect_eq(u64_of(s, "tokenizer.ggml.bos_token_id"), 6);
    cr_expect_eq(double_of(s, "bitnet-b1.58.rope.freq_base"), 500000);
    cr_expect_eq(double_of(s, "bitnet-b1.58.attention.layer_norm_rms_epsilon"), (double)1e-5f);
    cr_expect(source_get_bool(s, "tern.hadamard.o", &flag, NULL) == 1 && flag);
    cr_assert_eq(source_get_array(s, "tern.end_token_ids", GGUF_I32, &n, NULL), 1);
    cr_expect(n == 4 && gguf_array_number(source_keys(s), "tern.end_token_ids", 3) == 2);
    cr_assert_eq(tokenizer_new(&tokenizer, source_keys(s), &err), 0, "%s", err.msg);
    for (int32_t i = 0; i < 8; i++)
        cr_expect_eq(tokenizer_is_end(tokenizer, i), i == 2 || i == 3 || i == 5);
    tokenizer_free(tokenizer);

    cr_expect_eq(source_tensor_count(s), 4);
    t = source_tensor(s, "blk.0.attn_q.weight");
    cr_assert(t);
    cr_expect(t->type == TENSOR_HF_U8 && t->dims[0] == 8 && t->dims[1] == 8 && t->bytes == 16);
    cr_expect(t->scale_kind == SCALE_MULTIPLY && t->scale == 2.5f);
    t = source_tensor(s, "token_embd.weight");
    cr_assert(t);
    cr_expect(t->type == TENSOR_BF16 && t->dims[0] == 8 && t->dims[1] == 8 && t->scale_kind == SCALE_NONE && t->scale == 1);
    t = source_tensor(s, "output_norm.weight");
    cr_assert(t);
    cr_expect(t->type == TENSOR_F32 && t->n_dims == 1 && (uintptr_t)t->data % 4 == 0);
    t = source_tensor(s, "blk.0.attn_sub_norm.weight");
    cr_assert(t && t->type == TENSOR_F16);
}

/* What `sha256sum` prints of the files in order of name, hashed. */
Test(source, huggingface_digest)
{
    static const char *const names[] = { "1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json" };
    cleanup(hf_done) struct hf h;
    cleanup(source_freep) struct source *s = NULL;
    char lines[1024] = "", hex[65], got[80], want[80] = "sha256:";
    struct err err = { "" };

    hf_init(&h);
    hf_put(hf_file(&h, names[0]), "{}", 2);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        hex_of(hf_file(&h, names[i])->data, hf_file(&h, names[i])->len, hex);
        snprintf(lines + strlen(lines), sizeof(lines) - strlen(lines), "%s  %s\n", hex, names[i]);
    }
    hex_of(lines, strlen(lines), want + 7);
    s = open_hf(&h, &err);
    cr_assert(s, "%s", err.msg);
    cr_assert_eq(source_digest(s, got), 0);
    cr_expect_str_eq(got, want);
}

/* The direction of the scale, and every way of saying it; masters have none. */
Test(source, huggingface_scales)
{
    static const struct { const char *find, *put; enum scale_kind want; } rows[] = {
        { "autobitlinear", "autobitlinear", SCALE_MULTIPLY }, { "autobitlinear", "bitlinear", SCALE_DIVIDE },
        { "\"linear_class\":\"autobitlinear\",", "", SCALE_DIVIDE },
        { "\"quantization_mode\":\"offline\"", "\"offline_quantization\":true", SCALE_MULTIPLY },
        { "\"quantization_mode\":\"offline\"", "\"online_quantization\":false", SCALE_MULTIPLY },
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        cleanup(hf_done) struct hf h;
        cleanup(source_freep) struct source *s = NULL;
        struct err err = { "" };

        hf_init(&h);
        cr_assert_eq(hf_replace(hf_file(&h, "config.json"), rows[i].find, rows[i].put), 1);
        s = open_hf(&h, &err);
        cr_assert(s, "%s", err.msg);
        cr_expect_eq(source_tensor(s, "blk.0.attn_q.weight")->scale_kind, rows[i].want, "row %zu", i);
    }
}

/* Names that differ by family and by setting; what only old files have is gone. */
Test(source, huggingface_names)
{
    static const struct { const char *class, *theirs, *ours; bool rms_norm; } rows[] = {
        { "BitNetForCausalLM", "model.layers.0.mlp.ffn_layernorm.weight", "blk.0.ffn_sub_norm.weight", false },
        { "BitnetForCausalLM", "layers.0.mlp.ffn_sub_norm.weight", "blk.0.ffn_sub_norm.weight", false },
        { "LlamaForCausalLM", "model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight", false },
        { "Gemma3ForCausalLM", "model.layers.0.post_attention_layernorm.weight", "blk.0.post_attention_norm.weight", false },
        { "Gemma3TextModel", "layers.0.pre_feedforward_layernorm.weight", "blk.0.ffn_norm.weight", false },
        { "Gemma3TextModel", "layers.0.post_feedforward_layernorm.weight", "blk.0.post_ffw_norm.weight", false },
        { "Qwen3Model", "layers.0.self_attn.k_norm.weight", "blk.0.attn_k_norm.weight", false },
        { "Qwen3Model", "layers.0.mlp.down_proj.norm.weight", "blk.0.ffn_down_norm_in.weight", false },
        { "Qwen3ForCausalLM", "model.layers.0.self_attn.o_proj.rms_norm.weight", "blk.0.attn_output_norm_in.weight", true },
        { "Qwen3ForCausalLM", "model.layers.0.self_attn.o_proj.rms_norm.weight", "model.layers.0.self_attn.o_proj.rms_norm.weight", false },
        { "LlamaForCausalLM", "model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.q_proj.bias", false },
        { "LlamaForCausalLM", "model.layers.00.input_layernorm.weight", "model.layers.00.input_layernorm.weight", false },
        { "LlamaForCausalLM", "model.layers.0.self_attn.rotary_emb.inv_freq", NULL, false },
        { "LlamaForCausalLM", "lm_head.weight", NULL, false },       /* tied */
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        cleanup(hf_done) struct hf h;
        cleanup(source_freep) struct source *s = NULL;
        const struct source_tensor *t;
        struct err err = { "" };
        char header[2048] = "";

        hf_init(&h);
        hf_replace(hf_file(&h, "config.json"), "BitNetForCausalLM", rows[i].class);
        if (rows[i].rms_norm)
            hf_replace(hf_file(&h, "config.json"), "\"quant_method\"", "\"use_rms_norm\":true,\"quant_method\"");
        snprintf(header, sizeof(header), "%.*s,\"%s\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[194,202]}}",
                 (int)sizeof(hf_header) - 2, hf_header, rows[i].theirs);
        hf_weights(hf_file(&h, "model.safetensors"), header, HF_DATA + 8);
        s = open_hf(&h, &err);
        cr_assert(s, "row %zu: %s", i, err.msg);
        cr_expect_eq(source_tensor_count(s), rows[i].ours ? 5 : 4, "row %zu", i);
        t = rows[i].ours ? source_tensor(s, rows[i].ours) : NULL;
        cr_expect(!rows[i].ours || t, "row %zu", i);
        /* Gemma's gains are what is added to one. */
        if (t && !strncmp(rows[i].class, "Gemma", 5))
            cr_expect(t->type == TENSOR_F32 && ((const float *)t->data)[1] == 1, "row %zu", i);
    }
}

Test(source, huggingface_rms_norm_epsilon)
{
    cleanup(hf_done) struct hf h;
    cleanup(source_freep) struct source *s = NULL;
    struct err err = { "" };

    hf_init(&h);
    hf_replace(hf_file(&h, "config.json"), "\"quant_method\"", "\"use_rms_norm\":true,\"rms_norm_eps\":0.25,\"quant_method\"");
    s = open_hf(&h, &err);
    cr_assert(s, "%s", err.msg);
    cr_expect_eq(double_of(s, "tern.norm_in.epsilon"), 0.25);
    cr_expect_eq(double_of(s, "bitnet-b1.58.attention.layer_norm_rms_epsilon"), (double)1e-5f);
}

/* Gemma's windows: by a number, or layer by layer. */
Test(source, huggingface_layer_types)
{
    static const struct { const char *types; uint64_t pattern; const char *says; } rows[] = {
        { "\"sliding_window_pattern\":6,", 6, NULL },
        { "\"layer_types\":[\"sliding_attention\",\"sliding_attention\",\"full_attention\",\"sliding_attention\"],", 3, NULL },
        { "\"layer_types\":[\"sliding_attention\",\"sliding_attention\"],", 3, NULL },
        { "\"layer_types\":[\"full_attention\",\"full_attention\"],", 1, NULL },
        { "\"layer_types\":[\"sliding_attention\",\"full_attention\",\"full_attention\"],", 0, "layer_types has no period" },
        { "\"layer_types\":[\"linear_attention\"],", 0, "layer_types has a kind" },
        { "\"use_bidirectional_attention\":true,", 0, "use_bidirectional_attention" },
        { "\"final_logit_softcapping\":30.0,", 0, "final_logit_softcapping" },
        { "\"query_pre_attn_scalar\":0,", 0, "query_pre_attn_scalar" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        cleanup(hf_done) struct hf h;
        cleanup(source_freep) struct source *s = NULL;
        struct err err = { "" };
        char text[256];

        hf_init(&h);
        hf_replace(hf_file(&h, "config.json"), "BitNetForCausalLM", "Gemma3ForCausalLM");
        snprintf(text, sizeof(text), "%s\"hidden_size\"", rows[i].types);
        hf_replace(hf_file(&h, "config.json"), "\"hidden_size\"", text);
        s = open_hf(&h, &err);
        if (rows[i].says)
            cr_expect(!s && strstr(err.msg, rows[i].says), "row %zu says: %s", i, err.msg);
        cr_expect(rows[i].says || s, "row %zu: %s", i, err.msg);
        if (s)
            cr_expect_eq(u64_of(s, "gemma3.attention.sliding_window_pattern"), rows[i].pattern, "row %zu", i);
    }
}

static void shard(struct hf *h)
{
    static const char index[] = "{\"metadata\":{\"total_size\":194},\"weight_map\":{"
        "\"model.embed_tokens.weight\":\"a.safetensors\",\"model.layers.0.self_attn.q_proj.weight\":\"b.safetensors\","
        "\"model.layers.0.self_attn.q_proj.weight_scale\":\"a.safetensors\",\"model.norm.weight\":\"b.safetensors\"}}";

    hf_init(h);
    h->n--;
    buf_done(&h->files[h->n].text);
    hf_weights(hf_file(h, "a.safetensors"),
               "{\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[8,8],\"data_offsets\":[0,128]},"
               "\"model.layers.0.self_attn.q_proj.weight_scale\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[128,132]}}", 132);
    memcpy(hf_file(h, "a.safetensors")->data + hf_file(h, "a.safetensors")->len - 4, &(float){ 0.5f }, 4);
    hf_weights(hf_file(h, "b.safetensors"),
               "{\"model.layers.0.self_attn.q_proj.weight\":{\"dtype\":\"U8\",\"shape\":[2,8],\"data_offsets\":[0,16]},"
               "\"model.norm.weight\":{\"dtype\":\"F32\",\"shape\":[8],\"data_offsets\":[16,48]}}", 48);
    hf_put(hf_file(h, "model.safetensors.index.json"), index, sizeof(index) - 1);
}

Test(source, huggingface_shards)
{
    cleanup(hf_done) struct hf h;
    cleanup(source_freep) struct source *s = NULL;
    struct err err = { "" };
    size_t total = 0;

    shard(&h);
    s = open_hf(&h, &err);
    cr_assert(s, "%s", err.msg);
    cr_expect_eq(source_tensor_count(s), 3);
    cr_expect_eq(source_tensor(s, "blk.0.attn_q.weight")->scale, 0.5f);
    for (size_t i = 0; i < h.n; i++)
        total += h.files[i].text.len;
    cr_expect_eq(source_bytes(s), total);
}

static const struct { const char *file, *find, *put, *says; } bad_shards[] = {
    { "model.safetensors.index.json", "\"weight_map\"", "\"weight_mop\"", "weight_map is missing" },
    { "model.safetensors.index.json", "b.safetensors\",", "../b.safetensors\",", "plain name" },
    { "model.safetensors.index.json", "b.safetensors\",", "c.safetensors\",", "c.safetensors" },
    { "model.safetensors.index.json", "q_proj.weight\":\"b", "q_proj.weight\":\"a", "not where the index has it" },
    { "model.safetensors.index.json", ",\"model.norm.weight\":\"b.safetensors\"", "", "model.norm.weight" },
    { "model.safetensors.index.json", "\"model.norm.weight\":", "\"model.embed_tokens.weight\":", "stands twice" },
    { "model.safetensors.index.json", "{\"model.embed", "{\"x\":\"a.safetensors\",\"model.embed", "5 tensors, its files have 4" },
    { "model.safetensors.index.json", "\"a.safetensors\"", "7", "plain name" },
};

Test(source, bad_indexes_are_refused_in_words)
{
    for (size_t i = 0; i < ARRAY_SIZE(bad_shards); i++) {
        cleanup(hf_done) struct hf h;
        cleanup(source_freep) struct source *s = NULL;
        struct err err = { "" };

        shard(&h);
        cr_assert(hf_replace(hf_file(&h, bad_shards[i].file), bad_shards[i].find, bad_shards[i].put));
        s = open_hf(&h, &err);
        cr_expect(!s && strstr(err.msg, bad_shards[i].says), "row %zu says: %s", i, err.msg);
    }
}

/* ---- GGUF -------------------------------------------------------------------------------------------------------- */

struct part { unsigned no, count, tensors; const char *tensor; };

static size_t write_part(const char *path, const struct part *p, char hex[80])
{
    struct gguf_writer w;
    uint8_t *bytes;
    size_t size;
    FILE *f;

    writer_init(&w);
    if (!p->no)
        write_string(&w, "general.architecture", "llama");
    if (p->count) {
        put(write_key(&w, "split.no", GGUF_U16), &(uint16_t){ (uint16_t)p->no }, 2);
        put(write_key(&w, "split.count", GGUF_U16), &(uint16_t){ (uint16_t)p->count }, 2);
        put_u32(write_key(&w, "split.tensors.count", GGUF_I32), p->tensors);
    }
    write_tensor(&w, p->tensor, 8, 1, TENSOR_F32, (float[8]){ (float)p->no }, 32);
    bytes = writer_file(&w, &size);
    writer_done(&w);
    f = fopen(path, "wb");
    cr_assert(f && fwrite(bytes, 1, size, f) == size && !fclose(f));
    hex_of(bytes, size, hex);
    free(bytes);
    return size;
}

/* Three parts, of which `bad` is `change` instead (3: the second is missing; 4: each counts a tensor too many), opened from
 * part `from`; lines: what sha256sum prints of them. */
static struct source *open_split(size_t from, size_t bad, const struct part *change, struct err *err, char lines[512])
{
    const struct part good[3] = { { 0, 3, 3, "z" }, { 1, 3, 3, "a" }, { 2, 3, 3, "m" } };
    char dir[] = "/tmp/tern-split-XXXXXX", path[3][64], hex[80];
    struct source *s = NULL;

    cr_assert(mkdtemp(dir));
    *lines = '\0';
    for (size_t i = 0; i < 3; i++) {
        struct part p = change && bad == i ? *change : good[i];

        snprintf(path[i], sizeof(path[i]), "%s/m-%05zu-of-00003.gguf", dir, i + 1);
        p.tensors += bad == 4;
        write_part(path[i], &p, hex);
        snprintf(lines + strlen(lines), 512 - strlen(lines), "%s  m-%05zu-of-00003.gguf\n", hex, i + 1);
    }
    if (bad == 3)
        unlink(path[1]);
    source_open(&s, path[from], err);
    for (size_t i = 0; i < 3; i++)
        unlink(path[i]);
    rmdir(dir);
    return s;
}

Test(source, split_set_from_any_part)
{
    for (size_t from = 0; from < 3; from++) {
        cleanup(source_freep) struct source *s = NULL;
        char lines[512], want[80] = "sha256:", got[80];
        struct err err = { "" };

        s = open_split(from, 9, NULL, &err, lines);
        cr_assert(s, "%s", err.msg);
        cr_expect_str_eq(source_container(s), "GGUF split");
        cr_expect(string_is(s, "general.architecture", "llama"));
        cr_assert_eq(source_tensor_count(s), 3);
        cr_expect_eq(*source_tensor_at(s, 0)->name.data, 'a');
        cr_expect_eq(((const float *)source_tensor(s, "m")->data)[0], 2);
        cr_assert_eq(source_digest(s, got), 0);
        hex_of(lines, strlen(lines), want + 7);
        cr_expect_str_eq(got, want);
    }
}

Test(source, bad_split_sets_are_refused_in_words)
{
    static const struct { size_t at; struct part change; const char *says; } rows[] = {
        { 1, { 2, 3, 3, "a" }, "split.no" }, { 2, { 2, 4, 3, "m" }, "split.count" }, { 1, { 1, 3, 4, "a" }, "split.tensors.count" },
        { 1, { 1, 0, 0, "a" }, "split.no" }, { 1, { 1, 3, 3, "z" }, "tensor z stands twice" }, { 0, { 0, 3, 4, "z" }, "split.tensors.count" },
        { 0, { 0, 2, 3, "z" }, "split.count is 2" }, { 0, { 0, 600, 3, "z" }, "split.count is 600" }, { 3, { 0 }, "00002-of-00003" },
        { 4, { 0 }, "3 tensors in all parts" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        cleanup(source_freep) struct source *s = NULL;
        struct err err = { "" };
        char lines[512];

        s = open_split(0, rows[i].at, &rows[i].change, &err, lines);
        cr_expect(!s && strstr(err.msg, rows[i].says), "row %zu says: %s", i, err.msg);
    }
}

Test(source, memory)
{
    cleanup(source_freep) struct source *s = NULL;
    char want[80] = "sha256:", got[80];
    struct gguf_writer w;
    struct err err = { "" };
    uint8_t *file;
    size_t size;

    writer_init(&w);
    write_tensor(&w, "b", 8, 1, TENSOR_F32, (float[8]){ 1 }, 32);
    write_tensor(&w, "a", 8, 1, TENSOR_F32, (float[8]){ 2 }, 32);
    file = writer_file(&w, &size);
    cr_assert_eq(source_open_memory(&s, file, size, &err), 0, "%s", err.msg);
    cr_expect(((const float *)source_tensor(s, "a")->data)[0] == 2 && !source_tensor(s, "c") && !source_tensor_at(s, 2));
    cr_assert_eq(source_digest(s, got), 0);
    hex_of(file, size, want + 7);
    cr_expect_str_eq(got, want);
    source_free(s);
    s = NULL;
    put_u32(write_key(&w, "split.count", GGUF_U32), 2);
    put_u32(write_key(&w, "split.no", GGUF_U32), 0);
    put_u32(write_key(&w, "split.tensors.count", GGUF_U32), 2);
    free(file);
    file = writer_file(&w, &size);
    cr_assert_eq(source_open_memory(&s, file, size, &err), -EINVAL);
    cr_expect(strstr(err.msg, "whole"), "%s", err.msg);
    writer_done(&w);
    free(file);
}
