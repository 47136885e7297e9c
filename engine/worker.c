/* The engine's process: one loop that reads frames, then runs one step for the requests it holds, and so on.
 *
 * A step is one batch through the model: a row for every request that is generating, and a chunk of the prompt of one
 * that is not there yet, in turn. So a long prompt delays the others by a chunk at a time, and a cancel, read between
 * steps, is never more than one step away. With nothing to run the loop sleeps on its socket.
 *
 * Every request answered by ENGINE_REFUSED was never begun; any other gets exactly one ENGINE_END. Only a failing
 * socket or a closed peer ends the loop. */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "engine/internal.h"

#define PREFILL_ROWS 32
#define MAX_THREADS 8
#define MAX_STOP_BYTES 1024
#define MAX_ANSWER_BYTES (64u << 20)

/* One request being answered; a slot with its session and room for logits, used again and again. */
struct job {
    struct chat_request *request;     /* NULL: the slot is free */
    uint64_t id;
    struct session *session;
    float *logits;                    /* (n_vocab) */
    struct sampler *sampler;
    struct textgate gate;
    struct tokens prompt;
    size_t n_fed;                     /* of the prompt */
    size_t n_tokens, max_tokens;      /* new ones */
    int32_t token;                    /* the last one, not yet fed */
    uint64_t start_usec, prompt_usec; /* when it came, and when its prompt was through (0: not yet) */
};

struct worker {
    int fd;
    const struct engine_config *cfg;
    struct model *model;
    struct pool *pool;
    struct forward *forward;
    struct forward_row *rows;
    struct job *jobs;
    size_t n_jobs, n_ctx, longest_piece;
    size_t turn;                      /* whose prompt goes first in the next step */
    struct buf text, frame;           /* scratch: what a token shows, and its payload */
};

/* ---- answering ---- */

static int refuse(struct worker *w, uint64_t id, const char *code, const char *message)
{
    cleanup(json_decrefp) json_t *j = json_pack("{s:s,s:s}", "code", code, "message", message);
    cleanup(freep) char *s = j ? json_canonical(j) : NULL;

    return s ? frame_send(w->fd, ENGINE_REFUSED, id, s, strlen(s)) : -ENOMEM;
}

static void job_clear(struct job *j)
{
    chat_request_free(j->request);
    sampler_free(j->sampler);
    textgate_done(&j->gate);
    tokens_done(&j->prompt);
    *j = (struct job){ .session = j->session, .logits = j->logits };
}

static int job_end(struct worker *w, struct job *j, enum engine_finish finish)
{
    uint64_t now = clock_usec(), prompt = j->prompt_usec ? j->prompt_usec : now, id = j->id;
    struct engine_end end = {
        .finish = finish, .n_prompt = (uint32_t)j->prompt.len, .n_tokens = (uint32_t)j->n_tokens,
        .prefill_usec = prompt - j->start_usec, .decode_usec = now - prompt,
    };

    job_clear(j);
    return frame_send(w->fd, ENGINE_END, id, &end, sizeof(end));
}

/* Choose a token from the job's logits and send it; ends the job when that was its last. */
static int job_token(struct worker *w, struct job *j)
{
    const struct tokenizer *tokenizer = w->model->tokenizer;
    struct engine_token t = { 0 };
    enum engine_finish finish = FINISH_ERROR;
    bool last = true;
    size_t len;
    int r;

    sampler_pick(j->sampler, j->logits, &t);
    j->token = (int32_t)t.id;
    j->n_tokens++;
    t.piece = tokenizer_piece(tokenizer, j->token, &len);
    t.piece_len = (uint32_t)len;
    for (size_t i = 0; i < t.n_top; i++) {
        t.top[i].piece = tokenizer_piece(tokenizer, (int32_t)t.top[i].id, &len);
        t.top[i].piece_len = (uint32_t)len;
    }

    buf_clear(&w->text);
    if (tokenizer_is_end(tokenizer, j->token)) {
        finish = FINISH_STOP;
        t.piece_len = 0;
        r = textgate_flush(&j->gate, &w->text);
    } else {
        r = textgate_push(&j->gate, t.piece, t.piece_len, &w->text);
        last = r != 0 || j->n_tokens == j->max_tokens;
        finish = r > 0 ? FINISH_STOP : FINISH_LENGTH;
        if (r == 0 && last)
            r = textgate_flush(&j->gate, &w->text);
    }
    t.text = (const char *)w->text.data;
    t.text_len = (uint32_t)w->text.len;
    buf_clear(&w->frame);
    if (r < 0 || engine_token_encode(&w->frame, &t) < 0)
        return job_end(w, j, FINISH_ERROR);
    r = frame_send(w->fd, ENGINE_TOKEN, j->id, w->frame.data, w->frame.len);
    return r < 0 || !last ? r : job_end(w, j, finish);
}

