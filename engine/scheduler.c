/* A step is one batch through the model: a row for every request that is generating, a few more where a guess of its
 * next tokens is worth checking (draft.c), and beside them a chunk of the prompts that are not through yet, in turn,
 * interactive ones first. So a long prompt delays the others by a chunk at a time, and of many prompts none waits for
 * all of another. While nobody is generating, chunks are larger.
 *
 * A request's text is its prompt and what was said so far; its session holds the beginning of that, and what is left
 * over is what is fed. When memory for pages runs out, first what is kept of earlier requests goes; then the newest
 * request is parked: its pages are dropped, and its text is read again from the start when there is room. The answer is
 * the same, only later. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "engine/worker.h"

#define PREFILL_BESIDE 32              /* rows of prompts in a run with others that generate */
#define PREFILL_ALONE 128
#define DRAFT_ROWS 32

/* ---- the rows of a run ------------------------------------------------------------------------------------------- */

static bool is_generating(const struct job *j)
{
    return j->request && j->prompt_usec && j->text.len - j->session->n == 1;
}

static bool is_reading(const struct job *j)
{
    return j->request && !j->parked && !is_generating(j);
}

static void add_row(struct worker *w, size_t *n, struct job *j, int32_t token, float *logits)
{
    w->rows[(*n)++] = (struct forward_row){
        .session = j->session, .token = token, .logits = logits, .allowed = logits ? j->allowed : NULL,
        .leading = logits ? sampler_leading(j->sampler) : 0,
    };
    j->n_rows++;
}

/* The last token of each request that is generating, and guesses of the next ones behind it. */
static size_t add_generating(struct worker *w, size_t generating)
{
    double share = w->cfg->draft_always ? 0 : pace_share(&w->pace, generating);
    size_t n = 0, drafts = 0;

    for (struct job *j = w->jobs; j < w->jobs + w->n_jobs; j++) {
        if (!is_generating(j))
            continue;
        add_row(w, &n, j, j->text.ids[j->text.len - 1], j->logits);
        j->draft.n = 0;
        if (!w->cfg->draft || j->held)
            continue;
        draft_find(&j->draft, j->text.ids, j->text.len, j->max_tokens - j->n_tokens - 1);
        for (size_t i = 0, worth = draft_worth(&j->draft, share); i < worth && drafts < DRAFT_ROWS; i++, drafts++)
            add_row(w, &n, j, j->draft.tokens[i], w->draft_logits + drafts * w->model->n_vocab);
    }
    return n;
}

/* As much of a prompt as there is room for in the run. */
static size_t add_reading(struct worker *w, struct job *j, size_t n, size_t room)
{
    size_t fed = j->session->n, chunk = MIN(j->text.len - fed, room);

    j->draft.n = 0;
    if (chunk && fed + chunk == j->text.len)
        job_allow(j);
    for (size_t i = 0; i < chunk; i++)
        add_row(w, &n, j, j->text.ids[fed + i], fed + i + 1 == j->text.len ? j->logits : NULL);
    return n;
}

static size_t add_prompts(struct worker *w, size_t n)
{
    size_t max = n + (n ? PREFILL_BESIDE : PREFILL_ALONE), last = w->turn;

    for (int batch = 0; batch <= 1; batch++)
        for (size_t i = 0; i < w->n_jobs && n < max; i++) {
            size_t at = (w->turn + i) % w->n_jobs;

            if (!is_reading(&w->jobs[at]) || w->jobs[at].batch != batch)
                continue;
            n = add_reading(w, &w->jobs[at], n, max - n);
            last = at + 1;
        }
    w->turn = last % w->n_jobs;
    return n;
}

/* ---- memory for pages -------------------------------------------------------------------------------------------- */

static struct job *newest(struct worker *w)
{
    struct job *found = NULL;

    for (struct job *j = w->jobs; j < w->jobs + w->n_jobs; j++)
        if (j->request && !j->parked && (!found || j->start_usec > found->start_usec))
            found = j;
    return found;
}

/* After a run failed for want of pages: false when nothing more can be let go. */
static bool make_room(struct worker *w)
{
    struct job *j;
    size_t running = 0;

    if (prefix_shrink(&w->prefix))
        return true;
    for (j = w->jobs; j < w->jobs + w->n_jobs; j++)
        running += j->request && !j->parked;
    if (running < 2)
        return false;
    j = newest(w);
    session_reset(j->session, 0);
    j->parked = true;
    return true;
}

/* Whoever is parked goes on when its text and a page more have room, or when nobody else is left. */
static void unpark(struct worker *w)
{
    size_t running = 0, room = kv_pool_room(w->kv);

    if (room < SIZE_MAX - w->prefix.n_pages)
        room += w->prefix.n_pages;
    for (struct job *j = w->jobs; j < w->jobs + w->n_jobs; j++)
        running += j->request && !j->parked;
    for (struct job *j = w->jobs; j < w->jobs + w->n_jobs; j++)
        if (j->parked && (!running || room > j->text.len / ATTEND_TOKENS + 1)) {
            j->parked = false;
            running++;
        }
}

