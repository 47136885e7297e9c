/* From a file to a struct model: what its graph has, its sizes, and each tensor checked and named.
 *
 * The architecture's name gives the defaults of a graph; keys say what else there is (docs/model-metadata.md describes
 * the research variants' tern.*); a norm that only some models have is used when its tensor is there. A model is either
 * computed exactly or refused. Tensors that the graph does not use are refused too: they would be biases or
 * norms that change the answer. */
#include "engine/source.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define MAX_LAYERS 1024
#define MAX_WIDTH (1u << 20)            /* of any matrix, as the kernels allow */

struct model_map {
    struct source *source;
    struct arena copies;                /* layers, norms, repacked tensors */
};

struct loader {
    struct model *m;
    const struct model_options *options;
    const struct source *source;
    const struct gguf *g;               /* its keys */
    bool *used;                         /* one a tensor */
    const struct kernels *kernels;
    struct pool *pool;
    struct err *err;
};

/* The graphs, and what they have that the file does not say (bitnet.md 1.9). Sub-norms that are not needed are used
 * when they are there, which is BitDistill's graph. */
static const struct graph {
    const char *name;
    enum ffn_act act;
    bool needs_sub_norms, rope_half, qk_norms, post_norms, scaled_embd;
} graphs[] = {
    { "bitnet-b1.58", ACT_RELU2, true,  true,  false, false, false },
    { "bitnet-25",    ACT_RELU2, true,  true,  false, false, false },
    { "bitnet",       ACT_SILU,  true,  true,  false, false, false },
    { "llama",        ACT_SILU,  false, false, false, false, false },
    { "qwen3",        ACT_SILU,  false, true,  true,  false, false },
    { "gemma3",       ACT_GELU,  false, true,  true,  true,  true  },
};

/* ---- keys ------------------------------------------------------------------------------------------------------- */

static bool string_is(struct gguf_string s, const char *want)
{
    return s.len == strlen(want) && !memcmp(s.data, want, s.len);
}

static int find_graph(struct loader *l, const struct graph **ret)
{
    struct gguf_string arch = {0};
    int r;

    r = gguf_get_string(l->g, "general.architecture", &arch, l->err);
    if (r < 0)
        return r;
    if (!r)
        return err_set(l->err, -EINVAL, "the model does not say general.architecture");
    for (size_t i = 0; i < ARRAY_SIZE(graphs); i++)
        if (string_is(arch, graphs[i].name)) {
            *ret = &graphs[i];
            snprintf(l->m->architecture, sizeof(l->m->architecture), "%s", graphs[i].name);
            return 0;
        }
    return err_set(l->err, -EINVAL, "general.architecture %.*s; run are bitnet-b1.58, bitnet-25, bitnet, llama, qwen3 and "
                   "gemma3", (int)MIN(arch.len, 64), arch.data);
}

static void key_of(const struct loader *l, char key[96], const char *suffix)
{
    snprintf(key, 96, "%s.%s", l->m->architecture, suffix);
}

/* The one number that all elements of an array are, where the key is an array (one a layer): 1, or 0. */
static int read_same(struct loader *l, const char *key, uint64_t *ret)
{
    uint64_t n = 0;

    if (gguf_get_array(l->g, key, GGUF_U32, &n, NULL) <= 0 && gguf_get_array(l->g, key, GGUF_I32, &n, NULL) <= 0)
        return 0;
    for (uint64_t i = 0; i < n; i++)
        if (gguf_array_number(l->g, key, i) != gguf_array_number(l->g, key, 0))
            return err_set(l->err, -EINVAL, "%s differs between layers", key);
    if (!n || gguf_array_number(l->g, key, 0) < 0)
        return err_set(l->err, -EINVAL, "%s is no array of sizes", key);
    *ret = (uint64_t)gguf_array_number(l->g, key, 0);
    return 1;
}

