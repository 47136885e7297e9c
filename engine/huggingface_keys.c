/* config.json as GGUF's keys: sizes, positions, activation, norms, variants of the graph, pooling, ends, vocabulary. */
#include "engine/huggingface.h"

#define MAX_IMAGE (512u << 20)
#define MAX_ENDS 16

static void arch_key(const struct checkpoint *c, char key[96], const char *suffix)
{
    snprintf(key, 96, "%s.%s", c->family->arch, suffix);
}

static int write_size(struct checkpoint *c, const char *from, const char *to, uint64_t otherwise)
{
    uint64_t v = otherwise;
    char key[96];
    int r;

    r = checkpoint_size(c, c->config, from, &v);
    if (r < 0)
        return r;
    if (!r && !v)
        return 0;
    arch_key(c, key, to);
    keys_u32(&c->keys, key, (uint32_t)v);
    return 1;
}

static int write_double(struct checkpoint *c, struct json_view in, const char *from, const char *to)
{
    char key[96];
    double v;
    int r;

    r = checkpoint_double(c, in, from, &v);
    if (r <= 0)
        return r;
    arch_key(c, key, to);
    keys_f32(&c->keys, key, (float)v);
    return 1;
}

static int write_sizes(struct checkpoint *c)
{
    const struct { const char *from, *to; uint64_t otherwise; bool needed; } sizes[] = {
        { "hidden_size", "embedding_length", 0, true },
        { "num_hidden_layers", "block_count", 0, true },
        { "intermediate_size", "feed_forward_length", 0, true },
        { "num_attention_heads", "attention.head_count", 0, true },
        { "num_key_value_heads", "attention.head_count_kv", 0, false },
        { "max_position_embeddings", "context_length", 0, true },
        { "head_dim", "attention.key_length", c->family->head_dim, false },
        { "head_dim", "attention.value_length", c->family->head_dim, false },
        { "vocab_size", "vocab_size", 0, true },
    };
    const struct source_tensor *embd = source_tensor(c->s, "token_embd.weight");
    int r;

    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        r = write_size(c, sizes[i].from, sizes[i].to, sizes[i].otherwise);
        if (r < 0)
            return r;
        if (!r && sizes[i].needed)
            return checkpoint_refuse(c, sizes[i].from, "is missing");
    }
    if (!embd)
        return err_set(c->err, -EINVAL, "tensor model.embed_tokens.weight is missing");
    r = checkpoint_size(c, c->config, "vocab_size", &c->n_vocab);
    if (r < 0)
        return r;
    if (embd->dims[1] != c->n_vocab)
        return checkpoint_refuse(c, "vocab_size", "is not the number of the embedding's rows");
    return 0;
}

/* Where the pairs of a rotation turn how far: plain keys, or newer files' rope_parameters. */
static int write_rope(struct checkpoint *c)
{
    static const char *const kinds[] = { "default", "linear" };
    struct json_view scaling = { 0 }, parameters = { 0 };
    size_t kind = 0;
    char key[96];
    int r;

    if ((r = checkpoint_get(c, c->config, "rope_parameters", &parameters)) < 0 ||
        (r = checkpoint_get(c, c->config, "rope_scaling", &scaling)) < 0 ||
        (r = write_double(c, c->config, "rope_theta", "rope.freq_base")) < 0)
        return r;
    if (!r && (r = write_double(c, parameters, "rope_theta", "rope.freq_base")) < 0)
        return r;
    keys_string(&c->keys, "tern.rope", "half", 4);
    if (!scaling.s)
        scaling = parameters;
    if ((r = checkpoint_choice(c, scaling, "type", kinds, ARRAY_SIZE(kinds), &kind)) < 0 ||
        (r = checkpoint_choice(c, scaling, "rope_type", kinds, ARRAY_SIZE(kinds), &kind)) < 0)
        return r;
    if (!kind)
        return 0;
    arch_key(c, key, "rope.scaling.type");
    keys_string(&c->keys, key, "linear", 6);
    r = write_double(c, scaling, "factor", "rope.scaling.factor");
    return r ? MIN(r, 0) : checkpoint_refuse(c, "rope_scaling", "has no factor");
}

static int write_activation(struct checkpoint *c)
{
    static const char *const theirs[] = { "relu2", "silu", "gelu_pytorch_tanh" };
    static const char *const ours[] = { "relu2", "silu", "gelu" };
    struct json_view said;
    size_t i;
    int r;

    /* The "tern" object's word counts more, and is written with the rest of it. */
    r = checkpoint_get(c, c->tern, "activation", &said);
    if (r)
        return MIN(r, 0);
    r = checkpoint_choice(c, c->config, "hidden_act", theirs, ARRAY_SIZE(theirs), &i);
    if (!r)
        r = checkpoint_choice(c, c->config, "hidden_activation", theirs, ARRAY_SIZE(theirs), &i);
    if (r > 0)
        keys_string(&c->keys, "tern.activation", ours[i], strlen(ours[i]));
    return MIN(r, 0);
}

