/* A Hugging Face directory, seen as GGUF: config.json becomes keys, tensors get GGUF's names, tokenizer.json becomes a
 * vocabulary (vocabulary.c).
 *
 * Weights are used where they lie in the mapped safetensors. Packed ternary ones (u8) are lent as they are, with the
 * scale that stands beside them and its direction, which only quantization_config.linear_class tells: autobitlinear
 * multiplies, bitlinear divides. Q and K rows are never permuted here, so "tern.rope" is "half". Gemma's norms
 * multiply by one more than the file says; GGUF stores the sum, and so does the copy made here.
 *
 * A tensor that has no name in GGUF keeps its own, for model.c to refuse. Sources: bitnet.md 2.3 and 2.9; Hugging Face
 * transformers' BitNet integration; llama.cpp's converter for the names. */
#include "engine/container.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_IMAGE (512u << 20)
#define MAX_NORM (1u << 20)
#define MAX_LAYER 1023
#define MAX_ENDS 16
#define INDEX "model.safetensors.index.json"
#define NAME_ARGS(v) (int)MIN((v).len - 2, 96), (v).s + 1            /* "%.*s" of a string as the file spells it */

static const struct family { const char *class, *model_type, *arch; uint32_t head_dim; } families[] = {
    { "BitNet",  "bitnet",       "bitnet-b1.58", 0   },
    { "Bitnet",  "bitnet",       "bitnet",       0   },              /* 1bitLLM's reproductions */
    { "Llama",   "llama",        "llama",        0   },
    { "Qwen3",   "qwen3",        "qwen3",        128 },
    { "Gemma3",  "gemma3_text",  "gemma3",       256 },
};

struct checkpoint {
    struct source *s;
    const char *dir;
    struct err *err;
    struct keys keys;
    const struct family *family;
    struct json_view config, quant, tern, generation, tokenizer_config;      /* s NULL: none */
    struct safetensor *tensors;     /* of all files */
    size_t n_tensors;
    bool divide;                    /* packed weights: the product is divided by the scale */
    bool online;                    /* floats are masters; there are no packed weights */
    bool rms_norm;                  /* each linear has a norm of its input */
    uint64_t n_vocab;
};

/* ---- config.json ------------------------------------------------------------------------------------------------ */

static int refuse(const struct checkpoint *c, const char *key, const char *why)
{
    return err_set(c->err, -EINVAL, "config.json: %s %s", key, why);
}

/* 1, 0 absent or null, -EINVAL: stands twice. */
static int get(const struct checkpoint *c, struct json_view in, const char *key, struct json_view *ret)
{
    int r = in.s ? json_view_get(in, key, ret, NULL) : 0;

    return r < 0 ? refuse(c, key, "stands twice") : r;
}

static int get_size(const struct checkpoint *c, struct json_view in, const char *key, uint64_t *ret)
{
    struct json_view v;
    int r = get(c, in, key, &v);

    if (r > 0 && (!json_view_u64(v, ret) || *ret > UINT32_MAX))
        return refuse(c, key, "is no number from 0 to 4294967295");
    return r;
}

static int get_double(const struct checkpoint *c, struct json_view in, const char *key, double *ret)
{
    struct json_view v;
    int r = get(c, in, key, &v);

    return r > 0 && !json_view_double(v, ret) ? refuse(c, key, "is no number") : r;
}

static int get_bool(const struct checkpoint *c, struct json_view in, const char *key, bool *ret)
{
    struct json_view v;
    int r = get(c, in, key, &v);

    return r > 0 && !json_view_bool(v, ret) ? refuse(c, key, "is neither true nor false") : r;
}

/* One of n strings: its place among them. */
static int get_choice(const struct checkpoint *c, struct json_view in, const char *key, const char *const names[],
                      size_t n,
                      size_t *ret)
{
    struct json_view v;
    int r = get(c, in, key, &v);

    if (r <= 0)
        return r;
    for (size_t i = 0; i < n; i++)
        if (json_view_is(v, names[i])) {
            *ret = i;
            return 1;
        }
    return refuse(c, key, "is nothing that is computed here");
}

