/* tern-model perplexity: how well a model foretells a text. The text is cut into documents at <|endoftext|>, less
 * the white space around them, and documents into windows of the context. Each window begins with BOS where the
 * vocabulary has one, and every token but the first of a window is foretold from those before it. */
#include "model/tool.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define BATCH 32
#define MAX_TEXT (1u << 30)

static const char separator[] = "<|endoftext|>";

struct measure {
    struct model *model;
    struct pool *pool;
    struct kv_pool *kv;
    struct forward *forward;
    struct session *session;
    float *logits;                  /* (BATCH, n_vocab) */
    double nats;
    size_t n_scored, n_seen, n_text;    /* tokens foretold; bytes done and in all */
    struct progress progress;
};

static void measure_done(struct measure *m)
{
    free(m->logits);
    session_free(m->session);
    kv_pool_free(m->kv);
    forward_free(m->forward);
    pool_free(m->pool);
    model_free(m->model);
}

static int measure_init(struct measure *m, const char *path, size_t context, enum kv_type kv, unsigned threads,
                        const struct model_options *options, struct err *err)
{
    int r;

    if ((r = model_open(&m->model, path, options, err)) < 0 || (r = pool_new(&m->pool, threads)) < 0 ||
        (r = forward_new(&m->forward, m->model, m->pool, BATCH, err)) < 0 ||
        (r = kv_pool_new(&m->kv, m->model, kv, 0, err)) < 0 || (r = session_new(&m->session, m->kv, context)) < 0)
        return r;
    m->logits = calloc(BATCH * m->model->n_vocab, sizeof(*m->logits));
    return m->logits ? 0 : -ENOMEM;
}

/* -log of the probability that softmax gives to token `id`. */
static double surprise(const float *logits, size_t n, int32_t id)
{
    float most = logits[0];
    double sum = 0;

    for (size_t i = 1; i < n; i++)
        most = fmaxf(most, logits[i]);
    for (size_t i = 0; i < n; i++)
        sum += exp((double)(logits[i] - most));
    return log(sum) + (double)(most - logits[id]);
}

/* One window: ids (n), the first only given. */
static int measure_window(struct measure *m, const int32_t *ids, size_t n)
{
    struct forward_row rows[BATCH];
    size_t n_vocab = m->model->n_vocab;

    session_reset(m->session, 0);
    for (size_t begin = 0; begin + 1 < n; begin += BATCH) {
        size_t count = MIN(BATCH, n - 1 - begin);
        char more[64];
        int r;

        for (size_t i = 0; i < count; i++)
            rows[i] = (struct forward_row){ .session = m->session, .token = ids[begin + i],
                                            .logits = m->logits + i * n_vocab };
        r = forward_run(m->forward, rows, count);
        if (r < 0)
            return r;
        for (size_t i = 0; i < count; i++)
            m->nats += surprise(m->logits + i * n_vocab, n_vocab, ids[begin + i + 1]);
        m->n_scored += count;
        snprintf(more, sizeof(more), ", %zu tokens, ppl %.4f", m->n_scored, exp(m->nats / (double)m->n_scored));
        progress_show(&m->progress, (double)m->n_seen / (double)m->n_text, more);
    }
    return 0;
}

