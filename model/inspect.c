/* tern-model inspect: what a model file holds, for someone who has never seen one. A report is put together as JSON
 * from keys and tensors, from a sample of the ternary weights, and from what the engine makes of the file; then it is
 * printed as it is, or as text. */
#include "model/tool.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "base/json.h"
#include "engine/source.h"
#include "model/pack.h"

#define MAX_SAMPLED 24                  /* ternary tensors that are counted */
#define MAX_OPENED (8ull << 30)         /* bytes of a file that is opened as a model, too */

struct inspect {
    const struct source *source;
    struct model *model;                /* NULL: cannot be run, or was not tried */
    json_t *report, *warnings;
    char arch[32];
};

static void warn(struct inspect *in, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void warn(struct inspect *in, const char *fmt, ...)
{
    char text[640];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    json_array_append_new(in->warnings, json_stringn_nocheck(text, strlen(text)));
}

/* Text from a file: what is not printable ASCII is shown as '?'. */
static json_t *text_of(struct gguf_string s)
{
    char text[512];
    size_t n = MIN(s.len, sizeof(text) - 1);

    for (size_t i = 0; i < n; i++)
        text[i] = s.data[i] >= 0x20 && s.data[i] < 0x7f ? s.data[i] : '?';
    return json_stringn(text, n);
}

static bool is_text(struct gguf_string s, const char *with)
{
    return s.len == strlen(with) && !memcmp(s.data, with, s.len);
}

static struct gguf_string string_at(const struct inspect *in, const char *key)
{
    struct gguf_string s = {0};

    source_get_string(in->source, key, &s, NULL);
    return s;
}

/* A number of the architecture's own, or null; of an array, one a layer, its first. */
static json_t *number_at(const struct inspect *in, const char *suffix)
{
    uint64_t v = 0, n = 0;
    char key[96];

    snprintf(key, sizeof(key), "%s.%s", in->arch, suffix);
    if (source_get_u64(in->source, key, &v, NULL) > 0)
        return json_integer((json_int_t)v);
    if (source_get_array(in->source, key, GGUF_I32, &n, NULL) > 0 && n)
        return json_integer((json_int_t)gguf_array_number(source_keys(in->source), key, 0));
    return json_null();
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

static const char *kind_of(const struct source_tensor *t)
{
    static const struct { const char *in_name, *kind; } kinds[] = {
        { "token_embd", "embedding" }, { "norm", "norms" }, { "output", "head" }, { ".scale", "scales" },
    };
    char name[65];

    if (is_projection(t->name))
        return "ternary weights";
    snprintf(name, sizeof(name), "%.*s", (int)MIN(t->name.len, 64), t->name.data);
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
        if (strstr(name, kinds[i].in_name))
            return kinds[i].kind;
    return "other";
}

static void add_to(json_t *o, const char *key, uint64_t n)
{
    json_object_set_new(o, key, json_integer(json_integer_value(json_object_get(o, key)) + (json_int_t)n));
}

/* The row of this kind and type. */
static json_t *kind_row(json_t *rows, const char *kind, const char *type)
{
    json_t *row;
    size_t i;

    json_array_foreach(rows, i, row)
        if (!strcmp(json_string_value(json_object_get(row, "kind")), kind) &&
            !strcmp(json_string_value(json_object_get(row, "type")), type))
            return row;
    row = json_pack("{s:s, s:s, s:i, s:i, s:i}", "kind", kind, "type", type, "tensors", 0, "elements", 0, "bytes", 0);
    json_array_append_new(rows, row);
    return row;
}

static void report_tensors(struct inspect *in)
{
    json_t *rows = json_array(), *row;
    uint64_t all = 0, elements = 0, ternary = 0, bytes = 0;
    size_t i;

    for (i = 0; i < source_tensor_count(in->source); i++) {
        const struct source_tensor *t = source_tensor_at(in->source, i);
        uint64_t n = t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];

        row = kind_row(rows, kind_of(t), type_name(t->type));
        add_to(row, "tensors", 1);
        add_to(row, "elements", n);
        add_to(row, "bytes", t->bytes);
        elements += n;
        ternary += is_projection(t->name) ? n : 0;
        bytes += t->bytes;
    }
    all = source_bytes(in->source);
    row = kind_row(rows, "metadata", "");
    add_to(row, "bytes", all > bytes ? all - bytes : 0);
    json_array_foreach(rows, i, row) {
        double of_row = (double)json_integer_value(json_object_get(row, "bytes"));

        json_object_set_new(row, "share", json_real(all ? of_row / (double)all : 0));
    }
    json_object_set_new(in->report, "tensors", rows);
    json_object_set_new(in->report, "parameters", json_integer((json_int_t)elements));
    json_object_set_new(in->report, "ternary_parameters", json_integer((json_int_t)ternary));
}

struct sample { uint64_t zeros, trits; double low, high; size_t n, of; };

static void sample_scale(struct sample *s, double scale)
{
    s->low = s->n || s->low < scale ? fmin(s->low, scale) : scale;
    s->high = fmax(s->high, scale);
}

static int sample_tensor(struct sample *s, const struct inspect *in, const struct source_tensor *t, struct err *err)
{
    cleanup(arena_done) struct arena copies = {0};
    struct ternary_reading how = { .binary = is_text(string_at(in, "tern.weights"), "binary") };
    cleanup(freep) int8_t *trits = NULL;
    struct ternary w = {0};
    int r;

    arena_init(&copies);
    r = ternary_load(&w, t, how, &copies, err);
    if (r < 0)
        return r;
    trits = malloc(w.padded);
    if (!trits)
        return -ENOMEM;
    for (size_t row = 0; row < w.rows; row++) {
        ternary_unpack(trits, w.w + row * (w.padded / 4), 1, w.cols);
        for (size_t c = 0; c < w.cols; c++)
            s->zeros += !trits[c];
        if (w.row_scales)
            sample_scale(s, (double)w.row_scales[row]);
    }
    if (!w.row_scales)
        sample_scale(s, (double)w.scale);
    s->trits += w.rows * w.cols;
    s->n++;
    return 0;
}

/* Every so many of the ternary tensors, so that all depths and kinds are seen. */
static int report_sample(struct inspect *in, struct err *err)
{
    struct sample s = { .low = INFINITY };
    struct progress progress;
    size_t n = source_tensor_count(in->source), step, nth = 0;

    for (size_t i = 0; i < n; i++)
        s.of += is_projection(source_tensor_at(in->source, i)->name);
    step = MAX(1, (s.of + MAX_SAMPLED - 1) / MAX_SAMPLED);
    step += step % N_PROJECTIONS == 0;          /* else one kind only, layer after layer */
    progress_begin(&progress, "counting");
    for (size_t i = 0; i < n; i++) {
        const struct source_tensor *t = source_tensor_at(in->source, i);
        int r = is_projection(t->name) && nth++ % step == 0 ? sample_tensor(&s, in, t, err) : 0;

        if (r < 0) {
            progress_end(&progress);
            return r;
        }
        progress_show(&progress, (double)i / (double)n, "");
    }
    progress_end(&progress);
    if (!s.n)
        return 0;
    json_object_set_new(in->report, "quantisation", json_pack("{s:I, s:I, s:f, s:f, s:f}", "tensors", (json_int_t)s.of,
                        "sampled", (json_int_t)s.n, "scale_min", s.low, "scale_max", s.high,
                        "zero_share", (double)s.zeros / (double)s.trits));
    if (!is_text(string_at(in, "tern.weights"), "binary") && (s.zeros * 5 < s.trits || s.zeros * 5 > s.trits * 3))
        warn(in, "%.0f %% of the sampled weights are zero; trained models have 20 to 60 %%. The file may have been made "
             "from weights that were not ternary.", 100 * (double)s.zeros / (double)s.trits);
    if (s.high > 10)
        warn(in, "Scales reach %.3g; trained models stay below 3. The checkpoint may say to multiply where it should "
             "say to divide.", s.high);
    return 0;
}

/* ---- tokenizer and graph ---------------------------------------------------------------------------------------- */

static json_t *token_at(const struct inspect *in, const char *key)
{
    const struct gguf *g = source_keys(in->source);
    uint64_t id = 0, n = 0;

    if (source_get_u64(in->source, key, &id, NULL) <= 0 ||
        source_get_array(in->source, "tokenizer.ggml.tokens", GGUF_STRING, &n, NULL) <= 0 || id >= n)
        return json_null();
    return text_of(gguf_array_string(g, "tokenizer.ggml.tokens", id));
}

static void report_tokenizer(struct inspect *in)
{
    uint64_t tokens = 0, merges = 0;
    struct gguf_string pre = string_at(in, "tokenizer.ggml.pre");

    source_get_array(in->source, "tokenizer.ggml.tokens", GGUF_STRING, &tokens, NULL);
    source_get_array(in->source, "tokenizer.ggml.merges", GGUF_STRING, &merges, NULL);
    json_object_set_new(in->report, "tokenizer", json_pack("{s:o, s:o, s:I, s:I, s:o, s:o}",
                        "model", text_of(string_at(in, "tokenizer.ggml.model")),
                        "pre", pre.data ? text_of(pre) : json_null(),
                        "tokens", (json_int_t)tokens, "merges", (json_int_t)merges,
                        "begin", token_at(in, "tokenizer.ggml.bos_token_id"),
                        "end", token_at(in, "tokenizer.ggml.eos_token_id")));
}

static void report_graph(struct inspect *in, const char *why_not)
{
    static const char *const acts[] = { [ACT_RELU2] = "squared ReLU", [ACT_SILU] = "SiLU", [ACT_GELU] = "GELU" };
    static const char *const poolings[] = { "none", "mean", "first", "last" };
    const struct model *m = in->model;

    json_object_set_new(in->report, "runs", why_not && !*why_not ? json_null() : json_boolean(m));
    json_object_set_new(in->report, "why_not", m || !why_not || !*why_not ? json_null()
                        : text_of((struct gguf_string){ why_not, strlen(why_not) }));
    if (!m)
        return;
    json_object_set_new(in->report, "graph", json_pack("{s:s, s:s, s:f, s:b, s:b, s:s, s:i}",
                        "activation", acts[m->act], "rope", m->rope_half ? "half" : "adjacent", "rope_base", (double)m->rope_base,
                        "sub_norms", m->layers[0].attn_sub_norm != NULL, "tied", m->embd.w == m->head.w,
                        "pooling", poolings[m->pooling], "kv_bits", (int)m->kv_bits));
    json_object_set_new(in->report, "template", json_string(m->template));
}

static void report_shape(struct inspect *in)
{
    static const struct { const char *name, *suffix; } sizes[] = {
        { "layers", "block_count" }, { "width", "embedding_length" }, { "feed_forward", "feed_forward_length" },
        { "heads", "attention.head_count" }, { "kv_heads", "attention.head_count_kv" },
        { "head_width", "attention.key_length" }, { "context", "context_length" },
    };
    json_t *shape = json_object();

    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
        json_object_set_new(shape, sizes[i].name, number_at(in, sizes[i].suffix));
    if (json_is_null(json_object_get(shape, "kv_heads")))
        json_object_set(shape, "kv_heads", json_object_get(shape, "heads"));
    if (json_is_null(json_object_get(shape, "head_width")) && json_integer_value(json_object_get(shape, "heads")))
        json_object_set_new(shape, "head_width", json_integer(json_integer_value(json_object_get(shape, "width")) /
                            json_integer_value(json_object_get(shape, "heads"))));
    json_object_set_new(in->report, "shape", shape);
}

/* ---- what to be warned of (bitnet.md 0) ------------------------------------------------------------------------- */

static void warn_of_tokenizer(struct inspect *in)
{
    bool b158 = !strcmp(in->arch, "bitnet-b1.58") || !strcmp(in->arch, "bitnet-25");
    struct gguf_string end = {0}, model = string_at(in, "tokenizer.ggml.model");
    const struct gguf *g = source_keys(in->source);
    uint64_t id, n = 0;
    bool eot = false;

    if (source_get_string(in->source, "tokenizer.ggml.pre", &end, NULL) == 0 && is_text(model, "gpt2"))
        warn(in, "The file does not say how text is cut before it is tokenized (tokenizer.ggml.pre)%s. Assumed: %s.",
             b158 ? ", as the official 2B4T file does not" : "", b158 ? "llama-bpe" : "by the vocabulary's size");
    if (source_get_string(in->source, "tokenizer.chat_template", &end, NULL) > 0)
        warn(in, "%s", b158
             ? "The chat template in the file is not used: that of the official 2B4T file is a placeholder. Built in: "
               "\"User: ...<|eot_id|>Assistant: \"."
             : "The chat template in the file is not run; the built-in one of its family is used.");
    source_get_array(in->source, "tokenizer.ggml.tokens", GGUF_STRING, &n, NULL);
    for (uint64_t i = 0; i < n && !eot; i++)
        eot = is_text(gguf_array_string(g, "tokenizer.ggml.tokens", i), "<|eot_id|>");
    if (eot && source_get_u64(in->source, "tokenizer.ggml.eos_token_id", &id, NULL) > 0 && id < n &&
        source_get_u64(in->source, "tokenizer.ggml.eot_token_id", &id, NULL) == 0)
        warn(in, "The file names one end token; answers also end at <|eot_id|>, which is in its vocabulary.");
    if (!strcmp(in->arch, "bitnet-b1.58") && source_get_string(in->source, "tern.activation", &end, NULL) == 0)
        warn(in, "Architecture bitnet-b1.58 does not say its activation: squared ReLU (Microsoft's 2B4T) with a "
             "byte-level vocabulary, SiLU (1bitLLM) with SentencePiece.");
}

static void warn_of_tensors(struct inspect *in)
{
    const struct source_tensor *embd = source_tensor(in->source, "token_embd.weight");
    const struct source_tensor *head = source_tensor(in->source, "output.weight");
    bool masters = false, half_norms = false, ragged = false;

    for (size_t i = 0; i < source_tensor_count(in->source); i++) {
        const struct source_tensor *t = source_tensor_at(in->source, i);

        if (is_projection(t->name)) {
            masters = masters || type_is_dense(t->type);
            ragged = ragged || t->dims[0] % TERNARY_BLOCK;
        } else if (!strcmp(kind_of(t), "norms")) {
            half_norms = half_norms || t->type == TENSOR_F16;
        }
    }
    if (masters)
        warn(in, "The ternary weights are stored as floats and are made ternary when the model is opened, by their "
             "mean magnitude. Trits of a packed release may differ in some places.");
    if (half_norms)
        warn(in, "Norms are stored in F16, where gains below 6e-8 have become 0; some of the 2B4T's are as small as "
             "1e-34.");
    if (ragged)
        warn(in, "Rows of ternary weights are not a multiple of %d wide: they are repacked when the model is opened; "
             "some engines compute such models wrongly.", TERNARY_BLOCK);
    if (embd && head && embd->bytes == head->bytes && !memcmp(embd->data, head->data, embd->bytes))
        warn(in, "output.weight is a copy of token_embd.weight and could be left out.");
}

/* ---- text ------------------------------------------------------------------------------------------------------- */

static long long whole(const json_t *o, const char *key)
{
    return (long long)json_integer_value(json_object_get(o, key));
}

static const char *words(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));

    return s && *s ? s : "unknown";
}