static int write_norms(struct checkpoint *c)
{
    double eps = 1e-6;
    int r;

    r = write_double(c, c->config, "rms_norm_eps", "attention.layer_norm_rms_epsilon");
    if (r <= 0)
        return r < 0 ? r : checkpoint_refuse(c, "rms_norm_eps", "is missing");
    r = c->rms_norm ? checkpoint_double(c, c->quant, "rms_norm_eps", &eps) : 0;
    if (r >= 0 && c->rms_norm)
        keys_f32(&c->keys, "tern.norm_in.epsilon", (float)eps);
    return MIN(r, 0);
}

/* Newer files list each layer's kind; computed is one period, all of it but the last seeing a window, or no window. */
static int write_layer_types(struct checkpoint *c)
{
    bool gemma = !strcmp(c->family->arch, "gemma3");
    struct json_view list;
    size_t i = 0, period = 0;
    char key[96];
    int r;

    r = checkpoint_get(c, c->config, "layer_types", &list);
    if (r <= 0)
        return r;
    for (struct json_walk w = json_walk(list); json_walk_next(&w); i++) {
        bool full = json_view_is(w.value, "full_attention");

        if (!full && (!gemma || !json_view_is(w.value, "sliding_attention")))
            return checkpoint_refuse(c, "layer_types", "has a kind of layer that is not computed");
        if (full && !period)
            period = i + 1;
        if (period && full != !((i + 1) % period))
            return checkpoint_refuse(c, "layer_types", "has no period");
    }
    arch_key(c, key, "attention.sliding_window_pattern");
    if (gemma)
        keys_u32(&c->keys, key, (uint32_t)(period ? period : i + 1));
    return gemma;
}

static int write_gemma(struct checkpoint *c)
{
    static const char *const none[] = { "attn_logit_softcapping", "final_logit_softcapping" };
    struct json_view v;
    bool both_ways = false;
    double scalar;
    char key[96];
    int r, has_types;

    has_types = write_layer_types(c);
    if (has_types < 0 || strcmp(c->family->arch, "gemma3"))
        return MIN(has_types, 0);
    r = checkpoint_bool(c, c->config, "use_bidirectional_attention", &both_ways);
    if (r < 0 || both_ways)
        return r < 0 ? r : checkpoint_refuse(c, "use_bidirectional_attention", "is not computed");
    for (size_t i = 0; i < ARRAY_SIZE(none); i++) {
        r = checkpoint_get(c, c->config, none[i], &v);
        if (r)
            return r < 0 ? r : checkpoint_refuse(c, none[i], "is not computed");
    }
    r = checkpoint_double(c, c->config, "query_pre_attn_scalar", &scalar);
    if (r < 0 || (r && !(scalar > 0)))
        return r < 0 ? r : checkpoint_refuse(c, "query_pre_attn_scalar", "is not positive");
    arch_key(c, key, "attention.scale");
    if (r)
        keys_f32(&c->keys, key, (float)(1 / sqrt(scalar)));
    if ((r = write_size(c, "sliding_window", "attention.sliding_window", 0)) < 0 ||
        (r = has_types ? 0 : write_size(c, "sliding_window_pattern", "attention.sliding_window_pattern", 0)) < 0)
        return r;
    r = write_double(c, c->config, "rope_local_base_freq", "rope.freq_base_swa");
    return MIN(r, 0);
}

/* The "tern" object: what no other key of config.json can say (docs/model-metadata.md). */
static int write_variant(struct checkpoint *c)
{
    static const struct { const char *from, *to; char kind; } known[] = {
        { "quant.qkv", "tern.quant.qkv", '"' }, { "quant.o", "tern.quant.o", '"' },
        { "quant.gate_up", "tern.quant.gate_up", '"' },
        { "quant.down", "tern.quant.down", '"' }, { "hadamard.o", "tern.hadamard.o", 't' },
        { "hadamard.down", "tern.hadamard.down", 't' }, { "kv_bits", "tern.kv_bits", '0' },
        { "weights", "tern.weights", '"' },
        { "norm", "tern.norm", '"' }, { "activation", "tern.activation", '"' },
    };
    struct json_view v;
    uint64_t n;
    bool flag;
    char text[64];
    int r;

    for (size_t i = 0; i < ARRAY_SIZE(known); i++) {
        r = checkpoint_get(c, c->tern, known[i].from, &v);
        if (r < 0)
            return r;
        if (!r)
            continue;
        if (known[i].kind == '"' && json_view_kind(v) == '"' && v.len < sizeof(text))
            keys_string(&c->keys, known[i].to, text, json_view_text(v, text));
        else if (known[i].kind == 't' && json_view_bool(v, &flag))
            keys_bool(&c->keys, known[i].to, flag);
        else if (known[i].kind == '0' && json_view_u64(v, &n) && n <= UINT32_MAX)
            keys_u32(&c->keys, known[i].to, (uint32_t)n);
        else
            return checkpoint_refuse(c, known[i].to, "is of another type");
    }
    if (!c->tern.s)
        return 0;
    for (struct json_walk w = json_walk(c->tern); json_walk_next(&w);) {
        size_t i = 0;

        while (i < ARRAY_SIZE(known) && !json_view_is(w.key, known[i].from))
            i++;
        if (i == ARRAY_SIZE(known))
            return err_set(c->err, -EINVAL, "config.json: tern.%.*s is not known", NAME_ARGS(w.key));
    }
    return 0;
}