static int job_prompted(struct worker *w, struct job *j)
{
    struct engine_prompt p = { .n_tokens = (uint32_t)j->prompt.len };
    int r;

    j->prompt_usec = clock_usec();
    p.prefill_usec = j->prompt_usec - j->start_usec;
    r = frame_send(w->fd, ENGINE_PROMPT, j->id, &p, sizeof(p));
    return r < 0 ? r : job_token(w, j);
}

/* ---- one step ---- */

static bool is_generating(const struct job *j)
{
    return j->request && j->prompt_usec;
}

/* The next request in turn whose prompt is not through, or NULL. */
static struct job *next_prefill(struct worker *w)
{
    for (size_t i = 0; i < w->n_jobs; i++) {
        struct job *j = &w->jobs[(w->turn + i) % w->n_jobs];
        if (j->request && !j->prompt_usec) {
            w->turn = (w->turn + i + 1) % w->n_jobs;
            return j;
        }
    }
    return NULL;
}

static int step(struct worker *w)
{
    struct job *prefill = next_prefill(w);
    size_t n = 0, chunk = 0;
    int failed, r = 0;

    for (struct job *j = w->jobs; j < w->jobs + w->n_jobs; j++)
        if (is_generating(j))
            w->rows[n++] = (struct forward_row){ j->session, j->token, j->logits };
    if (prefill) {
        chunk = MIN(PREFILL_ROWS, prefill->prompt.len - prefill->n_fed);
        for (size_t i = 0; i < chunk; i++)
            w->rows[n++] = (struct forward_row){ prefill->session, prefill->prompt.ids[prefill->n_fed++], NULL };
        if (prefill->n_fed == prefill->prompt.len)
            w->rows[n - 1].logits = prefill->logits;
    }
    failed = forward_run(w->forward, w->rows, n);
    if (failed < 0)
        log_error("a step of %zu rows failed: %s", n, strerror(-failed));

    for (struct job *j = w->jobs; j < w->jobs + w->n_jobs && r == 0; j++)
        if (failed < 0 && (j == prefill || is_generating(j)))
            r = job_end(w, j, FINISH_ERROR);
        else if (is_generating(j))
            r = job_token(w, j);
        else if (j == prefill && j->n_fed == j->prompt.len)
            r = job_prompted(w, j);
    return r;
}

/* ---- frames ---- */

static struct job *find_job(struct worker *w, uint64_t id)
{
    for (struct job *j = w->jobs; j < w->jobs + w->n_jobs; j++)
        if (j->request && j->id == id)
            return j;
    return NULL;
}

/* Why a request was not begun; code NULL: it was. */
struct refusal { const char *code; struct err err; };

static void refuse_with(struct refusal *why, int r)
{
    why->code = r == -ENOMEM ? ENGINE_E_MEMORY : ENGINE_E_INVALID;
    if (r == -ENOMEM)
        err_set(&why->err, r, "the engine has no memory for this request");
}

