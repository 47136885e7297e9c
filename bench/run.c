/* Measures one model: how it loads, and for each number of threads what prompts and answers cost. A prompt runs in
 * chunks as the worker runs it, its last row with logits; an answer is greedy, through the sampler that the worker uses.
 * The memory is measured before each decode run, so that what disturbs the one disturbs the other. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "bench/bench.h"

#define READ_BYTES (1u << 20)
#define WARM_UP 8               /* tokens that run before anything is timed */

struct run {
    struct bench_result *result;
    const struct bench_options *options;
    struct bandwidth *bandwidth;
    struct model *model;
    int cache_fd;                       /* -1: weights are not kept on disk */
    struct pool *pool;
    struct forward *forward;
    struct sampler *sampler;
    struct kv_pool *kv;
    struct session **sessions;          /* (most batches) */
    struct forward_row *rows;
    float *logits;                      /* (most batches, n_vocab) */
    size_t n_sessions, n_ctx;
    double *speeds, *rates, *memory, *joules;      /* (n_runs) */
};

static size_t most(const struct numbers *n)
{
    size_t max = 0;

    for (size_t i = 0; i < n->n; i++)
        max = MAX(max, n->v[i]);
    return max;
}

static double seconds_since(uint64_t begin)
{
    return (double)MAX(clock_usec() - begin, 1u) * 1e-6;
}

/* Any tokens will do, but not all the same. */
static int32_t token_at(const struct run *r, size_t i)
{
    return (int32_t)((i * 7919 + 13) % MIN(r->model->n_vocab, 100000u));
}

/* ---- loading ----------------------------------------------------------------------------------------------------- */

/* Ask the kernel to forget what it holds of the files. */
static void make_cold(const struct run *r)
{
    cleanup(closep) int fd = open(r->options->path, O_RDONLY | O_CLOEXEC);

    if (fd >= 0)
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    if (r->cache_fd >= 0)
        posix_fadvise(r->cache_fd, 0, 0, POSIX_FADV_DONTNEED);
}

/* Read the file, so that the kernel holds all of it, and this process none. */
static void make_warm(const struct run *r)
{
    cleanup(closep) int fd = open(r->options->path, O_RDONLY | O_CLOEXEC);
    cleanup(freep) void *buffer = malloc(READ_BYTES);

    while (fd >= 0 && buffer && read(fd, buffer, READ_BYTES) > 0)
        ;
}

static void unload(struct run *r)
{
    forward_free(r->forward);
    pool_free(r->pool);
    model_free(r->model);
    if (r->cache_fd >= 0)
        close(r->cache_fd);
    r->cache_fd = -1;
    r->forward = NULL;
    r->pool = NULL;
    r->model = NULL;
}

static int make_forward(struct run *r, unsigned threads, struct err *err)
{
    int e;

    forward_free(r->forward);
    pool_free(r->pool);
    r->forward = NULL;
    r->pool = NULL;
    e = pool_new(&r->pool, threads);
    if (e < 0)
        return err_set(err, e, "threads: %s", strerror(-e));
    return forward_new(&r->forward, r->model, r->pool, MAX(r->options->chunk, r->n_sessions), err);
}

static int load(struct run *r, bool cold, double *ret_seconds, struct err *err)
{
    struct model_options how = { .threads = (unsigned)most(&r->options->threads) };
    uint64_t begin;
    int e;

    unload(r);
    report_progress("loading, %s", cold ? "cold" : "warm");
    if (r->options->cache) {
        r->cache_fd = how.cache_fd = engine_cache_open(r->options->cache, r->options->path, err);
        if (r->cache_fd < 0)
            return r->cache_fd;
    }
    if (cold)
        make_cold(r);
    else
        make_warm(r);
    begin = clock_usec();
    e = model_open(&r->model, r->options->path, &how, err);
    if (e == 0)
        e = make_forward(r, how.threads, err);
    if (e == 0)
        e = model_keep(r->model, NULL);
    *ret_seconds = seconds_since(begin);
    return e;
}