/* An integer from min to max into *ret; absent: what *ret holds, when that is in range. */
static int read_size(struct loader *l, const char *suffix, uint64_t min, uint64_t max, size_t *ret)
{
    uint64_t v = *ret;
    char key[96];
    int r;

    key_of(l, key, suffix);
    r = read_same(l, key, &v);
    if (!r)
        r = gguf_get_u64(l->g, key, &v, l->err);
    if (r < 0)
        return r;
    if (v < min || v > max)
        return err_set(l->err, -EINVAL, "%s is %s; allowed are %llu to %llu", key, r ? "out of range" : "missing",
                       (unsigned long long)min, (unsigned long long)max);
    *ret = v;
    return 0;
}

static int read_float_key(struct loader *l, const char *key, double min, double max, float *ret)
{
    double v = *ret;
    int r;

    r = gguf_get_double(l->g, key, &v, l->err);
    if (r < 0)
        return r;
    if (!(v >= min && v <= max))
        return err_set(l->err, -EINVAL, "%s is %s; allowed are %g to %g", key, r ? "out of range" : "missing", min, max);
    *ret = (float)v;
    return 0;
}

static int read_float(struct loader *l, const char *suffix, double min, double max, float *ret)
{
    char key[96];

    key_of(l, key, suffix);
    return read_float_key(l, key, min, max, ret);
}

static int read_rope_scaling(struct loader *l)
{
    struct gguf_string type = {0};
    char key[96];
    int r;

    l->m->rope_shrink = 1;
    key_of(l, key, "rope.scaling.type");
    r = gguf_get_string(l->g, key, &type, l->err);
    if (r <= 0 || string_is(type, "none"))
        return MIN(r, 0);
    if (!string_is(type, "linear"))
        return err_set(l->err, -EINVAL, "%s is %.*s; computed are none and linear", key, (int)MIN(type.len, 64), type.data);
    return read_float(l, "rope.scaling.factor", 1, 1e6, &l->m->rope_shrink);
}

/* Local layers are those that only see a window: of each `pattern` all but the last. */
static int read_window(struct loader *l)
{
    struct model *m = l->m;
    int r;

    m->rope_base_local = 10000;
    m->window_pattern = 6;
    if ((r = read_size(l, "attention.sliding_window", 0, 1u << 31, &m->window)) < 0 ||
        (r = read_size(l, "attention.sliding_window_pattern", 1, MAX_LAYERS, &m->window_pattern)) < 0)
        return r;
    return read_float(l, "rope.freq_base_swa", 1, 1e12, &m->rope_base_local);
}

static int read_sizes(struct loader *l)
{
    struct model *m = l->m;
    size_t value_dim;
    int r;

    if ((r = read_size(l, "context_length", 1, MAX_WIDTH, &m->n_ctx)) < 0 ||
        (r = read_size(l, "embedding_length", 1, MAX_WIDTH, &m->n_embd)) < 0 ||
        (r = read_size(l, "block_count", 1, MAX_LAYERS, &m->n_layer)) < 0 ||
        (r = read_size(l, "feed_forward_length", 1, MAX_WIDTH, &m->n_ff)) < 0 ||
        (r = read_size(l, "attention.head_count", 1, 4096, &m->n_head)) < 0)
        return r;
    m->n_kv = m->n_head;
    m->head_dim = m->n_embd / m->n_head;
    if ((r = read_size(l, "attention.head_count_kv", 1, m->n_head, &m->n_kv)) < 0 ||
        (r = read_size(l, "attention.key_length", 2, MAX_HEAD_DIM, &m->head_dim)) < 0)
        return r;
    value_dim = m->rope_dim = m->head_dim;
    if ((r = read_size(l, "attention.value_length", m->head_dim, m->head_dim, &value_dim)) < 0 ||
        (r = read_size(l, "rope.dimension_count", 2, m->head_dim, &m->rope_dim)) < 0)
        return r;
    m->rope_base = 10000;
    m->rms_eps = -1;
    m->attn_scale = 1 / sqrtf((float)m->head_dim);
    if ((r = read_float(l, "rope.freq_base", 1, 1e12, &m->rope_base)) < 0 ||
        (r = read_float(l, "attention.layer_norm_rms_epsilon", 1e-20, 1, &m->rms_eps)) < 0 ||
        (r = read_float(l, "attention.scale", 1e-6, 1e6, &m->attn_scale)) < 0 || (r = read_rope_scaling(l)) < 0 ||
        (r = read_window(l)) < 0)
        return r;
    if (m->n_head % m->n_kv || m->rope_dim % 2 || m->n_head * m->head_dim > MAX_WIDTH)
        return err_set(l->err, -EINVAL, "%s: %zu heads, %zu key heads, %zu wide, %zu turned: not a shape attention can have",
                       m->architecture, m->n_head, m->n_kv, m->head_dim, m->rope_dim);
    return 0;
}