static bool class_is(struct json_view v, const char *class)
{
    static const char *const endings[] = { "ForCausalLM", "Model", "TextModel" };
    char name[64];

    for (size_t i = 0; i < ARRAY_SIZE(endings); i++) {
        snprintf(name, sizeof(name), "%s%s", class, endings[i]);
        if (json_view_is(v, name))
            return true;
    }
    return false;
}

static int find_family(struct checkpoint *c)
{
    struct json_view classes, type, first = { 0 };
    struct json_walk w;
    int r, has_type;

    r = get(c, c->config, "architectures", &classes);
    if (r < 0)
        return r;
    w = r ? json_walk(classes) : (struct json_walk){ 0 };
    if (json_walk_next(&w))
        first = w.value;
    has_type = get(c, c->config, "model_type", &type);
    if (has_type < 0)
        return has_type;
    for (size_t i = 0; i < ARRAY_SIZE(families) && first.s; i++)
        if (class_is(first, families[i].class)) {
            c->family = &families[i];
            return 0;
        }
    for (size_t i = 0; i < ARRAY_SIZE(families) && has_type; i++)
        if (json_view_is(type, families[i].model_type)) {
            c->family = &families[i];
            return 0;
        }
    return refuse(c, "architectures", "names no model that is run: BitNet, Bitnet, Llama, Qwen3 and Gemma3 are");
}

/* ---- quantization_config ---------------------------------------------------------------------------------------- */

static int read_quantization(struct checkpoint *c)
{
    static const char *const classes[] = { "bitlinear", "autobitlinear" }, *const modes[] = { "offline", "online" };
    static const char *const methods[] = { "bitnet" };
    size_t class = 0, mode = 0, method;
    bool flag;
    int r;

    r = get(c, c->config, "quantization_config", &c->quant);
    if (r <= 0)
        return r;
    r = get_choice(c, c->quant, "quant_method", methods, ARRAY_SIZE(methods), &method);
    if (r <= 0)
        return r < 0 ? r : refuse(c, "quant_method", "is missing");
    if ((r = get_choice(c, c->quant, "linear_class", classes, ARRAY_SIZE(classes), &class)) < 0 ||
        (r = get_choice(c, c->quant, "quantization_mode", modes, ARRAY_SIZE(modes), &mode)) < 0)
        return r;
    /* Early files say the mode with a bool. */
    if ((r = get_bool(c, c->quant, "online_quantization", &flag)) < 0)
        return r;
    mode = r ? flag : mode;
    if ((r = get_bool(c, c->quant, "offline_quantization", &flag)) < 0)
        return r;
    mode = r ? !flag : mode;
    c->divide = !class;
    c->online = mode;
    r = get_bool(c, c->quant, "use_rms_norm", &c->rms_norm);
    return MIN(r, 0);
}

/* ---- tensors: names --------------------------------------------------------------------------------------------- */

/* What stands behind "layers.N.", and behind "blk.N."; gemma: in Gemma's graph only, or in all others. */
static const struct module { const char *theirs, *ours; bool linear; enum { ANY, NOT_GEMMA, GEMMA } in; } modules[] = {
    { "input_layernorm",            "attn_norm",           false, ANY },
    { "post_attention_layernorm",   "ffn_norm",            false, NOT_GEMMA },
    { "post_attention_layernorm",   "post_attention_norm", false, GEMMA },
    { "pre_feedforward_layernorm",  "ffn_norm",            false, GEMMA },
    { "post_feedforward_layernorm", "post_ffw_norm",       false, GEMMA },
    { "self_attn.q_proj",           "attn_q",              true,  ANY },
    { "self_attn.k_proj",           "attn_k",              true,  ANY },
    { "self_attn.v_proj",           "attn_v",              true,  ANY },
    { "self_attn.o_proj",           "attn_output",         true,  ANY },
    { "self_attn.q_norm",           "attn_q_norm",         false, ANY },
    { "self_attn.k_norm",           "attn_k_norm",         false, ANY },
    { "self_attn.attn_sub_norm",    "attn_sub_norm",       false, ANY },
    { "self_attn.inner_attn_ln",    "attn_sub_norm",       false, ANY },
    { "mlp.gate_proj",              "ffn_gate",            true,  ANY },
    { "mlp.up_proj",                "ffn_up",              true,  ANY },
    { "mlp.down_proj",              "ffn_down",            true,  ANY },
    { "mlp.ffn_sub_norm",           "ffn_sub_norm",        false, ANY },
    { "mlp.ffn_layernorm",          "ffn_sub_norm",        false, ANY },
};

