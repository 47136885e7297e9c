/* A step is one batch through the model: a row for every request that is generating, and a chunk of the prompt of one
 * that is not there yet, in turn. So a long prompt delays the others by a chunk at a time. */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "engine/worker.h"

#define PREFILL_ROWS 32

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

static int run_jobs(struct worker *w)
{
    struct job *prefill = next_prefill(w);
    size_t n = 0, chunk = 0;
    int failed, r = 0;

    for (struct job *j = w->jobs; j < w->jobs + w->n_jobs; j++)
        if (is_generating(j)) {
            job_allow(j);
            w->rows[n++] = (struct forward_row){ .session = j->session, .token = j->token, .logits = j->logits,
                                                    .leading = sampler_leading(j->sampler), .allowed = j->allowed };
        }
    if (prefill) {
        chunk = MIN(PREFILL_ROWS, prefill->prompt.len - prefill->n_fed);
        for (size_t i = 0; i < chunk; i++)
            w->rows[n++] = (struct forward_row){ .session = prefill->session,
                                                    .token = prefill->prompt.ids[prefill->n_fed++] };
        if (prefill->n_fed == prefill->prompt.len) {
            w->rows[n - 1].logits = prefill->logits;
            w->rows[n - 1].leading = sampler_leading(prefill->sampler);
            job_allow(prefill);
            w->rows[n - 1].allowed = prefill->allowed;
        }
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

int scheduler_step(struct worker *w)
{
    int r = w->n_running ? run_jobs(w) : 0;

    return r == 0 && w->embeddings ? embedding_step(w) : r;
}

bool scheduler_busy(const struct worker *w)
{
    return w->n_running || w->embeddings;
}

/* ---- requests ---- */

static struct job *find_job(struct worker *w, uint64_t id)
{
    for (struct job *j = w->jobs; j < w->jobs + w->n_jobs; j++)
        if (j->request && j->id == id)
            return j;
    return NULL;
}

int scheduler_start(struct worker *w, const struct frame *f)
{
    struct refusal why = { 0 };
    struct job *slot = NULL;

    for (struct job *j = w->jobs; j < w->jobs + w->n_jobs && !slot; j++)
        if (!j->request)
            slot = j;
    if (find_job(w, f->id)) {
        refusal_set(&why, err_set(&why.err, -EINVAL, "this request is already running"));
    } else if (!slot) {
        why.code = ENGINE_E_BUSY;
        err_set(&why.err, 0, "all sessions of the engine are taken");
    } else {
        job_start(w, slot, f, &why);
    }
    return why.code ? worker_refuse(w, f->id, &why) : 0;
}

int scheduler_cancel(struct worker *w, uint64_t id)
{
    struct job *j = find_job(w, id);

    return j ? job_end(w, j, FINISH_CANCELLED) : embedding_cancel(w, id);
}

/* ---- start and end ---- */

int scheduler_init(struct worker *w, struct err *err)
{
    int r;

    w->n_jobs = MAX(w->cfg->sessions, 1u);
    r = forward_new(&w->forward, w->model, w->pool, w->n_jobs + PREFILL_ROWS, err);
    if (r < 0)
        return r;
    r = kv_pool_new(&w->kv, w->model, w->cfg->kv, 0, err);
    if (r < 0)
        return r;
    w->rows = calloc(w->n_jobs + PREFILL_ROWS, sizeof(*w->rows));
    w->jobs = calloc(w->n_jobs, sizeof(*w->jobs));
    if (!w->rows || !w->jobs)
        return -ENOMEM;
    for (size_t i = 0; i < w->n_jobs; i++) {
        w->jobs[i].logits = calloc(w->model->n_vocab, sizeof(float));
        r = w->jobs[i].logits ? session_new(&w->jobs[i].session, w->kv, w->n_ctx) : -ENOMEM;
        if (r < 0)
            return err_set(err, r, "no memory for %zu sessions of %zu tokens", w->n_jobs, w->n_ctx);
    }
    return 0;
}

void scheduler_done(struct worker *w)
{
    struct embedding *e;

    while ((e = w->embeddings)) {
        w->embeddings = e->next;
        embedding_free(e);
    }
    for (size_t i = 0; w->jobs && i < w->n_jobs; i++) {
        job_clear(&w->jobs[i]);
        session_free(w->jobs[i].session);
        free(w->jobs[i].logits);
    }
    session_free(w->embed_session);
    kv_pool_free(w->kv);
    free(w->jobs);
    free(w->rows);
    forward_free(w->forward);
}