/* ---- what a step reads ------------------------------------------------------------------------------------------- */

static size_t ternary_bytes(const struct ternary *w)
{
    return kernels_get(NULL)->layout->bytes(w->rows, w->padded) + (w->row_scales ? w->rows * sizeof(float) : 0) +
           (w->norm_in ? w->cols * sizeof(float) : 0);
}

static size_t norm_bytes(const float *gain, size_t n)
{
    return gain ? n * sizeof(float) : 0;
}

/* Everything before the head that is read once a step, however many rows it has. */
static size_t weight_bytes(const struct model *m)
{
    size_t sum = norm_bytes(m->output_norm, m->n_embd);

    for (size_t i = 0; i < m->n_layer; i++) {
        const struct model_layer *y = &m->layers[i];
        const struct ternary *all[] = { &y->q, &y->k, &y->v, &y->o, &y->gate, &y->up, &y->down };

        for (size_t k = 0; k < ARRAY_SIZE(all); k++)
            sum += ternary_bytes(all[k]);
        sum += norm_bytes(y->attn_norm, m->n_embd) + norm_bytes(y->ffn_norm, m->n_embd) +
               norm_bytes(y->attn_sub_norm, m->n_head * m->head_dim) + norm_bytes(y->ffn_sub_norm, m->n_ff) +
               norm_bytes(y->q_norm, m->head_dim) + norm_bytes(y->k_norm, m->head_dim) +
               norm_bytes(y->post_attn_norm, m->n_embd) + norm_bytes(y->post_ffn_norm, m->n_embd);
    }
    return sum;
}

/* Keys and values that one more token of one session looks at, `depth` tokens being there. */
static double kv_bytes(const struct run *r, size_t depth)
{
    const struct model *m = r->model;
    double tokens = 0;

    for (size_t i = 0; i < m->n_layer; i++)
        tokens += (double)(m->layers[i].local ? MIN(depth + 1, m->window) : depth + 1);
    return tokens * (double)kv_pool_page_bytes(r->kv) / (double)(ATTEND_TOKENS * m->n_layer);
}

/* ---- runs -------------------------------------------------------------------------------------------------------- */

/* Feed tokens up to n to a session that holds `from`. */
static int feed(struct run *r, struct session *s, size_t from, size_t n, bool want_logits)
{
    int e = 0;

    for (size_t i = from; i < n && !e;) {
        size_t chunk = MIN(r->options->chunk, n - i);

        for (size_t k = 0; k < chunk; k++, i++)
            r->rows[k] = (struct forward_row){ .session = s, .token = token_at(r, i) };
        if (want_logits && i == n) {
            r->rows[chunk - 1].logits = r->logits;
            r->rows[chunk - 1].leading = sampler_leading(r->sampler);
        }
        e = forward_run(r->forward, r->rows, chunk);
    }
    return e;
}

static int run_prefill(struct run *r, size_t n, double *ret_speed)
{
    struct engine_token t = { 0 };
    uint64_t begin;
    int e;

    session_reset(r->sessions[0], 0);
    begin = clock_usec();
    e = feed(r, r->sessions[0], 0, n, true);
    if (e == 0)
        sampler_pick(r->sampler, r->logits, NULL, &t);
    *ret_speed = (double)n / seconds_since(begin);
    return e;
}