enum role { ROLE_TENSOR, ROLE_SCALE, ROLE_IGNORED };

/* Text behind a prefix, or NULL. */
static const char *behind(const char *s, const char *prefix)
{
    size_t n = strlen(prefix);

    return strncmp(s, prefix, n) ? NULL : s + n;
}

/* Of "layers.N.rest": rest, and N; NULL: not of a layer. */
static const char *layer_of(const char *s, unsigned *ret)
{
    const char *digits = behind(s, "layers.");
    char *end;
    unsigned long n;

    if (!digits || *digits < '0' || *digits > '9' || (*digits == '0' && digits[1] != '.'))
        return NULL;
    n = strtoul(digits, &end, 10);
    if (*end != '.' || n > MAX_LAYER || end - digits > 4)
        return NULL;
    *ret = (unsigned)n;
    return end + 1;
}

static enum role name_module(const struct checkpoint *c, const char *rest, unsigned layer, char out[64])
{
    bool gemma = !strcmp(c->family->arch, "gemma3");

    if (!strcmp(rest, "self_attn.rotary_emb.inv_freq"))              /* old files keep this constant */
        return ROLE_IGNORED;
    for (size_t i = 0; i < ARRAY_SIZE(modules); i++) {
        const struct module *m = &modules[i];
        const char *suffix = behind(rest, m->theirs);

        if (!suffix || (m->in == GEMMA && !gemma) || (m->in == NOT_GEMMA && gemma))
            continue;
        if (!strcmp(suffix, ".weight") || (m->linear && !strcmp(suffix, ".weight_scale")))
            snprintf(out, 64, "blk.%u.%s.weight", layer, m->ours);
        else if (m->linear && ((c->rms_norm && !strcmp(suffix, ".rms_norm.weight")) || !strcmp(suffix, ".norm.weight")))
            snprintf(out, 64, "blk.%u.%s_norm_in.weight", layer, m->ours);
        return !strcmp(suffix, ".weight_scale") ? ROLE_SCALE : ROLE_TENSOR;
    }
    return ROLE_TENSOR;
}

/* GGUF's name of a tensor into out, left empty when it has none. */
static enum role name_tensor(const struct checkpoint *c, const char *theirs, char out[64])
{
    const char *name = behind(theirs, "model."), *rest;
    unsigned layer;

    *out = '\0';
    if (!strcmp(theirs, "lm_head.weight"))
        strcpy(out, "output.weight");
    name = name ? name : theirs;
    if (!strcmp(name, "embed_tokens.weight"))
        strcpy(out, "token_embd.weight");
    else if (!strcmp(name, "norm.weight"))
        strcpy(out, "output_norm.weight");
    rest = layer_of(name, &layer);
    return rest ? name_module(c, rest, layer, out) : ROLE_TENSOR;
}

/* A tensor's name as text, false for one that has none or too many bytes, or a NUL among them. */
static bool name_text(struct json_view name, char out[256])
{
    size_t n;

    if (name.len >= 256)
        return false;
    n = json_view_text(name, out);
    out[n] = '\0';
    return n && !memchr(out, 0, n);
}

