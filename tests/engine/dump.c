/* What the engine computes, as JSON lines, for the comparison with tests/oracle:
 *
 *     dump MODEL IDS... [--trace] [--greedy N] [--embed] [--weight-only] [--i2s-layout a|b|c] [--act relu2|silu|gelu]
 *          [--kv f32|f16|int8] [--threads N] [--batch N]
 *
 * With --trace a line {"name", "row", "data"} for every stage of every row; then {"name":"logits", "row", "data"} for
 * every position, or with --embed {"name":"embedding", "row", "data"} for every vector; then with --greedy
 * {"greedy":[ids]}, the N tokens that follow. Exit status 1 and a line on stderr when the model is refused. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/internal.h"

#define MAX_IDS 65536

struct dump {
    const char *path;
    struct model_options options;
    int32_t ids[MAX_IDS];
    size_t n_ids, n_greedy, batch;
    unsigned threads;
    bool trace, embed;

    struct model *model;
    struct pool *pool;
    struct forward *forward;
    struct session *session;
    struct kv_pool *kv;
    enum kv_type kv_type;
};

static void print_line(void *arg, const char *name, size_t row, const float *x, size_t n)
{
    (void)arg;
    printf("{\"name\":\"%s\",\"row\":%zu,\"data\":[", name, row);
    for (size_t i = 0; i < n; i++)
        printf("%s%.9g", i ? "," : "", (double)x[i]);
    puts("]}");
}

static bool parse_act(const char *name, enum ffn_act *ret)
{
    *ret = !strcmp(name, "relu2") ? ACT_RELU2 : !strcmp(name, "silu") ? ACT_SILU : !strcmp(name, "gelu") ? ACT_GELU
         : ACT_BY_MODEL;
    return *ret != ACT_BY_MODEL;
}

static bool parse_kv(const char *name, enum kv_type *ret)
{
    *ret = !strcmp(name, "int8") ? KV_INT8 : !strcmp(name, "f16") ? KV_F16 : KV_F32;
    return *ret != KV_F32 || !strcmp(name, "f32");
}

static bool parse_number(const char *s, unsigned long max, unsigned long *ret)
{
    char *end;

    errno = 0;
    *ret = strtoul(s, &end, 10);
    return *s >= '0' && *s <= '9' && !*end && !errno && *ret <= max;
}

/* One argument, and the one after it where it takes a value. */
static bool parse_argument(struct dump *d, const char *arg, const char *value, bool *ret_took_value)
{
    unsigned long n = 0;

    *ret_took_value = false;
    if (!strcmp(arg, "--trace"))
        return d->trace = true;
    if (!strcmp(arg, "--embed"))
        return d->embed = true;
    if (!strcmp(arg, "--weight-only"))
        return d->options.weight_only = true;
    if (strncmp(arg, "--", 2)) {
        if (!d->path) {
            d->path = arg;
            return true;
        }
        if (d->n_ids == MAX_IDS || !parse_number(arg, INT32_MAX, &n))
            return false;
        d->ids[d->n_ids++] = (int32_t)n;
        return true;
    }
    *ret_took_value = true;
    if (!value)
        return false;
    if (!strcmp(arg, "--i2s-layout")) {
        d->options.i2s_layout = *value;
        return strlen(value) == 1 && *value >= 'a' && *value <= 'c';
    }
    if (!strcmp(arg, "--act"))
        return parse_act(value, &d->options.act_override);
    if (!strcmp(arg, "--kv"))
        return parse_kv(value, &d->kv_type);
    if (!parse_number(value, MAX_IDS, &n))
        return false;
    if (!strcmp(arg, "--greedy"))
        d->n_greedy = n;
    else if (!strcmp(arg, "--threads"))
        d->threads = (unsigned)n;
    else if (!strcmp(arg, "--batch"))
        d->batch = n;
    else
        return false;
    return d->threads && d->batch;
}

static int fail(const struct dump *d, int r, const struct err *err)
{
    fprintf(stderr, "%s: %s\n", d->path, *err->msg ? err->msg : strerror(-r));
    return 1;
}

static int run_embed(struct dump *d)
{
    size_t width = d->model->n_embd, rows = d->model->pooling == POOLING_NONE ? d->n_ids : 1;
    cleanup(freep) float *out = calloc(rows * width, sizeof(*out));
    int r = out ? forward_embed(d->forward, d->session, d->ids, d->n_ids, out) : -ENOMEM;

    for (size_t i = 0; i < rows && !r; i++)
        print_line(NULL, "embedding", i, out + i * width, width);
    return r;
}

static int32_t argmax(const float *x, size_t n)
{
    size_t best = 0;

    for (size_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return (int32_t)best;
}

static int run_logits(struct dump *d)
{
    size_t n_vocab = d->model->n_vocab;
    cleanup(freep) struct forward_row *rows = calloc(d->batch, sizeof(*rows));
    cleanup(freep) float *logits = calloc(d->n_ids * n_vocab, sizeof(*logits));
    float *last = logits + (d->n_ids - 1) * n_vocab;
    int r = rows && logits ? 0 : -ENOMEM;

    for (size_t i = 0, n; i < d->n_ids && !r; i += n) {
        n = MIN(d->batch, d->n_ids - i);
        for (size_t j = 0; j < n; j++)
            rows[j] = (struct forward_row){ .session = d->session, .token = d->ids[i + j],
                                            .logits = logits + (i + j) * n_vocab };
        r = forward_run(d->forward, rows, n);
    }
    for (size_t i = 0; i < d->n_ids && !r; i++)
        print_line(NULL, "logits", i, logits + i * n_vocab, n_vocab);
    if (r < 0 || !d->n_greedy)
        return r;

    forward_trace(d->forward, NULL, NULL);
    printf("{\"greedy\":[");
    for (size_t i = 0; i < d->n_greedy && !r; i++) {
        rows[0] = (struct forward_row){ .session = d->session, .token = argmax(last, n_vocab), .logits = last };
        printf("%s%d", i ? "," : "", rows[0].token);
        if (i + 1 < d->n_greedy)
            r = forward_run(d->forward, rows, 1);
    }
    puts("]}");
    return r;
}

static int run(struct dump *d)
{
    struct err err = { "" };
    int r;

    r = model_open(&d->model, d->path, &d->options, &err);
    if (r < 0 || (r = pool_new(&d->pool, d->threads)) < 0 ||
        (r = forward_new(&d->forward, d->model, d->pool, d->batch, &err)) < 0 ||
        (r = kv_pool_new(&d->kv, d->model, d->kv_type, 0, &err)) < 0 || (r = session_new(&d->session, d->kv, 0)) < 0)
        return fail(d, r, &err);
    if (d->trace)
        forward_trace(d->forward, print_line, NULL);
    r = d->embed ? run_embed(d) : run_logits(d);
    return r < 0 ? fail(d, r, &err) : 0;
}

int main(int argc, char **argv)
{
    static struct dump d = { .threads = 1, .batch = 32, .kv_type = KV_F32 };
    bool took;
    int status;

    for (int i = 1; i < argc; i += 1 + took)
        if (!parse_argument(&d, argv[i], i + 1 < argc ? argv[i + 1] : NULL, &took)) {
            fprintf(stderr, "dump: %s: not understood\n", argv[i]);
            return 2;
        }
    if (!d.n_ids) {
        fputs("usage: dump MODEL IDS... [options], see tests/engine/dump.c\n", stderr);
        return 2;
    }
    status = run(&d);
    session_free(d.session);
    kv_pool_free(d.kv);
    forward_free(d.forward);
    pool_free(d.pool);
    model_free(d.model);
    return status;
}
