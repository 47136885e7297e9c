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
#include "engine/huggingface.h"

static const struct family families[] = {
    { "BitNet",  "bitnet",       "bitnet-b1.58", 0   },
    { "Bitnet",  "bitnet",       "bitnet",       0   },              /* 1bitLLM's reproductions */
    { "Llama",   "llama",        "llama",        0   },
    { "Qwen3",   "qwen3",        "qwen3",        128 },
    { "Gemma3",  "gemma3_text",  "gemma3",       256 },
};

/* ---- config.json ------------------------------------------------------------------------------------------------ */

int checkpoint_refuse(const struct checkpoint *c, const char *key, const char *why)
{
    return err_set(c->err, -EINVAL, "config.json: %s %s", key, why);
}

int checkpoint_get(const struct checkpoint *c, struct json_view in, const char *key, struct json_view *ret)
{
    int r = in.s ? json_view_get(in, key, ret, NULL) : 0;

    return r < 0 ? checkpoint_refuse(c, key, "stands twice") : r;
}

int checkpoint_size(const struct checkpoint *c, struct json_view in, const char *key, uint64_t *ret)
{
    struct json_view v;
    int r = checkpoint_get(c, in, key, &v);

    if (r > 0 && (!json_view_u64(v, ret) || *ret > UINT32_MAX))
        return checkpoint_refuse(c, key, "is no number from 0 to 4294967295");
    return r;
}

int checkpoint_double(const struct checkpoint *c, struct json_view in, const char *key, double *ret)
{
    struct json_view v;
    int r = checkpoint_get(c, in, key, &v);

    return r > 0 && !json_view_double(v, ret) ? checkpoint_refuse(c, key, "is no number") : r;
}

int checkpoint_bool(const struct checkpoint *c, struct json_view in, const char *key, bool *ret)
{
    struct json_view v;
    int r = checkpoint_get(c, in, key, &v);

    return r > 0 && !json_view_bool(v, ret) ? checkpoint_refuse(c, key, "is neither true nor false") : r;
}

int checkpoint_choice(const struct checkpoint *c, struct json_view in, const char *key, const char *const names[],
                      size_t n, size_t *ret)
{
    struct json_view v;
    int r = checkpoint_get(c, in, key, &v);

    if (r <= 0)
        return r;
    for (size_t i = 0; i < n; i++)
        if (json_view_is(v, names[i])) {
            *ret = i;
            return 1;
        }
    return checkpoint_refuse(c, key, "is nothing that is computed here");
}

int checkpoint_json(struct checkpoint *c, const char *name, struct json_view *ret)
{
    struct source_file f;
    int r;

    r = source_map(c->s, c->dir, name, &f, c->err);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    r = json_view_open(ret, f.data, f.size, name, c->err);
    return r < 0 ? r : 1;
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

    r = checkpoint_get(c, c->config, "architectures", &classes);
    if (r < 0)
        return r;
    w = r ? json_walk(classes) : (struct json_walk){ 0 };
    if (json_walk_next(&w))
        first = w.value;
    has_type = checkpoint_get(c, c->config, "model_type", &type);
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
    return checkpoint_refuse(c, "architectures",
                             "names no model that is run: BitNet, Bitnet, Llama, Qwen3 and Gemma3 are");
}

/* ---- quantization_config ---------------------------------------------------------------------------------------- */

static int read_quantization(struct checkpoint *c)
{
    static const char *const classes[] = { "bitlinear", "autobitlinear" }, *const modes[] = { "offline", "online" };
    static const char *const methods[] = { "bitnet" };
    size_t class = 0, mode = 0, method;
    bool flag;
    int r;

    r = checkpoint_get(c, c->config, "quantization_config", &c->quant);
    if (r <= 0)
        return r;
    r = checkpoint_choice(c, c->quant, "quant_method", methods, ARRAY_SIZE(methods), &method);
    if (r <= 0)
        return r < 0 ? r : checkpoint_refuse(c, "quant_method", "is missing");
    if ((r = checkpoint_choice(c, c->quant, "linear_class", classes, ARRAY_SIZE(classes), &class)) < 0 ||
        (r = checkpoint_choice(c, c->quant, "quantization_mode", modes, ARRAY_SIZE(modes), &mode)) < 0)
        return r;
    /* Early files say the mode with a bool. */
    if ((r = checkpoint_bool(c, c->quant, "online_quantization", &flag)) < 0)
        return r;
    mode = r ? flag : mode;
    if ((r = checkpoint_bool(c, c->quant, "offline_quantization", &flag)) < 0)
        return r;
    mode = r ? !flag : mode;
    c->divide = !class;
    c->online = mode;
    r = checkpoint_bool(c, c->quant, "use_rms_norm", &c->rms_norm);
    return MIN(r, 0);
}

/* ---- the directory ---------------------------------------------------------------------------------------------- */

static int read_directory(struct checkpoint *c)
{
    int r;

    r = checkpoint_json(c, "config.json", &c->config);
    if (r <= 0)
        return r < 0 ? r : err_set(c->err, -EINVAL, "%s: is a directory without config.json, so no model", c->dir);
    if ((r = checkpoint_json(c, "generation_config.json", &c->generation)) < 0 ||
        (r = checkpoint_json(c, "tokenizer_config.json", &c->tokenizer_config)) < 0 || (r = find_family(c)) < 0 ||
        (r = read_quantization(c)) < 0 || (r = checkpoint_get(c, c->config, "tern", &c->tern)) < 0 ||
        (r = checkpoint_weights(c)) < 0 || (r = checkpoint_tensors(c)) < 0)
        return r;
    return checkpoint_keys(c);
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