/* ---- tensors: content ------------------------------------------------------------------------------------------- */

static int refuse_tensor(const struct checkpoint *c, const struct safetensor *t, const char *why)
{
    return err_set(c->err, -EINVAL, "tensor %.*s %s", NAME_ARGS(t->name), why);
}

static float float_at(const struct safetensor *t, size_t i)
{
    uint16_t h;
    float f;

    if (t->type == SAFETENSOR_F32) {
        memcpy(&f, t->data + 4 * i, sizeof(f));
        return f;
    }
    memcpy(&h, t->data + 2 * i, sizeof(h));
    return t->type == SAFETENSOR_F16 ? f16_to_f32(h) : bf16_to_f32(h);
}

/* Gemma's gains are what is added to one; the sub-norms that distillation inserts are plain. */
static bool is_gemma_gain(const struct checkpoint *c, const char *name)
{
    static const char ending[] = "_norm.weight";
    size_t len = strlen(name), n = sizeof(ending) - 1;

    return !strcmp(c->family->arch, "gemma3") && len >= n && !strcmp(name + len - n, ending) &&
           !strstr(name, "_sub_norm");
}

static int add_one(const struct checkpoint *c, const struct safetensor *from, struct source_tensor *to)
{
    float *copy;

    if (from->type == SAFETENSOR_U8 || from->n_dims != 1 || from->dims[0] > MAX_NORM)
        return refuse_tensor(c, from, "is no vector of gains");
    copy = arena_alloc(&c->s->copies, from->dims[0] * sizeof(*copy));
    if (!copy)
        return -ENOMEM;
    for (size_t i = 0; i < from->dims[0]; i++)
        copy[i] = float_at(from, i) + 1;
    to->data = (const uint8_t *)copy;
    to->bytes = from->dims[0] * sizeof(*copy);
    to->type = TENSOR_F32;
    return 0;
}

/* A copy where the file has the tensor's elements unaligned. */
static int align(struct checkpoint *c, struct source_tensor *t, size_t alignment)
{
    void *copy;

    if (!((uintptr_t)t->data % alignment))
        return 0;
    copy = arena_alloc(&c->s->copies, t->bytes);
    if (!copy)
        return -ENOMEM;
    t->data = memcpy(copy, t->data, t->bytes);
    return 0;
}

static int add_tensor(struct checkpoint *c, const struct safetensor *from, const char *name)
{
    static const struct { enum tensor_type type; size_t bytes; } types[] = {
        [SAFETENSOR_F32] = { TENSOR_F32, 4 }, [SAFETENSOR_F16] = { TENSOR_F16, 2 }, 
        [SAFETENSOR_BF16] = { TENSOR_BF16, 2 },
        [SAFETENSOR_U8] = { TENSOR_HF_U8, 1 },
    };
    struct source_tensor *to = &c->s->tensors[c->s->n_tensors++];
    size_t n = MAX(from->n_dims, 1);

    *to = (struct source_tensor){ .name = { arena_strdup(&c->s->copies, name), strlen(name) },
                                  .type = types[from->type].type, .n_dims = (uint32_t)n, .dims = { 1, 1, 1, 1 },
                                  .data = from->data, .bytes = from->bytes, .scale = 1 };
    if (!to->name.data)
        return -ENOMEM;
    for (size_t d = 0; d < n; d++)
        to->dims[d] = from->dims[n - 1 - d];
    if (is_gemma_gain(c, name))
        return add_one(c, from, to);
    if (from->type != SAFETENSOR_U8)
        return align(c, to, types[from->type].bytes);
    if (from->n_dims != 2 || to->dims[1] > UINT32_MAX)
        return refuse_tensor(c, from, "is U8 and no matrix");
    if (c->online)
        return refuse_tensor(c, from, "is packed, but quantization_mode is online");
    to->dims[1] *= 4;
    return 0;
}