/* A sentence-transformers directory says beside the model how its vectors are pooled. */
static int write_pooling(struct checkpoint *c)
{
    static const char *const modes[] = { "pooling_mode_mean_tokens", "pooling_mode_cls_token",
                                         "pooling_mode_lasttoken" };
    struct json_view v;
    char key[96];
    bool on;
    int r;

    r = checkpoint_json(c, "1_Pooling/config.json", &v);
    for (size_t i = 0; i < ARRAY_SIZE(modes) && r > 0; i++) {
        on = false;
        r = checkpoint_bool(c, v, modes[i], &on);
        if (r < 0)
            return r;
        r = 1;
        arch_key(c, key, "pooling_type");
        if (on) {
            keys_u32(&c->keys, key, (uint32_t)i + 1);
            return 0;
        }
    }
    return MIN(r, 0);
}

/* Add a token id, or each of a list of them. */
static int take_ends(struct checkpoint *c, struct json_view in, uint32_t ids[MAX_ENDS], size_t *n)
{
    struct json_view v, one;
    struct json_walk w;
    uint64_t id;
    int r;

    r = checkpoint_get(c, in, "eos_token_id", &v);
    if (r <= 0)
        return r;
    w = json_walk(v);
    one = v;
    while (json_view_kind(v) != '[' || json_walk_next(&w)) {
        if (json_view_kind(v) == '[')
            one = w.value;
        if (!json_view_u64(one, &id) || id >= c->n_vocab || *n == MAX_ENDS)
            return checkpoint_refuse(c, "eos_token_id", "is no token, or are more than 16");
        ids[(*n)++] = (uint32_t)id;
        if (json_view_kind(v) != '[')
            break;
    }
    return 0;
}

static int write_ids(struct checkpoint *c)
{
    uint32_t ends[MAX_ENDS];
    uint64_t bos;
    size_t n = 0;
    int r;

    if ((r = take_ends(c, c->config, ends, &n)) < 0 || (r = take_ends(c, c->generation, ends, &n)) < 0)
        return r;
    if (n) {
        keys_u32(&c->keys, "tokenizer.ggml.eos_token_id", ends[0]);
        keys_array(&c->keys, "tern.end_token_ids", GGUF_I32, n);
        keys_bytes(&c->keys, ends, n * sizeof(*ends));
    }
    r = checkpoint_size(c, c->config, "bos_token_id", &bos);
    if (r > 0 && bos >= c->n_vocab)
        return checkpoint_refuse(c, "bos_token_id", "is no token");
    if (r > 0)
        keys_u32(&c->keys, "tokenizer.ggml.bos_token_id", (uint32_t)bos);
    return MIN(r, 0);
}

static int write_vocabulary(struct checkpoint *c)
{
    struct vocabulary_hints hints = { .n_rows = c->n_vocab, .config = c->tokenizer_config };
    struct source_file f;
    int r;

    r = source_map(c->s, c->dir, "tokenizer.json", &f, c->err);
    return r < 0 ? r : vocabulary_read(&c->keys, f.data, f.size, &hints, c->err);
}

int checkpoint_keys(struct checkpoint *c)
{
    cleanup(freep) char *full = realpath(c->dir, NULL);
    const char *name = full ? strrchr(full, '/') + 1 : "";
    int r;

    buf_init(&c->s->image, MAX_IMAGE);
    keys_init(&c->keys, &c->s->image);
    keys_string(&c->keys, "general.architecture", c->family->arch, strlen(c->family->arch));
    keys_string(&c->keys, "general.name", name, strlen(name));
    if ((r = write_sizes(c)) < 0 || (r = write_rope(c)) < 0 || (r = write_activation(c)) < 0 ||
        (r = write_norms(c)) < 0 || (r = write_gemma(c)) < 0 || (r = write_variant(c)) < 0 ||
        (r = write_pooling(c)) < 0 || (r = write_ids(c)) < 0 || (r = write_vocabulary(c)) < 0)
        return r;
    r = keys_done(&c->keys);
    return r < 0 ? r : gguf_open(&c->s->keys, c->s->image.data, c->s->image.len, c->err);
}