/* Fill the free slot with the request in the frame. */
static void job_start(struct worker *w, struct job *j, const struct frame *f, struct refusal *why)
{
    cleanup(json_decrefp) json_t *body = json_parse(f->data, f->len, &why->err);
    struct chat_params *params;
    size_t bytes;
    int r;

    if (!body) {
        why->code = ENGINE_E_INVALID;
        return;
    }
    r = chat_request_from_json(&j->request, body, &why->err);
    if (r < 0) {
        refuse_with(why, r);
        return;
    }
    params = &j->request->params;
    for (size_t i = 0; i < params->n_stop; i++)
        if (strlen(params->stop[i]) > MAX_STOP_BYTES) {
            refuse_with(why, err_set(&why->err, -EINVAL, "stop: expected strings of at most %d bytes", MAX_STOP_BYTES));
            return;
        }
    if (isnan(params->temperature))
        params->temperature = w->cfg->temperature;
    if (isnan(params->top_p))
        params->top_p = w->cfg->top_p;

    /* What cannot fit, however its bytes are cut, need not be cut to know it. */
    bytes = chat_content_bytes(j->request->messages);
    if (bytes / w->longest_piece >= w->n_ctx) {
        why->code = ENGINE_E_CONTEXT;
        err_set(&why->err, 0, "the prompt's %zu bytes are at least %zu tokens; the context holds %zu",
                bytes, bytes / w->longest_piece, w->n_ctx);
        return;
    }
    r = template_render(w->model->template, w->model->tokenizer, j->request->messages, &j->prompt, &why->err);
    if (r == 0)
        r = sampler_new(&j->sampler, params, w->model->n_vocab);
    if (r < 0) {
        refuse_with(why, r);
        return;
    }
    if (!j->prompt.len) {
        refuse_with(why, err_set(&why->err, -EINVAL, "messages: nothing to answer"));
        return;
    }
    if (j->prompt.len >= w->n_ctx) {
        why->code = ENGINE_E_CONTEXT;
        err_set(&why->err, 0, "the prompt is %zu tokens; the context holds %zu, the answer included",
                j->prompt.len, w->n_ctx);
        return;
    }

    j->max_tokens = w->n_ctx - j->prompt.len;
    if (params->max_tokens > 0)
        j->max_tokens = MIN(j->max_tokens, (size_t)params->max_tokens);
    else if (w->cfg->max_tokens)
        j->max_tokens = MIN(j->max_tokens, w->cfg->max_tokens);
    textgate_init(&j->gate, params->stop, params->n_stop);
    session_reset(j->session, 0);
}

static int on_start(struct worker *w, const struct frame *f)
{
    struct refusal why = { 0 };
    struct job *slot = NULL;

    if (find_job(w, f->id))
        return refuse(w, f->id, ENGINE_E_INVALID, "this request is already running");
    for (struct job *j = w->jobs; j < w->jobs + w->n_jobs && !slot; j++)
        if (!j->request)
            slot = j;
    if (!slot)
        return refuse(w, f->id, ENGINE_E_BUSY, "all sessions of the engine are taken");

    slot->id = f->id;
    slot->start_usec = clock_usec();
    job_start(w, slot, f, &why);
    if (!why.code)
        return 0;
    job_clear(slot);
    return refuse(w, f->id, why.code, why.err.msg);
}

static int on_frame(struct worker *w, const struct frame *f)
{
    struct job *j;

    switch (f->type) {
    case ENGINE_START:
        return on_start(w, f);
    case ENGINE_CANCEL:
        j = find_job(w, f->id);
        return j ? job_end(w, j, FINISH_CANCELLED) : 0;
    case ENGINE_PING:
        return frame_send(w->fd, ENGINE_PONG, f->id, NULL, 0);
    default:
        log_warning("frame of unknown type %u", f->type);
        return 0;
    }
}

/* Read and handle what has arrived, waiting for something when there is nothing else to do. 1: the peer is gone. */
static int receive(struct worker *w, struct frame_reader *reader, bool wait)
{
    struct pollfd p = { .fd = w->fd, .events = POLLIN };
    struct frame f;
    int r;

    for (;; wait = false) {
        r = poll(&p, 1, wait ? -1 : 0);
        if (r < 0 && errno != EINTR)
            return -errno;
        if (r <= 0)
            return 0;
        ssize_t n = frame_reader_fill(reader, w->fd);
        if (n == 0)
            return 1;
        if (n < 0 && n != -EAGAIN)
            return (int)n;
        while ((r = frame_reader_next(reader, &f)) > 0) {
            r = on_frame(w, &f);
            if (r < 0)
                return r;
        }
        if (r < 0)
            return r;
    }
}

static int run(struct worker *w)
{
    cleanup(frame_reader_done) struct frame_reader reader;
    int r;

    frame_reader_init(&reader);
    for (;;) {
        bool busy = false;
        for (size_t i = 0; i < w->n_jobs; i++)
            busy |= w->jobs[i].request != NULL;
        r = receive(w, &reader, !busy);
        if (r == 0 && busy)
            r = step(w);
        if (r > 0 || r == -EPIPE)
            return 0;
        if (r < 0) {
            log_error("the socket to ternd failed: %s", strerror(-r));
            return 1;
        }
    }
}

/* ---- start and end ---- */