static int take_scale(struct checkpoint *c, const struct safetensor *from, const char *name)
{
    struct source_tensor *t = (struct source_tensor *)source_tensor(c->s, name);

    if (!t || t->type != TENSOR_HF_U8)
        return refuse_tensor(c, from, "is the scale of no packed tensor");
    if (from->type == SAFETENSOR_U8 || from->bytes > 4 || (from->type != SAFETENSOR_F32 && from->bytes > 2))
        return refuse_tensor(c, from, "is not one float");
    t->scale = float_at(from, 0);
    t->scale_kind = c->divide ? SCALE_DIVIDE : SCALE_MULTIPLY;
    if (!isfinite(t->scale) || !(t->scale > 0))
        return refuse_tensor(c, from, "is not a finite positive number");
    return 0;
}

/* A linear layer that is named here is not ternary, which no graph has. */
static int check_not_converted(const struct checkpoint *c, const char *theirs, const char *ours)
{
    struct json_view list;
    char name[128];
    int r;

    r = get(c, c->quant, "modules_to_not_convert", &list);
    if (r <= 0 || strncmp(ours, "blk.", 4) || strstr(ours, "norm"))
        return MIN(r, 0);
    for (struct json_walk w = json_walk(list); json_walk_next(&w);) {
        if (json_view_kind(w.value) != '"' || w.value.len >= sizeof(name))
            return refuse(c, "modules_to_not_convert", "is no list of modules");
        name[json_view_text(w.value, name)] = '\0';
        if (*name && strstr(theirs, name))
            return err_set(c->err, -EINVAL,
                           "config.json: modules_to_not_convert names %.64s: all linear layers are run ternary", name);
    }
    return 0;
}

/* Names first, then the scales that belong to them. */
static int take_tensors(struct checkpoint *c)
{
    char theirs[256], ours[64];
    int r;

    c->s->tensors = calloc(MAX(c->n_tensors, 1), sizeof(*c->s->tensors));
    if (!c->s->tensors)
        return -ENOMEM;
    for (int scales = 0; scales < 2; scales++) {
        for (size_t i = 0; i < c->n_tensors; i++) {
            const struct safetensor *t = &c->tensors[i];
            enum role role;

            if (!name_text(t->name, theirs))
                return refuse_tensor(c, t, "has a name of no or more than 253 bytes, or with a NUL");
            role = name_tensor(c, theirs, ours);
            if (role != (scales ? ROLE_SCALE : ROLE_TENSOR))
                continue;
            r = scales ? take_scale(c, t, ours) : add_tensor(c, t, *ours ? ours : theirs);
            r = r < 0 || scales ? r : check_not_converted(c, theirs, ours);
            if (r < 0)
                return r;
        }
        r = source_sort(c->s, c->err);
        if (r < 0)
            return r;
    }
    for (size_t i = 0; i < c->s->n_tensors; i++)
        if (c->s->tensors[i].type == TENSOR_HF_U8 && c->s->tensors[i].scale_kind == SCALE_NONE)
            return err_set(c->err, -EINVAL, "tensor %.*s is packed and has no weight_scale",
                           (int)c->s->tensors[i].name.len,
                           c->s->tensors[i].name.data);
    return 0;
}

