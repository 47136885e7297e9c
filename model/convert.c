/* tern-model convert: a checkpoint of any container as one GGUF file, its ternary weights in another type and its
 * embedding in another precision. Trits and scales are carried over exactly or the conversion is refused; float
 * masters are quantised as when they are run. Keys are copied as they stand, but those that tell how the old file
 * was made. */
#include "model/tool.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include "engine/gguf_write.h"
#include "engine/source.h"
#include "model/pack.h"

struct convert {
    const struct source *source;
    struct gguf_writer *w;
    enum tensor_type type, embedding;
    bool any_type, any_embedding;           /* given on the command line */
    bool scale_tensors;
    struct ternary_reading how;
    struct progress progress;
    struct err *err;
};

static bool is_named(const struct source_tensor *t, const char *name)
{
    return t->name.len == strlen(name) && !memcmp(t->name.data, name, t->name.len);
}

static void name_of(const struct source_tensor *t, char name[65])
{
    snprintf(name, 65, "%.*s", (int)MIN(t->name.len, 64), t->name.data);
}

static bool is_embedding(const struct source_tensor *t)
{
    return is_named(t, "token_embd.weight") || is_named(t, "output.weight");
}

static enum tensor_type type_after(const struct convert *c, const struct source_tensor *t)
{
    if (is_projection(t->name))
        return c->any_type || !type_is_ternary(t->type) ? c->type : t->type;
    return is_embedding(t) && c->any_embedding ? c->embedding : t->type;
}

/* blk.0.attn_q.weight gives blk.0.attn_q.scale. */
static void scale_name(const struct source_tensor *t, char name[65])
{
    name_of(t, name);
    memcpy(strrchr(name, '.'), ".scale", sizeof(".scale"));
}