/* n tokens for each of `batch` sessions that hold `depth`; *ret_bytes: read in all of it. */
static int run_decode(struct run *r, size_t depth, size_t batch, size_t n, double *ret_speed, double *ret_bytes)
{
    const struct model *m = r->model;
    double bytes = 0;
    uint64_t begin;
    int e = 0;

    for (size_t b = 0; b < batch && !e; b++) {
        session_reset(r->sessions[b], depth);
        if (r->sessions[b]->n < depth)
            e = feed(r, r->sessions[b], r->sessions[b]->n, depth, false);
        r->rows[b].token = token_at(r, depth + b);
    }
    begin = clock_usec();
    for (size_t i = 0; i < n && !e; i++) {
        for (size_t b = 0; b < batch; b++)
            r->rows[b] = (struct forward_row){ .session = r->sessions[b], .token = r->rows[b].token,
                                               .logits = r->logits + b * m->n_vocab,
                                               .leading = sampler_leading(r->sampler) };
        e = forward_run(r->forward, r->rows, batch);
        for (size_t b = 0; b < batch && !e; b++) {
            struct engine_token t = { 0 };

            sampler_pick(r->sampler, r->logits + b * m->n_vocab, NULL, &t);
            r->rows[b].token = (int32_t)t.id;
        }
        bytes += (double)(r->result->weight_bytes + forward_head_bytes(r->forward)) +
                 (double)batch * kv_bytes(r, depth + i);
    }
    *ret_speed = (double)(n * batch) / seconds_since(begin);
    *ret_bytes = bytes;
    return e;
}

/* One measure of the table: the options' number of runs and their median. */
static int take(struct run *r, struct measure m)
{
    size_t n_runs = r->options->n_runs;
    double bytes = 0;

    m.joules_per_token = NAN;
    for (size_t i = 0; i < n_runs; i++) {
        uint64_t before = 0, after = 0;
        bool energy;
        int e;

        report_progress("%u threads, %s of %zu at %zu, %zu together: run %zu of %zu", m.threads,
                        m.kind == MEASURE_PREFILL ? "prompt" : "answer", m.n, m.depth, m.batch, i + 1, n_runs);
        r->memory[i] = m.kind == MEASURE_DECODE ? bandwidth_measure(r->bandwidth, m.threads) : 0;
        energy = energy_read(&before);
        e = m.kind == MEASURE_PREFILL ? run_prefill(r, m.n, &r->speeds[i])
                                      : run_decode(r, m.depth, m.batch, m.n, &r->speeds[i], &bytes);
        if (e < 0)
            return e;
        r->joules[i] = energy && energy_read(&after) ? energy_between(before, after) / (double)(m.n * m.batch) : NAN;
    }
    m.tokens_per_second = median(r->speeds, n_runs);
    m.least = r->speeds[0];
    m.most = r->speeds[n_runs - 1];
    if (!isnan(r->joules[0]))
        m.joules_per_token = median(r->joules, n_runs);
    if (m.kind == MEASURE_DECODE) {
        m.bandwidth = median(r->memory, n_runs);
        m.bytes_per_token = bytes / (double)(m.n * m.batch);
        m.bytes_per_second = m.bytes_per_token * m.tokens_per_second;
        r->result->head_bytes = forward_head_bytes(r->forward);
    }
    r->result->measures[r->result->n_measures++] = m;
    return 0;
}

static int take_all(struct run *r, unsigned threads)
{
    const struct bench_options *o = r->options;
    double untold;
    int e = run_prefill(r, MIN(r->n_ctx, WARM_UP), &untold);         /* first uses of memory cost, and once only */

    for (size_t p = 0; p < o->prompts.n && !e; p++)
        if (o->prompts.v[p])
            e = take(r, (struct measure){ .kind = MEASURE_PREFILL, .threads = threads, .n = o->prompts.v[p], .batch = 1 });
    for (size_t d = 0; d < o->depths.n && o->n_tokens && !e; d++)
        for (size_t b = 0; b < o->batches.n && !e; b++)
            e = take(r, (struct measure){ .kind = MEASURE_DECODE, .threads = threads, .n = o->n_tokens,
                                          .depth = o->depths.v[d], .batch = o->batches.v[b] });
    return e;
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */

static void read_cpu(char *ret, size_t size)
{
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "re");

    while (f && fgets(line, sizeof(line), f))
        if (!strncmp(line, "model name", 10) && strchr(line, ':')) {
            snprintf(ret, size, "%.*s", (int)strcspn(strchr(line, ':') + 2, "\n"), strchr(line, ':') + 2);
            break;
        }
    if (f)
        fclose(f);
}