/* Tied embeddings: a head in the file is not used. */
static int check_head(struct checkpoint *c)
{
    const struct source_tensor *head = source_tensor(c->s, "output.weight");
    bool tied = !head;
    size_t i;
    int r;

    r = get_bool(c, c->config, "tie_word_embeddings", &tied);
    if (r < 0 || !tied || !head)
        return MIN(r, 0);
    i = (size_t)(head - c->s->tensors);
    memmove(&c->s->tensors[i], &c->s->tensors[i + 1], (--c->s->n_tensors - i) * sizeof(*head));
    return 0;
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

/* Absent: 0, and *ret untouched. */
static int map_json(struct checkpoint *c, const char *name, struct json_view *ret)
{
    struct source_file f;
    int r;

    r = source_map(c->s, c->dir, name, &f, c->err);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    r = json_view_open(ret, f.data, f.size, name, c->err);
    return r < 0 ? r : 1;
}

/* A line of an index's weight_map. */
struct placed { const char *tensor, *file; };

static int compare_placed(const void *a, const void *b)
{
    return strcmp(((const struct placed *)a)->tensor, ((const struct placed *)b)->tensor);
}

/* The tensors of a file are exactly those that the index, when there is one, says it has; the number is checked at the
 * end. */
static int check_placed(struct checkpoint *c, const char *file, const struct safetensor *t, const struct placed *index,
                        size_t n)
{
    char name[256];
    const struct placed want = { .tensor = name }, *found;

    if (!name_text(t->name, name))
        return refuse_tensor(c, t, "has a name of no or more than 253 bytes, or with a NUL");
    found = bsearch(&want, index, n, sizeof(want), compare_placed);
    return found && !strcmp(found->file, file) ? 0 : refuse_tensor(c, t, "is not where the index has it");
}

/* index NULL: there is none. */
static int read_weights(struct checkpoint *c, const char *name, const struct placed *index, size_t n_index)
{
    cleanup(freep) struct safetensor *some = NULL;
    struct safetensor *all;
    struct source_file f;
    size_t n;
    int r;

    r = source_map(c->s, c->dir, name, &f, c->err);
    if (r < 0)
        return r;
    r = safetensors_read(&some, &n, &f, c->err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < n && index; i++) {
        r = check_placed(c, name, &some[i], index, n_index);
        if (r < 0)
            return r;
    }
    if (c->n_tensors + n > MAX_SOURCE_TENSORS)
        return err_set(c->err, -EINVAL, "%s: more than %d tensors in all files", name, MAX_SOURCE_TENSORS);
    all = reallocarray(c->tensors, c->n_tensors + n + 1, sizeof(*all));
    if (!all)
        return -ENOMEM;
    memcpy(all + c->n_tensors, some, n * sizeof(*all));
    c->tensors = all;
    c->n_tensors += n;
    return 0;
}

/* The index's file names are an outsider's: plain names in this directory only. */
static bool is_plain_name(const char *s)
{
    static const char ending[] = ".safetensors";
    size_t len = strlen(s), n = sizeof(ending) - 1;

    return len > n && !strcmp(s + len - n, ending) && *s != '.' && !strchr(s, '/');
}

static int refuse_placed(const struct checkpoint *c, struct json_view tensor, const char *why)
{
    return err_set(c->err, -EINVAL, INDEX ": tensor %.*s: %s", NAME_ARGS(tensor), why);
}

static int take_placed(struct checkpoint *c, struct json_view tensor, struct json_view file, struct placed *ret)
{
    char name[256];

    if (json_view_kind(file) != '"' || !name_text(file, name) || !is_plain_name(name))
        return refuse_placed(c, tensor, "its file is not the plain name of a safetensors file");
    ret->file = arena_strdup(&c->s->copies, name);
    if (!name_text(tensor, name))
        return refuse_placed(c, tensor, "its name has no or more than 253 bytes, or a NUL");
    ret->tensor = arena_strdup(&c->s->copies, name);
    return ret->file && ret->tensor ? 0 : -ENOMEM;
}

static bool has_file(const struct source *s, const char *name)
{
    for (size_t i = 0; i < s->n_files; i++)
        if (!strcmp(s->files[i].name, name))
            return true;
    return false;
}

static int read_shards(struct checkpoint *c, struct json_view json)
{
    cleanup(freep) struct placed *index = NULL;
    struct json_view map;
    size_t n = 0, count;
    int r;

    if (json_view_get(json, "weight_map", &map, NULL) != 1 || json_view_kind(map) != '{')
        return err_set(c->err, -EINVAL, INDEX ": weight_map is missing");
    count = json_view_count(map);
    if (!count || count > MAX_SOURCE_TENSORS)
        return err_set(c->err, -EINVAL, INDEX ": weight_map has %zu tensors, allowed are 1 to %d", count,
                       MAX_SOURCE_TENSORS);
    index = calloc(count, sizeof(*index));
    if (!index)
        return -ENOMEM;
    for (struct json_walk w = json_walk(map); json_walk_next(&w);) {
        r = take_placed(c, w.key, w.value, &index[n++]);
        if (r < 0)
            return r;
    }
    qsort(index, n, sizeof(*index), compare_placed);
    for (size_t i = 1; i < n; i++)
        if (!strcmp(index[i].tensor, index[i - 1].tensor))
            return err_set(c->err, -EINVAL, INDEX ": tensor %.96s stands twice", index[i].tensor);
    for (size_t i = 0; i < n; i++) {
        r = has_file(c->s, index[i].file) ? 0 : read_weights(c, index[i].file, index, n);
        if (r < 0)
            return r;
    }
    if (c->n_tensors != n)
        return err_set(c->err, -EINVAL, INDEX ": weight_map has %zu tensors, its files have %zu", n, c->n_tensors);
    return 0;
}

static int read_all_weights(struct checkpoint *c)
{
    struct json_view index;
    int r;

    r = map_json(c, INDEX, &index);
    if (r < 0)
        return r;
    return r ? read_shards(c, index) : read_weights(c, "model.safetensors", NULL, 0);
}

/* ---- keys ------------------------------------------------------------------------------------------------------- */

static void arch_key(const struct checkpoint *c, char key[96], const char *suffix)
{
    snprintf(key, 96, "%s.%s", c->family->arch, suffix);
}

static int write_size(struct checkpoint *c, const char *from, const char *to, uint64_t otherwise)
{
    uint64_t v = otherwise;
    char key[96];
    int r;

    r = get_size(c, c->config, from, &v);
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

    r = get_double(c, in, from, &v);
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
            return refuse(c, sizes[i].from, "is missing");
    }
    if (!embd)
        return err_set(c->err, -EINVAL, "tensor model.embed_tokens.weight is missing");
    r = get_size(c, c->config, "vocab_size", &c->n_vocab);
    if (r < 0)
        return r;
    return embd->dims[1] != c->n_vocab ? refuse(c, "vocab_size", "is not the number of the embedding's rows") : 0;
}

