/* The files of a Hugging Face directory that hold weights, and their tensors under GGUF's names.
 *
 * One model.safetensors, or shards with an index that must place every tensor in just the file that has it. */
#include "engine/huggingface.h"

#define MAX_NORM (1u << 20)
#define MAX_LAYER 1023
#define INDEX "model.safetensors.index.json"

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

    r = checkpoint_get(c, c->quant, "modules_to_not_convert", &list);
    if (r <= 0 || strncmp(ours, "blk.", 4) || strstr(ours, "norm"))
        return MIN(r, 0);
    for (struct json_walk w = json_walk(list); json_walk_next(&w);) {
        if (json_view_kind(w.value) != '"' || w.value.len >= sizeof(name))
            return checkpoint_refuse(c, "modules_to_not_convert", "is no list of modules");
        name[json_view_text(w.value, name)] = '\0';
        if (*name && strstr(theirs, name))
            return err_set(c->err, -EINVAL,
                           "config.json: modules_to_not_convert names %.64s: all linear layers are run ternary", name);
    }
    return 0;
}

/* Names first, then the scales that belong to them. */
/* Tied embeddings: a head in the file is not used. */
static int drop_tied_head(struct checkpoint *c)
{
    const struct source_tensor *head = source_tensor(c->s, "output.weight");
    bool tied = !head;
    size_t i;
    int r;

    r = checkpoint_bool(c, c->config, "tie_word_embeddings", &tied);
    if (r < 0 || !tied || !head)
        return MIN(r, 0);
    i = (size_t)(head - c->s->tensors);
    memmove(&c->s->tensors[i], &c->s->tensors[i + 1], (--c->s->n_tensors - i) * sizeof(*head));
    return 0;
}

int checkpoint_tensors(struct checkpoint *c)
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
                           (int)c->s->tensors[i].name.len, c->s->tensors[i].name.data);
    return drop_tied_head(c);
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

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

int checkpoint_weights(struct checkpoint *c)
{
    struct json_view index;
    int r;

    r = checkpoint_json(c, INDEX, &index);
    if (r < 0)
        return r;
    return r ? read_shards(c, index) : read_weights(c, "model.safetensors", NULL, 0);
}