/* A string key that is one of n names: its place among them into *ret, left alone when the key is absent. */
static int read_choice(struct loader *l, const char *key, const char *const names[], size_t n, unsigned *ret)
{
    struct gguf_string s = {0};
    int r;

    r = gguf_get_string(l->g, key, &s, l->err);
    if (r <= 0)
        return r;
    for (size_t i = 0; i < n; i++)
        if (string_is(s, names[i])) {
            *ret = (unsigned)i;
            return 0;
        }
    return err_set(l->err, -EINVAL, "%s is %.*s, which is nothing that is computed", key, (int)MIN(s.len, 64), s.data);
}

/* bitnet-b1.58 is also written for 1bitLLM's models, which use SiLU and a SentencePiece vocabulary; no key of theirs
 * says so. */
static int read_activation(struct loader *l, const struct graph *graph)
{
    static const char *const names[] = {
        [ACT_BY_MODEL] = "", [ACT_RELU2] = "relu2", [ACT_SILU] = "silu", [ACT_GELU] = "gelu",
    };
    struct gguf_string vocabulary = {0};
    unsigned act = graph->act;
    int r;

    r = gguf_get_string(l->g, "tokenizer.ggml.model", &vocabulary, l->err);
    if (r > 0 && !strcmp(graph->name, "bitnet-b1.58") && string_is(vocabulary, "llama"))
        act = ACT_SILU;
    r = r < 0 ? r : read_choice(l, "tern.activation", names, ARRAY_SIZE(names), &act);
    if (r < 0)
        return r;
    l->m->act = l->options->act_override ? l->options->act_override : act ? (enum ffn_act)act : graph->act;
    return 0;
}

/* How the input of each group of projections is brought to integers. */
static int read_inputs(struct loader *l)
{
    static const char *const quantizers[] = {
        [QUANT_INT8_ABSMAX] = "int8-absmax", [QUANT_INT4_ABSMEAN] = "int4-absmean", [QUANT_TOP50_INT8] = "top50-int8",
        [QUANT_NONE] = "none",
    };
    static const char *const names[] = {
        [INPUT_QKV] = "qkv", [INPUT_O] = "o", [INPUT_GATE_UP] = "gate_up", [INPUT_DOWN] = "down",
    };
    int r;

    for (size_t i = 0; i < N_INPUTS; i++) {
        unsigned quant = QUANT_INT8_ABSMAX;
        char key[32];

        snprintf(key, sizeof(key), "tern.quant.%s", names[i]);
        r = read_choice(l, key, quantizers, ARRAY_SIZE(quantizers), &quant);
        if (r < 0)
            return r;
        snprintf(key, sizeof(key), "tern.hadamard.%s", names[i]);
        r = i == INPUT_O || i == INPUT_DOWN ? gguf_get_bool(l->g, key, &l->m->inputs[i].hadamard, l->err) : 0;
        if (r < 0)
            return r;
        l->m->inputs[i].quant = l->options->weight_only ? QUANT_NONE : (enum quantizer)quant;
    }
    return 0;
}