static int prepare(struct run *r, struct err *err)
{
    const struct bench_options *o = r->options;
    const struct chat_params greedy = { .temperature = 0, .top_p = 1, .min_p = NAN, .frequency_penalty = NAN,
                                        .presence_penalty = NAN, .repeat_penalty = NAN, .top_k = -1 };
    size_t n_rows = MAX(o->chunk, r->n_sessions), longest = most(&o->prompts);
    int e;

    r->n_ctx = MAX(longest, o->n_tokens ? most(&o->depths) + o->n_tokens : 0);
    if (r->n_ctx > r->model->n_ctx)
        return err_set(err, -EINVAL, "%zu tokens are asked for; the model's context holds %zu", r->n_ctx, r->model->n_ctx);
    r->sessions = calloc(r->n_sessions, sizeof(struct session *));
    r->rows = calloc(n_rows, sizeof(*r->rows));
    r->logits = calloc(r->n_sessions, r->model->n_vocab * sizeof(float));
    if (!r->sessions || !r->rows || !r->logits)
        return -ENOMEM;
    e = kv_pool_new(&r->kv, r->model, o->kv, 0, err);
    for (size_t i = 0; i < r->n_sessions && !e; i++)
        e = session_new(&r->sessions[i], r->kv, r->n_ctx);
    return e < 0 ? e : sampler_new(&r->sampler, &greedy, r->model->n_vocab);
}

static void run_done(struct run *r)
{
    for (size_t i = 0; r->sessions && i < r->n_sessions; i++)
        session_free(r->sessions[i]);
    free(r->sessions);
    kv_pool_free(r->kv);
    free(r->rows);
    free(r->logits);
    free(r->speeds);
    sampler_free(r->sampler);
    unload(r);
}

int bench_run(struct bench_result *ret, const struct bench_options *o, struct bandwidth *b, struct err *err)
{
    cleanup(run_done) struct run r = { .result = ret, .options = o, .bandwidth = b, .cache_fd = -1,
                                       .n_sessions = MAX(most(&o->batches), 1u) };
    const struct kernels *k = kernels_get(err);
    struct rusage usage;
    int e;

    if (!k)
        return -EINVAL;
    *ret = (struct bench_result){ .kernels = k->name };
    read_cpu(ret->cpu, sizeof(ret->cpu));
    r.speeds = calloc(3 * o->n_runs, sizeof(*r.speeds));
    if (!r.speeds)
        return -ENOMEM;
    r.memory = r.speeds + o->n_runs;
    r.joules = r.memory + o->n_runs;
    if ((e = load(&r, true, &ret->cold_seconds, err)) < 0 || (e = load(&r, false, &ret->warm_seconds, err)) < 0 ||
        (e = prepare(&r, err)) < 0)
        return e;
    memcpy(ret->model, r.model->name, sizeof(ret->model));
    memcpy(ret->architecture, r.model->architecture, sizeof(ret->architecture));
    memcpy(ret->digest, r.model->digest, sizeof(ret->digest));
    ret->file_bytes = r.model->file_bytes;
    ret->weight_bytes = weight_bytes(r.model);
    for (size_t t = 0; t < o->threads.n; t++) {
        if ((e = make_forward(&r, (unsigned)o->threads.v[t], err)) < 0 ||
            (e = take_all(&r, (unsigned)o->threads.v[t])) < 0)
            return e;
    }
    report_progress("%s", "");
    getrusage(RUSAGE_SELF, &usage);
    ret->peak_rss_bytes = (size_t)usage.ru_maxrss * 1024;
    return 0;
}