/* Where the pairs of a rotation turn how far: plain keys, or newer files' rope_parameters. */
static int write_rope(struct checkpoint *c)
{
    static const char *const kinds[] = { "default", "linear" };
    struct json_view scaling = { 0 }, parameters = { 0 };
    size_t kind = 0;
    char key[96];
    int r;

    if ((r = get(c, c->config, "rope_parameters", &parameters)) < 0 ||
        (r = get(c, c->config, "rope_scaling", &scaling)) < 0 ||
        (r = write_double(c, c->config, "rope_theta", "rope.freq_base")) < 0)
        return r;
    if (!r && (r = write_double(c, parameters, "rope_theta", "rope.freq_base")) < 0)
        return r;
    keys_string(&c->keys, "tern.rope", "half", 4);
    if (!scaling.s)
        scaling = parameters;
    if ((r = get_choice(c, scaling, "type", kinds, ARRAY_SIZE(kinds), &kind)) < 0 ||
        (r = get_choice(c, scaling, "rope_type", kinds, ARRAY_SIZE(kinds), &kind)) < 0)
        return r;
    if (!kind)
        return 0;
    arch_key(c, key, "rope.scaling.type");
    keys_string(&c->keys, key, "linear", 6);
    r = write_double(c, scaling, "factor", "rope.scaling.factor");
    return r ? MIN(r, 0) : refuse(c, "rope_scaling", "has no factor");
}