static const char *about_architecture(const char *arch)
{
    static const struct { const char *arch, *about; } known[] = {
        { "bitnet-b1.58", "BitNet b1.58, with norms inside each layer" },
        { "bitnet-25", "BitNet b1.58 2B4T, early files" },
        { "bitnet", "BitNet b1.58, the 1bitLLM reproductions" },
        { "llama", "Llama's graph with ternary weights (Falcon3, Falcon-E, Llama3-1.58)" },
        { "qwen3", "Qwen3's graph with ternary weights" },
        { "gemma3", "Gemma 3's graph with ternary weights" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(known); i++)
        if (!strcmp(known[i].arch, arch))
            return known[i].about;
    return "not one this program knows";
}

static const char *about_tokenizer(const char *model)
{
    return !strcmp(model, "gpt2") ? "byte-level BPE" : !strcmp(model, "llama") ? "SentencePiece BPE" : model;
}

static void size_text(char out[32], double n, const char *const units[4])
{
    size_t u = 0;

    for (; n >= 1000 && u < 3; u++)
        n /= 1000;
    snprintf(out, 32, u && n < 100 ? "%.2f%s" : "%.0f%s", n, units[u]);
}

static void print_shape(const json_t *report)
{
    static const char *const counts[] = { "", " thousand", " million", " billion" };
    const json_t *shape = json_object_get(report, "shape"), *graph = json_object_get(report, "graph");
    const char *arch = words(report, "architecture");
    char all[32], ternary[32];

    size_text(all, (double)whole(report, "parameters"), counts);
    size_text(ternary, (double)whole(report, "ternary_parameters"), counts);
    printf("Model\n");
    printf("  name           %s\n", words(report, "name"));
    printf("  architecture   %s: %s\n", arch, about_architecture(arch));
    printf("  parameters     %s, %s of them ternary (each -1, 0 or 1)\n", all, ternary);
    printf("  layers         %lld, each %lld wide; feed-forward %lld wide\n", whole(shape, "layers"),
           whole(shape, "width"), whole(shape, "feed_forward"));
    printf("  attention      %lld heads of %lld, sharing %lld for keys and values\n", whole(shape, "heads"),
           whole(shape, "head_width"), whole(shape, "kv_heads"));
    printf("  context        at most %lld tokens\n", whole(shape, "context"));
    if (graph)
        printf("  graph          %s, %s, %s head%s%s\n", words(graph, "activation"),
               json_is_true(json_object_get(graph, "sub_norms")) ? "sub-norms" : "no sub-norms",
               json_is_true(json_object_get(graph, "tied")) ? "the embedding is also the" : "its own",
               strcmp(words(graph, "pooling"), "none") ? ", makes embeddings from tokens: " : "",
               strcmp(words(graph, "pooling"), "none") ? words(graph, "pooling") : "");
}

static void print_bytes(const json_t *report)
{
    static const char *const units[] = { " B", " kB", " MB", " GB" };
    const json_t *row;
    char bytes[32];
    size_t i;

    size_text(bytes, (double)whole(report, "bytes"), units);
    printf("\nWhat the %s hold\n", bytes);
    json_array_foreach(json_object_get(report, "tensors"), i, row) {
        size_text(bytes, (double)whole(row, "bytes"), units);
        printf("  %-16s %9s %5.1f %%", words(row, "kind"), bytes, 100 * json_real_value(json_object_get(row, "share")));
        if (whole(row, "tensors"))
            printf("   %lld tensor%s of type %s", whole(row, "tensors"), whole(row, "tensors") == 1 ? "" : "s",
                   words(row, "type"));
        putchar('\n');
    }
}

static void print_quantisation(const json_t *report)
{
    const json_t *q = json_object_get(report, "quantisation");
    double low = json_real_value(json_object_get(q, "scale_min"));
    double high = json_real_value(json_object_get(q, "scale_max"));

    if (!q)
        return;
    printf("\nTernary weights (%lld of %lld tensors looked at)\n", whole(q, "sampled"), whole(q, "tensors"));
    printf("  zeros          %.1f %%\n", 100 * json_real_value(json_object_get(q, "zero_share")));
    printf(low == high ? "  scale          %.4g: what a 1 stands for\n"
                       : "  scales         %.4g to %.4g: what a 1 stands for\n", low, high);
}

static void print_text(const json_t *report)
{
    const json_t *t = json_object_get(report, "tokenizer"), *runs = json_object_get(report, "runs"), *w;
    size_t i;

    printf("%s: %s\n\n", words(report, "path"), words(report, "container"));
    print_shape(report);
    print_bytes(report);
    print_quantisation(report);
    printf("\nText\n  tokenizer      %s, %lld tokens, pre-tokenizer %s\n", about_tokenizer(words(t, "model")),
           whole(t, "tokens"), json_is_string(json_object_get(t, "pre")) ? words(t, "pre") : "not named");
    printf("  begins, ends   %s, %s\n", words(t, "begin"), words(t, "end"));
    printf("  chat template  %s\n", words(report, "template"));
    printf("\nRuns here        %s%s\n",
           json_is_null(runs) ? "not tried: the file is very large" : json_is_true(runs) ? "yes" : "no: ",
           json_is_false(runs) ? words(report, "why_not") : "");
    if (json_array_size(json_object_get(report, "warnings")))
        puts("\nGood to know");
    json_array_foreach(json_object_get(report, "warnings"), i, w)
        printf("  - %s\n", json_string_value(w));
}

/* ---- the verb --------------------------------------------------------------------------------------------------- */

static int inspect(struct inspect *in, const char *path, struct err *err)
{
    struct gguf_string arch = string_at(in, "general.architecture"), name = string_at(in, "general.name");
    struct err why = {0};
    bool tried = source_bytes(in->source) <= MAX_OPENED;
    int r;


    json_object_set_new(in->report, "path", json_string(path));
    json_object_set_new(in->report, "container", json_string(source_container(in->source)));
    json_object_set_new(in->report, "bytes", json_integer((json_int_t)source_bytes(in->source)));
    json_object_set_new(in->report, "name", name.data ? text_of(name) : json_null());
    json_object_set_new(in->report, "architecture", text_of(arch));
    snprintf(in->arch, sizeof(in->arch), "%s", words(in->report, "architecture"));
    report_shape(in);
    report_tensors(in);
    report_tokenizer(in);
    if (tried && model_open(&in->model, path, NULL, &why) == -ENOMEM)
        return -ENOMEM;
    report_graph(in, tried ? why.msg[0] ? why.msg : NULL : "");
    /* A file that cannot be run may well be broken where the sample would look. */
    r = report_sample(in, err);
    if (r < 0 && in->model)
        return r;
    warn_of_tokenizer(in);
    warn_of_tensors(in);
    json_object_set(in->report, "warnings", in->warnings);
    return 0;
}

static int inspect_run(int argc, char **argv)
{
    static const struct option options[] = { { "json", no_argument, NULL, 'j' }, { 0 } };
    cleanup(source_freep) struct source *source = NULL;
    cleanup(json_decrefp) json_t *report = json_object(), *warnings = json_array();
    struct inspect in = { .report = report, .warnings = warnings };
    struct err err = {0};
    bool json = false;
    int opt, r;

    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (opt != 'j')
            return usage_error(&inspect_verb, "unknown option");
        json = true;
    }
    if (optind + 1 != argc)
        return usage_error(&inspect_verb, "expected one file or directory");
    r = source_open(&source, argv[optind], &err);
    if (r < 0)
        return failure(r, &err);
    in.source = source;
    r = report && warnings ? inspect(&in, argv[optind], &err) : -ENOMEM;
    model_free(in.model);
    if (r < 0)
        return failure(r, &err);
    if (json) {
        json_dumpf(report, stdout, JSON_INDENT(2));
        putchar('\n');
    } else {
        print_text(report);
    }
    return TOOL_OK;
}

const struct verb inspect_verb = {
    .name = "inspect", .arguments = "[--json] FILE|DIRECTORY", .summary = "Tell what a model file holds",
    .help = "\n  --json    the same as JSON\n", .run = inspect_run,
};
