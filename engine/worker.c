/* The engine's process: one loop that reads frames, then runs one step for the requests it holds, and so on.
 *
 * Frames are read between steps, so a cancel is never more than one step away; what a step has to say leaves in one
 * write. With nothing to run the loop sleeps on its socket.
 *
 * Every request answered by ENGINE_REFUSED was never begun; any other gets exactly one ENGINE_END, or the one frame it
 * asked for. Only a failing socket or a closed peer ends the loop. */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/log.h"
#include "engine/worker.h"

#define MAX_THREADS 8
#define OUT_BYTES (1u << 20)           /* held back at most */

/* ---- frames out ---- */

static int flush(struct worker *w)
{
    size_t sent = 0;

    while (sent < w->out.len) {
        ssize_t n = send(w->fd, w->out.data + sent, w->out.len - sent, MSG_NOSIGNAL);

        if (n >= 0)
            sent += (size_t)n;
        else if (errno == EAGAIN)
            poll(&(struct pollfd){ .fd = w->fd, .events = POLLOUT }, 1, -1);
        else if (errno != EINTR)
            return errno == ECONNRESET ? -EPIPE : -errno;
    }
    buf_clear(&w->out);
    return 0;
}

int worker_send(struct worker *w, uint32_t type, uint64_t id, const void *data, size_t len)
{
    int r = frame_append(&w->out, type, id, data, len);

    return r < 0 || w->out.len < OUT_BYTES ? r : flush(w);
}

int worker_send_frames(struct worker *w, const struct buf *frames)
{
    int r = buf_append(&w->out, frames->data, frames->len);

    return r < 0 || w->out.len < OUT_BYTES ? r : flush(w);
}

void refusal_set(struct refusal *why, int r)
{
    why->code = r == -ENOMEM ? ENGINE_E_MEMORY : ENGINE_E_INVALID;
    if (r == -ENOMEM)
        err_set(&why->err, r, "the engine has no memory for this request");
}

int worker_refuse(struct worker *w, uint64_t id, const struct refusal *why)
{
    cleanup(json_decrefp) json_t *j = json_pack("{s:s,s:s}", "code", why->code, "message", why->err.msg);
    cleanup(freep) char *s = j ? json_canonical(j) : NULL;

    return s ? worker_send(w, ENGINE_REFUSED, id, s, strlen(s)) : -ENOMEM;
}

/* ---- frames in ---- */

static int on_frame(struct worker *w, const struct frame *f)
{
    switch (f->type) {
    case ENGINE_START:
        return scheduler_start(w, f);
    case ENGINE_CANCEL:
        return scheduler_cancel(w, f->id);
    case ENGINE_EMBED:
        return service_embed(w, f);
    case ENGINE_TOKENIZE:
        return service_tokenize(w, f);
    case ENGINE_DETOKENIZE:
        return service_detokenize(w, f);
    case ENGINE_PING:
        return worker_send(w, ENGINE_PONG, f->id, NULL, 0);
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
        r = receive(w, &reader, !scheduler_busy(w));
        if (r == 0 && scheduler_busy(w))
            r = scheduler_step(w);
        if (r == 0)
            r = flush(w);
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

static void not_kept(const char *why)
{
    log_warning("the repacked weights cannot be kept for the next start: %s", why);
}

static int load(struct worker *w, struct err *err)
{
    const struct engine_config *cfg = w->cfg;
    const struct model_options options = {
        .i2s_layout = cfg->i2s_layout, .weight_only = cfg->weight_only, .act_override = cfg->activation,
        .cache_fd = cfg->cache_fd, .threads = count_threads(cfg), .template = cfg->template,
    };
    int r;

    if (!kernels_get(err))
        return -EINVAL;
    r = cfg->model_path ? model_open(&w->model, cfg->model_path, &options, err)
                        : model_open_memory(&w->model, cfg->model_data, cfg->model_bytes, &options, err);
    if (r < 0)
        return r;
    if (*w->model->note.msg)
        log_warning("%s", w->model->note.msg);
    w->n_ctx = cfg->context ? MIN(cfg->context, w->model->n_ctx) : w->model->n_ctx;
    r = lexicon_new(&w->lexicon, w->model->tokenizer);
    if (r < 0)
        return r;
    w->longest_piece = 4;             /* a character the vocabulary has no token for is one unknown token */
    for (size_t i = 0, len; i < tokenizer_size(w->model->tokenizer); i++) {
        tokenizer_piece(w->model->tokenizer, (int32_t)i, &len);
        w->longest_piece = MAX(w->longest_piece, len);
    }

    r = pool_new(&w->pool, count_threads(cfg));
    if (r < 0)
        return err_set(err, r, "threads: %s", strerror(-r));
    r = scheduler_init(w, err);
    return r < 0 ? r : model_keep(w->model, not_kept);
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
    scheduler_done(w);
    pool_free(w->pool);
    lexicon_free(w->lexicon);
    model_free(w->model);
    buf_done(&w->out);
}

int engine_worker_main(int fd, const struct engine_config *cfg)
{
    cleanup(worker_done) struct worker w = { .fd = fd, .cfg = cfg };
    struct err err = { "" };
    uint64_t start = clock_usec();
    int r;

    buf_init(&w.out, SIZE_MAX);
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