/* What varies besides sizes. */
static int read_variant(struct loader *l, const struct graph *graph)
{
    static const char *const weights[] = { "ternary", "binary" }, *const norms[] = { "rms", "layer" };
    static const char *const ropes[] = { "adjacent", "half" };
    unsigned binary = 0, layer = 0, half = graph->rope_half;
    struct model *m = l->m;
    size_t pooling = POOLING_NONE;
    uint64_t bits = 32;
    int r;

    if ((r = read_activation(l, graph)) < 0 || (r = read_inputs(l)) < 0 ||
        (r = read_choice(l, "tern.weights", weights, ARRAY_SIZE(weights), &binary)) < 0 ||
        (r = read_choice(l, "tern.norm", norms, ARRAY_SIZE(norms), &layer)) < 0 ||
        (r = read_choice(l, "tern.rope", ropes, ARRAY_SIZE(ropes), &half)) < 0 ||
        (r = read_size(l, "pooling_type", POOLING_NONE, POOLING_LAST, &pooling)) < 0 ||
        (r = gguf_get_u64(l->g, "tern.kv_bits", &bits, l->err)) < 0)
        return r;
    if (bits != 32 && bits != 4 && bits != 3)
        return err_set(l->err, -EINVAL, "tern.kv_bits is out of range; allowed are 32, 4 and 3");
    m->binary = binary;
    m->layer_norm = layer;
    m->rope_half = half;
    m->pooling = (enum pooling)pooling;
    m->kv_bits = (unsigned)bits;
    m->norm_in_eps = m->rms_eps;
    m->embd_scale = graph->scaled_embd ? sqrtf((float)m->n_embd) : 1;
    return read_float_key(l, "tern.norm_in.epsilon", 1e-20, 1, &m->norm_in_eps);
}