static int write_activation(struct checkpoint *c)
{
    static const char *const theirs[] = { "relu2", "silu", "gelu_pytorch_tanh" };
    static const char *const ours[] = { "relu2", "silu", "gelu" };
    struct json_view said;
    size_t i;
    int r;

    /* The "tern" object's word counts more, and is written with the rest of it. */
    r = get(c, c->tern, "activation", &said);
    if (r)
        return MIN(r, 0);
    r = get_choice(c, c->config, "hidden_act", theirs, ARRAY_SIZE(theirs), &i);
    if (!r)
        r = get_choice(c, c->config, "hidden_activation", theirs, ARRAY_SIZE(theirs), &i);
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
        return r < 0 ? r : refuse(c, "rms_norm_eps", "is missing");
    r = c->rms_norm ? get_double(c, c->quant, "rms_norm_eps", &eps) : 0;
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

    r = get(c, c->config, "layer_types", &list);
    if (r <= 0)
        return r;
    for (struct json_walk w = json_walk(list); json_walk_next(&w); i++) {
        bool full = json_view_is(w.value, "full_attention");

        if (!full && (!gemma || !json_view_is(w.value, "sliding_attention")))
            return refuse(c, "layer_types", "has a kind of layer that is not computed");
        if (full && !period)
            period = i + 1;
        if (period && full != !((i + 1) % period))
            return refuse(c, "layer_types", "has no period");
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
    r = get_bool(c, c->config, "use_bidirectional_attention", &both_ways);
    if (r < 0 || both_ways)
        return r < 0 ? r : refuse(c, "use_bidirectional_attention", "is not computed");
    for (size_t i = 0; i < ARRAY_SIZE(none); i++) {
        r = get(c, c->config, none[i], &v);
        if (r)
            return r < 0 ? r : refuse(c, none[i], "is not computed");
    }
    r = get_double(c, c->config, "query_pre_attn_scalar", &scalar);
    if (r < 0 || (r && !(scalar > 0)))
        return r < 0 ? r : refuse(c, "query_pre_attn_scalar", "is not positive");
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
        r = get(c, c->tern, known[i].from, &v);
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
            return refuse(c, known[i].to, "is of another type");
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

    r = map_json(c, "1_Pooling/config.json", &v);
    for (size_t i = 0; i < ARRAY_SIZE(modes) && r > 0; i++) {
        on = false;
        r = get_bool(c, v, modes[i], &on);
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

    r = get(c, in, "eos_token_id", &v);
    if (r <= 0)
        return r;
    w = json_walk(v);
    one = v;
    while (json_view_kind(v) != '[' || json_walk_next(&w)) {
        if (json_view_kind(v) == '[')
            one = w.value;
        if (!json_view_u64(one, &id) || id >= c->n_vocab || *n == MAX_ENDS)
            return refuse(c, "eos_token_id", "is no token, or are more than 16");
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
    r = get_size(c, c->config, "bos_token_id", &bos);
    if (r > 0 && bos >= c->n_vocab)
        return refuse(c, "bos_token_id", "is no token");
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

static int write_keys(struct checkpoint *c)
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

/* ---- the directory ---------------------------------------------------------------------------------------------- */

static int read_directory(struct checkpoint *c)
{
    int r;

    r = map_json(c, "config.json", &c->config);
    if (r <= 0)
        return r < 0 ? r : err_set(c->err, -EINVAL, "%s: is a directory without config.json, so no model", c->dir);
    if ((r = map_json(c, "generation_config.json", &c->generation)) < 0 ||
        (r = map_json(c, "tokenizer_config.json", &c->tokenizer_config)) < 0 || (r = find_family(c)) < 0 ||
        (r = read_quantization(c)) < 0 || (r = get(c, c->config, "tern", &c->tern)) < 0 ||
        (r = read_all_weights(c)) < 0 ||
        (r = take_tensors(c)) < 0 || (r = check_head(c)) < 0)
        return r;
    return write_keys(c);
}

int huggingface_read(struct source *s, const char *dir, struct err *err)
{
    struct checkpoint c = { .s = s, .dir = dir, .err = err };
    int r;

    s->container = "safetensors";
    r = read_directory(&c);
    free(c.tensors);
    return r;
}