/* Does this tensor's scale go into a tensor of its own? */
static bool gets_scale_tensor(const struct convert *c, const struct source_tensor *t)
{
    char name[65];

    if (!c->scale_tensors || !is_projection(t->name))
        return false;
    scale_name(t, name);
    return !source_tensor(c->source, name);
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

static int write_ternary(struct convert *c, const struct source_tensor *t)
{
    cleanup(arena_done) struct arena copies = {0};
    cleanup(freep) uint8_t *out = NULL;
    cleanup(freep) int8_t *trits = NULL;
    bool apart = gets_scale_tensor(c, t);
    struct ternary w = {0};
    struct packer p;
    char name[65];
    int r;

    arena_init(&copies);
    name_of(t, name);
    r = ternary_load(&w, t, c->how, &copies, c->err);
    if (r < 0)
        return r;
    if (apart && w.row_scales)
        return err_set(c->err, -EINVAL,
                       "tensor %s: its rows have scales of their own, which one scale tensor cannot hold", name);
    r = packer_init(&p, name, type_after(c, t), w.cols, w.rows, apart ? 1 : w.scale, w.row_scales, c->err);
    if (r < 0)
        return r;
    out = malloc(packer_room(&p));
    trits = malloc(w.padded);
    if (!out || !trits)
        return -ENOMEM;
    for (size_t row = 0; row < w.rows; row++) {
        ternary_unpack(trits, w.w + row * (w.padded / 4), 1, w.cols);
        r = gguf_write_data(c->w, out, pack_row(&p, trits, out), c->err);
        if (r < 0)
            return r;
    }
    return apart ? gguf_write_data(c->w, &w.scale, sizeof(w.scale), c->err) : 0;
}

static int write_dense(struct convert *c, const struct source_tensor *t)
{
    cleanup(freep) uint8_t *out = malloc(t->dims[0] * 4);
    cleanup(freep) float *x = malloc(t->dims[0] * sizeof(*x));
    struct dense d;
    int r;

    if (!out || !x)
        return -ENOMEM;
    r = dense_load(&d, t, c->err);
    if (r < 0)
        return r;
    for (size_t row = 0; row < d.rows; row++) {
        dense_row(&d, row, x);
        r = gguf_write_data(c->w, out, pack_floats(c->embedding, x, d.cols, out), c->err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int write_tensor(struct convert *c, const struct source_tensor *t)
{
    if (is_projection(t->name))
        return write_ternary(c, t);
    if (type_after(c, t) != t->type)
        return write_dense(c, t);
    return gguf_write_data(c->w, t->data, t->bytes, c->err);
}

static int declare_tensor(struct convert *c, const struct source_tensor *t)
{
    char name[65];

    name_of(t, name);
    if (t->n_dims > 2)
        return err_set(c->err, -EINVAL, "tensor %s has %u dimensions; written are 1 and 2", name, t->n_dims);
    gguf_write_tensor(c->w, name, type_after(c, t), t->dims[0], t->dims[1]);
    if (gets_scale_tensor(c, t)) {
        scale_name(t, name);
        gguf_write_tensor(c->w, name, TENSOR_F32, 1, 1);
    }
    return 0;
}

/* ---- the file --------------------------------------------------------------------------------------------------- */

static void copy_keys(struct convert *c)
{
    static const char *const dropped[] = { "general.alignment", "general.file_type", "split." };
    struct gguf_string name, whole;

    for (size_t i = 0; (whole = gguf_key_at(source_keys(c->source), i, &name)).data; i++) {
        bool keep = true;

        for (size_t d = 0; d < ARRAY_SIZE(dropped); d++)
            keep = keep && (name.len < strlen(dropped[d]) || memcmp(name.data, dropped[d], strlen(dropped[d])));
        if (keep)
            gguf_write_key(c->w, whole);
    }
    gguf_write_u32(c->w, "general.file_type", type_file_type(c->type));
}

static int convert_write(struct convert *c, const char *path)
{
    cleanup(gguf_writer_freep) struct gguf_writer *w = NULL;
    size_t n = source_tensor_count(c->source);
    int r = gguf_writer_new(&w);

    if (r < 0)
        return r;
    c->w = w;
    copy_keys(c);
    for (size_t i = 0; i < n && r >= 0; i++)
        r = declare_tensor(c, source_tensor_at(c->source, i));
    if (r >= 0)
        r = gguf_writer_begin(w, path, c->err);
    progress_begin(&c->progress, "converting");
    for (size_t i = 0; i < n && r >= 0; i++) {
        r = write_tensor(c, source_tensor_at(c->source, i));
        progress_show(&c->progress, (double)(i + 1) / (double)n, "");
    }
    progress_end(&c->progress);
    return r < 0 ? r : gguf_writer_end(w, c->err);
}

static int convert_run(int argc, char **argv)
{
    static const struct option options[] = {
        { "type", required_argument, NULL, 't' }, { "embedding", required_argument, NULL, 'e' },
        { "i2s-layout", required_argument, NULL, 'l' }, { "scale-tensors", no_argument, NULL, 's' }, { 0 },
    };
    cleanup(source_freep) struct source *source = NULL;
    struct err err = {0};
    struct convert c = { .type = TENSOR_I2_S, .err = &err };
    struct gguf_string weights;
    int opt, r;

    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (opt) {
        case 't':
            if (type_find(optarg, &c.type) || !type_is_ternary(c.type))
                return usage_error(&convert_verb, "--type %s is not a ternary type", optarg);
            c.any_type = true;
            break;
        case 'e':
            if (type_find(optarg, &c.embedding) || !type_is_dense(c.embedding))
                return usage_error(&convert_verb, "--embedding %s is not a type for embeddings", optarg);
            c.any_embedding = true;
            break;
        case 'l':
            if (strlen(optarg) != 1 || !strchr("abc", *optarg))
                return usage_error(&convert_verb, "--i2s-layout takes a, b or c");
            c.how.i2s_layout = *optarg;
            break;
        case 's': c.scale_tensors = true; break;
        default: return usage_error(&convert_verb, "unknown option");
        }
    }
    if (optind + 2 != argc)
        return usage_error(&convert_verb, "expected what to read and a file to write");
    r = source_open(&source, argv[optind], &err);
    if (r < 0)
        return failure(r, &err);
    if (source_get_string(source, "tern.weights", &weights, NULL) > 0)
        c.how.binary = weights.len == strlen("binary") && !memcmp(weights.data, "binary", weights.len);
    c.source = source;
    r = convert_write(&c, argv[optind + 1]);
    return r < 0 ? failure(r, &err) : TOOL_OK;
}

const struct verb convert_verb = {
    .name = "convert", .arguments = "[OPTIONS] IN OUT",
    .summary = "Write a checkpoint as GGUF, in other types if asked",
    .help = "IN is a GGUF file, one of a split set, or a directory of safetensors. Trits and scales are carried over\n"
            "exactly; what the new type cannot hold is refused. Float masters become ternary as when they are run.\n"
            "\n  --type TYPE        i2_s, tq1_0, tq2_0, iq1_bn or iq2_bn for ternary weights (default: as they are,\n"
            "                     i2_s for those that no GGUF holds)\n"
            "  --embedding TYPE   f32, f16, bf16, q8_0, q6_k, q5_0 or q4_0 for embedding and head (default: as they are)\n"
            "  --scale-tensors    put scales into tensors of their own, exact where the type has only 16 bits\n"
            "  --i2s-layout L     the order of I2_S weights in IN: a (default), b (ARM builds) or c (rows by four)\n",
    .run = convert_run,
};