/* The name goes into headers and logs: no spaces, nothing but ASCII. */
static int read_name(struct loader *l)
{
    struct gguf_string name = {0};
    size_t n;
    int r;

    r = gguf_get_string(l->g, "general.name", &name, l->err);
    if (r < 0)
        return r;
    if (!name.len)
        name = (struct gguf_string){ l->m->architecture, strlen(l->m->architecture) };
    n = MIN(name.len, sizeof(l->m->name) - 1);
    for (size_t i = 0; i < n; i++)
        l->m->name[i] = name.data[i] > ' ' && name.data[i] < 0x7f ? name.data[i] : '-';
    return 0;
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

static int refuse_missing(struct loader *l, const char *name)
{
    return err_set(l->err, -EINVAL, "tensor %s is missing", name);
}

/* The tensor of this name with cols * rows elements (rows 1: a vector), or NULL where there is none. */
static int take_tensor(struct loader *l, const char *name, size_t cols, size_t rows, const struct source_tensor **ret)
{
    const struct source_tensor *t = source_tensor(l->source, name);

    *ret = t;
    if (!t)
        return 0;
    if (t->dims[0] != cols || t->dims[1] != rows || t->n_dims > 2)
        return tensor_refuse(t, l->err, "is %llu x %llu where the keys make it %zu x %zu", (unsigned long long)t->dims[0],
                             (unsigned long long)t->dims[1], cols, rows);
    l->used[t - source_tensor_at(l->source, 0)] = true;
    return 0;
}

static int take_needed(struct loader *l, const char *name, size_t cols, size_t rows, const struct source_tensor **ret)
{
    int r = take_tensor(l, name, cols, rows, ret);

    return !r && !*ret ? refuse_missing(l, name) : r;
}

static void *copy_room(struct loader *l, size_t n, size_t each)
{
    size_t bytes;

    return size_mul(&bytes, n, each) ? arena_alloc(&l->m->map->copies, bytes) : NULL;
}

/* A copy of a float tensor as f32, every element finite. */
static int copy_floats(struct loader *l, const struct source_tensor *t, size_t n, const float **ret)
{
    struct dense d;
    float *copy;
    int r;

    if (t->type != TENSOR_F32 && t->type != TENSOR_F16 && t->type != TENSOR_BF16)
        return tensor_refuse(t, l->err, "is not of floats");
    copy = copy_room(l, n, sizeof(*copy));
    if (!copy)
        return -ENOMEM;
    r = dense_load(&d, t, l->err);
    if (r < 0)
        return r;
    dense_row(&d, 0, copy);
    *ret = copy;
    return 0;
}

static int load_vector(struct loader *l, const char *name, size_t n, const float **ret)
{
    const struct source_tensor *t;
    int r;

    r = take_needed(l, name, n, 1, &t);
    return r < 0 ? r : copy_floats(l, t, n, ret);
}

/* The norm's gain, or NULL where it is not needed and not there. */
static int load_norm_if(struct loader *l, bool needed, size_t layer, const char *name, size_t n, const float **ret)
{
    char full[64];

    snprintf(full, sizeof(full), "blk.%zu.%s.weight", layer, name);
    return needed || source_tensor(l->source, full) ? load_vector(l, full, n, ret) : 0;
}

static int load_scale(struct loader *l, const char *name, struct ternary *w)
{
    const struct source_tensor *t;
    const float *factor;
    int r;

    r = take_tensor(l, name, 1, 1, &t);
    if (r < 0 || !t)
        return r;
    r = copy_floats(l, t, 1, &factor);
    if (r < 0)
        return r;
    w->scale *= *factor;
    if (!isfinite(w->scale) || !(w->scale > 0))
        return tensor_refuse(t, l->err, "the scale at byte 0 is not a finite positive number");
    if (w->row_scales) {
        float *scales = copy_room(l, w->rows, sizeof(*scales));

        if (!scales)
            return -ENOMEM;
        for (size_t i = 0; i < w->rows; i++)
            scales[i] = w->row_scales[i] * *factor;
        w->row_scales = scales;
    }
    return 0;
}

/* blk.N.<name>.weight, what blk.N.<name>.scale multiplies onto it, and the norm of its own input: the latter two where
 * there are any. */
static int load_ternary(struct loader *l, size_t layer, const char *name, enum projection_input input, size_t cols,
                        size_t rows, struct ternary *w)
{
    const struct ternary_reading how = { .i2s_layout = l->options->i2s_layout, .binary = l->m->binary };
    const struct source_tensor *t;
    char full[64], norm_in[48];
    int r;

    snprintf(full, sizeof(full), "blk.%zu.%s.weight", layer, name);
    r = take_needed(l, full, cols, rows, &t);
    if (r < 0)
        return r;
    if (l->m->inputs[input].quant == QUANT_NONE || l->kernels->layout == &ternary_canonical) {
        r = ternary_load(w, t, how, &l->m->map->copies, l->err);
    } else {
        r = ternary_load_packed(w, t, how, l->kernels->layout, l->m->cache, l->pool, l->err);
        model_forget(l->m, t->data, t->bytes);
    }
    if (r < 0)
        return r;
    snprintf(full, sizeof(full), "blk.%zu.%s.scale", layer, name);
    r = load_scale(l, full, w);
    if (r < 0)
        return r;
    snprintf(norm_in, sizeof(norm_in), "%s_norm_in", name);
    return load_norm_if(l, false, layer, norm_in, cols, &w->norm_in);
}

static int load_layer(struct loader *l, size_t i, const struct graph *graph)
{
    const struct model *m = l->m;
    struct model_layer *y = &l->m->layers[i], *first = l->m->layers;
    size_t attn = m->n_head * m->head_dim, kv = m->n_kv * m->head_dim;
    bool sub_norms = graph->needs_sub_norms, qk = graph->qk_norms, post = graph->post_norms;
    int r;

    if ((r = load_ternary(l, i, "attn_q", INPUT_QKV, m->n_embd, attn, &y->q)) < 0 ||
        (r = load_ternary(l, i, "attn_k", INPUT_QKV, m->n_embd, kv, &y->k)) < 0 ||
        (r = load_ternary(l, i, "attn_v", INPUT_QKV, m->n_embd, kv, &y->v)) < 0 ||
        (r = load_ternary(l, i, "attn_output", INPUT_O, attn, m->n_embd, &y->o)) < 0 ||
        (r = load_ternary(l, i, "ffn_gate", INPUT_GATE_UP, m->n_embd, m->n_ff, &y->gate)) < 0 ||
        (r = load_ternary(l, i, "ffn_up", INPUT_GATE_UP, m->n_embd, m->n_ff, &y->up)) < 0 ||
        (r = load_ternary(l, i, "ffn_down", INPUT_DOWN, m->n_ff, m->n_embd, &y->down)) < 0)
        return r;
    /* What one layer has, all have. A model whose projections norm their own inputs may go without the norms before. */
    if ((r = load_norm_if(l, i ? !!first->attn_norm : !y->q.norm_in, i, "attn_norm", m->n_embd, &y->attn_norm)) < 0 ||
        (r = load_norm_if(l, i ? !!first->ffn_norm : !y->gate.norm_in, i, "ffn_norm", m->n_embd, &y->ffn_norm)) < 0 ||
        (r = load_norm_if(l, sub_norms || first->attn_sub_norm, i, "attn_sub_norm", attn, &y->attn_sub_norm)) < 0 ||
        (r = load_norm_if(l, sub_norms || first->ffn_sub_norm, i, "ffn_sub_norm", m->n_ff, &y->ffn_sub_norm)) < 0)
        return r;
    if (qk && ((r = load_norm_if(l, true, i, "attn_q_norm", m->head_dim, &y->q_norm)) < 0 ||
               (r = load_norm_if(l, true, i, "attn_k_norm", m->head_dim, &y->k_norm)) < 0))
        return r;
    if (post && ((r = load_norm_if(l, true, i, "post_attention_norm", m->n_embd, &y->post_attn_norm)) < 0 ||
                 (r = load_norm_if(l, true, i, "post_ffw_norm", m->n_embd, &y->post_ffn_norm)) < 0))
        return r;
    y->local = m->window && (i + 1) % m->window_pattern;
    return 0;
}

/* A matrix of floats that is used where it lies. */
static int load_dense(struct loader *l, const struct source_tensor *t, struct dense *ret)
{
    int r = cache_is_warm(l->m->cache) ? dense_trust(ret, t, l->err) : dense_load(ret, t, l->err);

    model_forget(l->m, t->data, t->bytes);
    if (r == 0)
        ret->fd = source_file_of(l->source, t->data, &ret->offset);
    return r;
}

static int load_ends(struct loader *l)
{
    const struct source_tensor *t = source_tensor(l->source, "token_embd.weight");
    struct model *m = l->m;
    int r;

    m->n_vocab = tokenizer_size(m->tokenizer);
    if (!t)
        return refuse_missing(l, "token_embd.weight");
    r = take_tensor(l, "token_embd.weight", m->n_embd, m->n_vocab, &t);
    if (r < 0)
        return r;
    r = load_dense(l, t, &m->embd);
    if (r < 0)
        return r;
    r = take_tensor(l, "output.weight", m->n_embd, m->n_vocab, &t);
    if (r < 0)
        return r;
    m->head = m->embd;
    if (t && (r = load_dense(l, t, &m->head)) < 0)
        return r;
    r = load_vector(l, "output_norm.weight", m->n_embd, &m->output_norm);
    if (r < 0)
        return r;

    r = take_tensor(l, "rope_freqs.weight", m->rope_dim / 2, 1, &t);
    if (r < 0 || !t)
        return r;
    r = copy_floats(l, t, m->rope_dim / 2, &m->rope_freqs);
    for (size_t j = 0; !r && j < m->rope_dim / 2; j++)
        if (!(m->rope_freqs[j] > 0))
            r = tensor_refuse(t, l->err, "element %zu is not positive", j);
    return r;
}

static int refuse_unused(struct loader *l)
{
    const struct source_tensor *t;

    for (size_t i = 0; (t = source_tensor_at(l->source, i)); i++)
        if (!l->used[i])
            return tensor_refuse(t, l->err, "is no part of the %s graph", l->m->architecture);
    return 0;
}

/* ---- the file --------------------------------------------------------------------------------------------------- */

/* The digest of the file, by a thread beside the one that loads. */
struct digesting {
    const struct source *source;
    char *digest;
    pthread_t thread;
    bool started;
    int result;
};

static void *digest_thread(void *arg)
{
    struct digesting *d = arg;

    d->result = source_digest(d->source, d->digest);
    return NULL;
}

static void digest_start(struct digesting *d)
{
    d->started = !pthread_create(&d->thread, NULL, digest_thread, d);
}

/* Also where loading has failed: the file goes away then. */
static void digest_wait(struct digesting *d)
{
    if (d->started)
        pthread_join(d->thread, NULL);
    d->started = false;
}

static int load(struct model *m, const struct model_options *options, struct err *err)
{
    cleanup(digest_wait) struct digesting digesting = { .source = m->map->source, .digest = m->digest, .result = 1 };
    cleanup(freep) bool *used = calloc(source_tensor_count(m->map->source) + 1, sizeof(*used));
    cleanup(pool_freep) struct pool *pool = NULL;
    struct loader l = { .m = m, .options = options, .source = m->map->source, .g = source_keys(m->map->source),
                        .used = used, .kernels = kernels_get(err), .err = err };
    const struct graph *graph = NULL;
    char order[16];
    int r;

    if (!used)
        return -ENOMEM;
    if (!l.kernels)
        return -EINVAL;
    r = pool_new(&pool, MAX(options->threads, 1));
    if (r < 0)
        return r;
    l.pool = pool;
    snprintf(order, sizeof(order), "%.12s/%c", l.kernels->layout->name, options->i2s_layout ? options->i2s_layout : 'a');
    r = cache_new(&m->cache, options->cache_fd, l.source, order, &m->note);
    if (r < 0)
        return r;
    if (options->threads > 1 && !cache_is_warm(m->cache))
        digest_start(&digesting);
    if ((r = find_graph(&l, &graph)) < 0 || (r = read_sizes(&l)) < 0 || (r = read_variant(&l, graph)) < 0 ||
        (r = read_name(&l)) < 0 || (r = tokenizer_new(&m->tokenizer, l.g, err)) < 0 || (r = load_ends(&l)) < 0)
        return r;
    m->template = template_choose(m->tokenizer, m->architecture);
    if (options->template && strcmp(options->template, "auto") != 0) {
        m->template = options->template;
        r = template_check(m->template, m->tokenizer, err);
        if (r < 0)
            return r;
    }

    m->layers = copy_room(&l, m->n_layer, sizeof(*m->layers));
    if (!m->layers)
        return -ENOMEM;
    for (size_t i = 0; i < m->n_layer; i++) {
        r = load_layer(&l, i, graph);
        if (r < 0)
            return r;
    }
    r = refuse_unused(&l);
    if (r < 0)
        return r;
    m->file_bytes = source_bytes(l.source);
    digest_wait(&digesting);
    if (cache_is_warm(m->cache))
        snprintf(m->digest, sizeof(m->digest), "%s", cache_digest(m->cache));
    else if (digesting.result > 0)
        digest_thread(&digesting);
    return MIN(digesting.result, 0);
}

/* path NULL: data. */
static int model_new(struct model **ret, const char *path, const void *data, size_t size,
                     const struct model_options *options, struct err *err)
{
    static const struct model_options defaults;
    cleanup(model_freep) struct model *m = calloc(1, sizeof(*m));
    int r;

    if (!m)
        return -ENOMEM;
    m->map = calloc(1, sizeof(*m->map));
    if (!m->map)
        return -ENOMEM;
    arena_init(&m->map->copies);
    r = path ? source_open(&m->map->source, path, err) : source_open_memory(&m->map->source, data, size, err);
    if (r < 0)
        return r;
    r = load(m, options ? options : &defaults, err);
    if (r < 0)
        return r;
    *ret = TAKE(m);
    return 0;
}

int model_open(struct model **ret, const char *path, const struct model_options *options, struct err *err)
{
    return model_new(ret, path, NULL, 0, options, err);
}

int model_open_memory(struct model **ret, const void *data, size_t size, const struct model_options *options,
                      struct err *err)
{
    return model_new(ret, NULL, data, size, options, err);
}

int model_keep(struct model *m, void (*failed)(const char *why))
{
    return cache_keep(m->cache, m->digest, failed);
}

void model_forget(const struct model *m, const void *data, size_t n)
{
    source_forget(m->map->source, data, n);
}

void model_free(struct model *m)
{
    if (!m)
        return;
    cache_free(m->cache);
    tokenizer_free(m->tokenizer);
    if (m->map) {
        arena_done(&m->map->copies);
        source_free(m->map->source);
        free(m->map);
    }
    free(m);
}