/* ---- a step ------------------------------------------------------------------------------------------------------ */

static size_t build(struct worker *w)
{
    size_t generating = 0;

    for (struct job *j = w->jobs; j < w->jobs + w->n_jobs; j++) {
        j->n_rows = 0;
        generating += is_generating(j);
    }
    return add_prompts(w, add_generating(w, generating));
}

static struct job *job_of(const struct worker *w, const struct forward_row *row)
{
    struct job *j = w->jobs;

    while (j->session != row->session)
        j++;
    return j;
}

static void advance(void *arg, size_t begin, size_t end)
{
    const struct worker *w = arg;

    for (size_t i = begin; i < end; i++)
        job_advance(w, w->active[i]);
}

static int run_jobs(struct worker *w)
{
    const struct forward_row *rows = w->rows;
    uint64_t start = clock_usec();
    size_t n;
    int failed, r = 0;

    w->n_active = 0;
    unpark(w);
    do {
        n = build(w);
        failed = forward_run(w->forward, w->rows, n);
    } while ((failed == -ENOBUFS || failed == -ENOMEM) && make_room(w));
    if (failed < 0)
        log_error("a step of %zu rows failed: %s", n, strerror(-failed));
    else
        pace_note(&w->pace, n, (double)(clock_usec() - start) / USEC_PER_SEC);

    /* Choosing tokens is shared out like a product: with a large vocabulary, and many requests, it takes as long. */
    for (size_t i = 0; i < n && failed == 0; i++)
        if (!i || rows[i].session != rows[i - 1].session) {
            w->active[w->n_active] = job_of(w, &rows[i]);
            w->active[w->n_active++]->rows = &rows[i];
        }
    pool_run(w->pool, w->n_active, 1, advance, w);
    for (size_t i = 0; i < w->n_active && r == 0; i++)
        r = job_settle(w, w->active[i]);
    for (struct job *j = w->jobs; j < w->jobs + w->n_jobs && failed < 0 && r == 0; j++)
        if (j->n_rows)
            r = job_end(w, j, FINISH_ERROR);
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

/* ---- requests ---------------------------------------------------------------------------------------------------- */

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

/* ---- start and end ----------------------------------------------------------------------------------------------- */

/* How many tokens the pages may hold together: one whole context at least. */
static int pages_new(struct worker *w, struct err *err)
{
    size_t bytes = w->cfg->kv_bytes, token;
    int r = kv_pool_new(&w->kv, w->model, w->cfg->kv, 0, err);

    if (r < 0)
        return r;
    token = kv_pool_page_bytes(w->kv) / ATTEND_TOKENS;
    kv_pool_free(w->kv);
    w->kv = NULL;
    if (!bytes)
        bytes = (size_t)sysconf(_SC_PHYS_PAGES) / 4 * (size_t)sysconf(_SC_PAGESIZE);
    r = kv_pool_new(&w->kv, w->model, w->cfg->kv, MAX(bytes / token, w->n_ctx + ATTEND_TOKENS), err);
    if (r == 0)
        prefix_init(&w->prefix, w->kv, w->cfg->prefix_bytes);
    return r;
}

int scheduler_init(struct worker *w, struct err *err)
{
    size_t max_rows;
    int r;

    w->n_jobs = MAX(w->cfg->sessions, 1u);
    max_rows = MAX(w->n_jobs + DRAFT_ROWS + PREFILL_BESIDE, (size_t)PREFILL_ALONE);
    r = forward_new(&w->forward, w->model, w->pool, max_rows, err);
    if (r == 0)
        r = pages_new(w, err);
    if (r < 0)
        return r;
    w->rows = calloc(max_rows, sizeof(*w->rows));
    w->jobs = calloc(w->n_jobs, sizeof(*w->jobs));
    w->active = calloc(w->n_jobs, sizeof(struct job *));
    w->draft_logits = w->cfg->draft ? calloc(DRAFT_ROWS * w->model->n_vocab, sizeof(float)) : NULL;
    if (!w->rows || !w->jobs || !w->active || (w->cfg->draft && !w->draft_logits))
        return -ENOMEM;
    for (size_t i = 0; i < w->n_jobs; i++) {
        job_init(&w->jobs[i]);
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
    for (size_t i = 0; w->jobs && i < w->n_jobs; i++)
        job_done(&w->jobs[i]);
    session_free(w->embed_session);
    prefix_done(&w->prefix);
    kv_pool_free(w->kv);
    free(w->jobs);
    free(w->active);
    free(w->rows);
    free(w->draft_logits);
    forward_free(w->forward);
}