static unsigned count_threads(const struct engine_config *cfg)
{
    cpu_set_t set;

    if (cfg->threads)
        return cfg->threads;
    if (sched_getaffinity(0, sizeof(set), &set) < 0)
        return 1;
    return MIN(MAX((unsigned)CPU_COUNT(&set), 1u), MAX_THREADS);
}

static int load(struct worker *w, struct err *err)
{
    const struct engine_config *cfg = w->cfg;
    const struct model_options options = {
        .i2s_layout = cfg->i2s_layout, .weight_only = cfg->weight_only, .act_override = cfg->activation,
        .template = cfg->template,
    };
    int r;

    if (!kernels_get(err))
        return -EINVAL;
    r = cfg->model_path ? model_open(&w->model, cfg->model_path, &options, err)
                        : model_open_memory(&w->model, cfg->model_data, cfg->model_bytes, &options, err);
    if (r < 0)
        return r;
    w->n_ctx = cfg->context ? MIN(cfg->context, w->model->n_ctx) : w->model->n_ctx;
    w->longest_piece = 4;             /* a character the vocabulary has no token for is one unknown token */
    for (size_t i = 0, len; i < tokenizer_size(w->model->tokenizer); i++) {
        tokenizer_piece(w->model->tokenizer, (int32_t)i, &len);
        w->longest_piece = MAX(w->longest_piece, len);
    }

    r = pool_new(&w->pool, count_threads(cfg));
    if (r < 0)
        return err_set(err, r, "threads: %s", strerror(-r));
    w->n_jobs = MAX(cfg->sessions, 1u);
    r = forward_new(&w->forward, w->model, w->pool, w->n_jobs + PREFILL_ROWS, err);
    if (r < 0)
        return r;
    w->rows = calloc(w->n_jobs + PREFILL_ROWS, sizeof(*w->rows));
    w->jobs = calloc(w->n_jobs, sizeof(*w->jobs));
    if (!w->rows || !w->jobs)
        return -ENOMEM;
    for (size_t i = 0; i < w->n_jobs; i++) {
        w->jobs[i].logits = calloc(w->model->n_vocab, sizeof(float));
        r = w->jobs[i].logits ? session_new(&w->jobs[i].session, w->model, w->n_ctx) : -ENOMEM;
        if (r < 0)
            return err_set(err, r, "no memory for %zu sessions of %zu tokens", w->n_jobs, w->n_ctx);
    }
    return 0;
}

static int send_ready(struct worker *w, uint64_t load_usec)
{
    const struct model *m = w->model;
    cleanup(json_decrefp) json_t *j = json_pack(
        "{s:s,s:s,s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:I}",
        "model", m->name, "digest", m->digest, "architecture", m->architecture, "kernels", kernels_get(NULL)->name,
        "context", (json_int_t)w->n_ctx, "vocab", (json_int_t)m->n_vocab, "sessions", (json_int_t)w->n_jobs,
        "threads", (json_int_t)pool_threads(w->pool), "bytes", (json_int_t)m->file_bytes,
        "load_usec", (json_int_t)load_usec);
    cleanup(freep) char *s = j ? json_canonical(j) : NULL;

    return s ? frame_send(w->fd, ENGINE_READY, 0, s, strlen(s)) : -ENOMEM;
}

static void worker_done(struct worker *w)
{
    for (size_t i = 0; w->jobs && i < w->n_jobs; i++) {
        job_clear(&w->jobs[i]);
        session_free(w->jobs[i].session);
        free(w->jobs[i].logits);
    }
    free(w->jobs);
    free(w->rows);
    forward_free(w->forward);
    pool_free(w->pool);
    model_free(w->model);
    buf_done(&w->text);
    buf_done(&w->frame);
}

int engine_worker_main(int fd, const struct engine_config *cfg)
{
    cleanup(worker_done) struct worker w = { .fd = fd, .cfg = cfg };
    struct err err = { "" };
    uint64_t start = clock_usec();
    int r;

    buf_init(&w.text, MAX_ANSWER_BYTES);
    buf_init(&w.frame, MAX_ANSWER_BYTES);
    r = load(&w, &err);
    if (r < 0) {
        const char *why = *err.msg ? err.msg : strerror(-r);
        log_error("cannot load the model: %s", why);
        frame_send(fd, ENGINE_FAILED, 0, why, strlen(why));
        return 2;
    }
    r = send_ready(&w, clock_usec() - start);
    if (r < 0)
        return r == -EPIPE ? 0 : 1;
    return run(&w);
}