static int measure_document(struct measure *m, const char *text, size_t len, struct err *err)
{
    const struct tokenizer *t = m->model->tokenizer;
    bool bos = tokenizer_bos(t) >= 0;
    cleanup(tokens_done) struct tokens all = {0}, window = {0};
    size_t room = m->session->n_ctx + 1 - bos;          /* the last token of a window is not run */
    int r;

    r = tokenizer_encode(t, text, len, false, &all);
    if (r < 0)
        return r == -EINVAL ? err_set(err, r, "the text is not UTF-8") : r;
    for (size_t begin = 0; begin < all.len; begin += room) {
        window.len = 0;
        if (bos && (r = tokens_push(&window, tokenizer_bos(t))) < 0)
            return r;
        for (size_t i = begin; i < MIN(all.len, begin + room); i++)
            if ((r = tokens_push(&window, all.ids[i])) < 0)
                return r;
        r = measure_window(m, window.ids, window.len);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Without the white space around it. */
static void trim(const char **s, size_t *len)
{
    while (*len && strchr(" \t\r\n", (*s)[*len - 1]))
        --*len;
    while (*len && strchr(" \t\r\n", **s))
        ++*s, --*len;
}

/* text ends with a NUL. */
static int measure_text(struct measure *m, const char *text, size_t len, struct err *err)
{
    m->n_text = MAX(len, 1);
    progress_begin(&m->progress, "measuring");
    for (const char *p = text; p < text + len;) {
        const char *next = memmem(p, (size_t)(text + len - p), separator, strlen(separator));
        const char *end = next ? next : text + len;
        size_t n = (size_t)(end - p);
        int r;

        trim(&p, &n);
        r = n ? measure_document(m, p, n, err) : 0;
        if (r < 0)
            return r;
        p = next ? next + strlen(separator) : end;
        m->n_seen = (size_t)(p - text);
    }
    return m->n_scored ? 0 : err_set(err, -EINVAL, "the text has nothing to foretell");
}

static int read_text(struct buf *b, const char *path, struct err *err)
{
    FILE *f = fopen(path, "rbe");
    char chunk[65536];
    size_t n;
    int r = f ? 0 : err_set(err, -errno, "%s: %s", path, strerror(errno));

    while (f && r >= 0 && (n = fread(chunk, 1, sizeof(chunk), f)))
        r = buf_append(b, chunk, n);
    if (f && r >= 0 && ferror(f))
        r = err_set(err, -EIO, "%s: cannot be read", path);
    if (f)
        fclose(f);
    if (r == -EMSGSIZE)
        return err_set(err, r, "%s: longer than %u bytes", path, MAX_TEXT);
    return r >= 0 && !b->len ? err_set(err, -EINVAL, "%s: is empty", path) : r;
}

static int perplexity_run(int argc, char **argv)
{
    static const struct option options[] = {
        { "context", required_argument, NULL, 'c' }, { "threads", required_argument, NULL, 't' },
        { "weight-only", no_argument, NULL, 'w' }, { "kv", required_argument, NULL, 'k' }, { 0 },
    };
    cleanup(measure_done) struct measure m = {0};
    cleanup(buf_done) struct buf text = {0};
    uint64_t context = 0, threads = (uint64_t)MAX(1, sysconf(_SC_NPROCESSORS_ONLN));
    struct model_options how = {0};
    enum kv_type kv = KV_F32;
    struct err err = {0};
    double each;
    int opt, r;

    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (opt) {
        case 'c':
            if (parse_number(optarg, 2, 1 << 20, &context))
                return usage_error(&perplexity_verb, "--context takes a number from 2 to 1048576");
            break;
        case 't':
            if (parse_number(optarg, 1, 256, &threads))
                return usage_error(&perplexity_verb, "--threads takes a number from 1 to 256");
            break;
        case 'w': how.weight_only = true; break;
        case 'k':
            if (strcmp(optarg, "f32") && strcmp(optarg, "f16") && strcmp(optarg, "int8"))
                return usage_error(&perplexity_verb, "--kv takes f32, f16 or int8");
            kv = optarg[0] == 'i' ? KV_INT8 : optarg[1] == '1' ? KV_F16 : KV_F32;
            break;
        default: return usage_error(&perplexity_verb, "unknown option");
        }
    }
    if (optind + 2 != argc)
        return usage_error(&perplexity_verb, "expected a model and a text");
    buf_init(&text, MAX_TEXT);
    if ((r = read_text(&text, argv[optind + 1], &err)) < 0 ||
        (r = measure_init(&m, argv[optind], context, kv, (unsigned)threads, &how, &err)) < 0)
        return failure(r, &err);
    r = measure_text(&m, (char *)text.data, text.len, &err);
    progress_end(&m.progress);
    if (r < 0)
        return failure(r, &err);
    each = m.nats / (double)m.n_scored;
    printf("perplexity %.4f, %.4f nats/token, %zu tokens, context %zu\n", exp(each), each, m.n_scored,
           m.session->n_ctx);
    return TOOL_OK;
}

const struct verb perplexity_verb = {
    .name = "perplexity", .arguments = "[OPTIONS] FILE TEXT", .summary = "Measure how well a model foretells a text",
    .help = "Documents in TEXT are set apart by <|endoftext|>.\n"
            "\n  --context N     windows of at most N tokens (default: the model's context)\n"
            "  --kv TYPE       keep keys and values as f32, f16 or int8 (default: f32)\n"
            "  --threads N     (default: one a processor)\n"
            "  --weight-only   do not quantise activations\n",
    .run = perplexity_run,
};
