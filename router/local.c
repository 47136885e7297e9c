/* The local tier: requests wait in line (line.c) for a session of the engine worker. A run that was abandoned
 * keeps its session until the engine has answered for it.
 *
 * An engine that is not ready is expected within a grace period, counted from the start or from the moment it was
 * lost, and requests wait for it in line. When the grace is over, or the engine says that it cannot run, the tier
 * is down, and requests are told so at once until an engine is ready again. */
#include <errno.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "router/internal.h"

#define GRACE_SEC 10
#define FAILURE_MAX_BYTES 512
#define LOGPROB_MIN (-9999.0)          /* JSON knows no infinity; OpenAI writes this */

/* ---- Runs -------------------------------------------------------------------------------------------------------- */
static unsigned session_limit(const struct router *r)
{
    int64_t sessions = 1;

    json_read_int(r->local.info, "sessions", 1, LOCAL_MAX_SESSIONS, &sessions, NULL);
    return MAX(1u, MIN(r->config->sessions, (unsigned)sessions));
}

/* Batch work leaves the last quarter of the sessions to people. */
static bool session_free(const struct router *r, bool batch)
{
    unsigned limit = session_limit(r);

    return r->local.ready && r->local.n_sessions < limit && (!batch || r->local.n_batch < MAX(limit - limit / 4, 1u));
}

static uint32_t order_type(const struct request *q)
{
    static const uint32_t types[] = {
        [CHAT_ANSWER] = ENGINE_START, [CHAT_EMBED] = ENGINE_EMBED, [CHAT_TOKENIZE] = ENGINE_TOKENIZE,
        [CHAT_DETOKENIZE] = ENGINE_DETOKENIZE,
    };

    return types[q->chat->task];
}

/* Whose it is: the engine shares work between requests of one client only. */
static int client_write(json_t *order, const struct request *q)
{
    const char *name = q->asked.key ? q->asked.key : q->asked.peer ? q->asked.peer : "";
    int r = json_object_set_new(order, "client", json_sprintf("%s %s", q->asked.key ? "key" : "peer", name));

    return r < 0 || !q->asked.batch ? r : json_object_set_new(order, "batch", json_true());
}

/* The request as the engine reads it. NULL: no memory. */
static char *order_text(const struct request *q)
{
    cleanup(json_decrefp) json_t *order = q->chat->input ? json_incref(q->chat->input) : chat_request_to_json(q->chat);
    double temperature = q->config->default_temperature;

    if (order && !q->chat->input && client_write(order, q) < 0)
        return NULL;
    if (order && !q->chat->input && isnan(q->chat->params.temperature) && !isnan(temperature) &&
        json_object_set_new(order, "temperature", json_real(temperature)) < 0)
        return NULL;
    return order ? json_dumps(order, JSON_COMPACT) : NULL;
}

/* Ids and texts are told at once, beside whatever is generated. */
static bool takes_session(const struct request *q)
{
    return q->chat->task == CHAT_ANSWER || q->chat->task == CHAT_EMBED;
}

/* The line has counted it as its client's, unless it takes no session. */
static int run_start(struct request *q)
{
    struct local *l = &q->router->local;
    cleanup(freep) char *order = order_text(q);
    int r;

    if (!order)
        return -ENOMEM;
    if (l->n_runs == LOCAL_MAX_RUNS)
        return -EBUSY;
    r = link_send(&l->link, order_type(q), q->attempt.id, order, strlen(order));
    if (r < 0)
        return r;
    l->runs[l->n_runs++] = (struct run) {q->attempt.id, q, q->client, q->asked.batch};
    l->n_sessions += q->client != NULL;
    l->n_batch += q->client && q->asked.batch;
    q->client = NULL;
    q->attempt.sent = true;
    return 0;
}

/* Strike a run off the list. */
static void run_remove(struct local *l, unsigned i, bool paced)
{
    struct run run = l->runs[i];

    l->runs[i] = l->runs[--l->n_runs];
    if (!run.client)
        return;
    l->n_sessions--;
    l->n_batch -= run.batch;
    line_ran(&l->line, run.client, paced);
}

/* The attempt under way comes to nothing. */
static void run_fail(struct request *q, const char *error, const char *code, const char *message)
{
    attempt_fail(q, error);
    request_fault(q, 500, "engine_error", code, message, 1);
}

/* Fill the free sessions. */
static void pump(struct router *r)
{
    struct local *l = &r->local;
    struct request *q;

    while (session_free(r, false) && (q = line_next(&l->line, session_free(r, true)))) {
        struct line_client *c = q->client;

        if (run_start(q) < 0) {
            q->client = NULL;
            line_ran(&l->line, c, false);
            run_fail(q, "engine-order", "engine_failed", "the local model could not be asked; try again");
            request_run(q);
        }
    }
}

/* The engine is not coming: nobody waits for it. */
static void dismiss(struct router *r)
{
    struct line_client *c;
    struct request *q;

    while ((q = line_next(&r->local.line, true))) {
        c = TAKE(q->client);
        line_ran(&r->local.line, c, false);
        run_fail(q, "engine-down", "engine_down", "the local model is not running; see the daemon's log");
        q->fault.http_status = 503;
    }
    request_run_all(r);
}

int local_check(struct request *q, struct request_error *ret_fault)
{
    struct err why;
    const char *message;
    int r = engine_answer_check(q->chat, &why);

    if (r == 0)
        return 0;
    /* "tools[0].function.parameters: …" names the member. */
    message = arena_printf(&q->arena, "%s; the local model cannot do this, and no cloud may answer this request",
                           r == -EINVAL ? why.msg : "out of memory");
    *ret_fault = (struct request_error) {
        .http_status = 400, .type = "invalid_request_error", .code = "unsupported_value",
        .message = message ? message : "out of memory",
        .param = r == -EINVAL ? arena_strndup(&q->arena, why.msg, strcspn(why.msg, ": ")) : NULL,
    };
    return 1;
}

int local_start(struct request *q)
{
    struct router *r = q->router;
    const struct router_config *c = q->config;
    bool free = session_free(r, q->asked.batch) && !r->local.line.n_waiting;
    int result;

    if (!local_up(r))
        return LOCAL_E_DOWN;
    if (r->local.ready && !takes_session(q))
        return run_start(q) == 0 ? 0 : LOCAL_E_BUSY;
    result = line_enter(&r->local.line, q, free ? 1 : c->queue, free ? 1 : c->queue_client);
    if (result)
        return result == LINE_E_CLIENT ? LOCAL_E_CLIENT : LOCAL_E_BUSY;
    pump(r);
    return 0;
}

void local_stop(struct request *q)
{
    struct local *l = &q->router->local;

    if (!q->attempt.sent) {
        line_leave(&l->line, q);
        return;
    }
    for (unsigned i = 0; i < l->n_runs; i++)
        if (l->runs[i].request == q) {
            l->runs[i].request = NULL;
            link_send(&l->link, ENGINE_CANCEL, q->attempt.id, NULL, 0);
        }
}

unsigned local_retry_after_sec(const struct request *q)
{
    return (unsigned)MIN(MAX(ceil(line_wait_sec(&q->router->local.line, q)), 1.0), 60.0);
}

/* ---- What the engine says ---------------------------------------------------------------------------------------- */
static int on_ready(struct router *r, const struct frame *f)
{
    cleanup(json_decrefp) json_t *info = json_parse(f->data, f->len, NULL);
    const char *model;

    if (json_read_string(info, "model", &model, NULL) != 1)
        return -EPROTO;
    json_decref(r->local.info);
    r->local.info = TAKE(info);
    r->local.ready = true;
    freep(&r->local.failure);
    r->local.failure = NULL;
    event_del(&r->local.grace);
    log_notice("the engine is ready with model %s", model);
    pump(r);
    request_run_all(r);
    return 0;
}

static int on_failed(struct router *r, const struct frame *f)
{
    freep(&r->local.failure);
    r->local.failure = strndup((const char *)f->data, MIN(f->len, (uint32_t)FAILURE_MAX_BYTES));
    log_error("the engine cannot run: %s", r->local.failure ? r->local.failure : "no memory");
    event_del(&r->local.grace);
    dismiss(r);
    return 0;
}

static int on_prompt(struct request *q, const struct frame *f)
{
    struct engine_prompt p;

    if (f->len != sizeof(p))
        return -EPROTO;
    memcpy(&p, f->data, sizeof(p));
    if (q) {
        q->answer.tokens_in = p.n_tokens;
        q->answer.tokens_cached = p.n_cached;
    }
    return 0;
}

/* {"token":…,"logprob":…,"bytes":[…]}; a token that is no whole character has a stand-in for its text. */
static json_t *logprob_json(const char *piece, size_t len, double logprob)
{
    json_t *bytes = json_array(), *token = json_stringn(piece, len);

    for (size_t i = 0; i < len; i++)
        json_array_append_new(bytes, json_integer((unsigned char)piece[i]));
    return json_pack("{s:o,s:f,s:o}", "token", token ? token : json_string("\uFFFD"),
                     "logprob", isfinite(logprob) ? logprob : LOGPROB_MIN, "bytes", bytes);
}

static json_t *logprobs_json(const struct engine_token *t)
{
    json_t *top = json_array(), *one = logprob_json(t->piece, t->piece_len, t->logprob);

    for (uint32_t i = 0; i < t->n_top; i++)
        json_array_append_new(top, logprob_json(t->top[i].piece, t->top[i].piece_len, t->top[i].logprob));
    json_object_set_new(one, "top_logprobs", top);
    return json_pack("[o]", one);
}

static int on_token(struct request *q, const struct frame *f)
{
    struct engine_token t;
    int r;

    if (engine_token_decode(&t, f->data, f->len) < 0)
        return -EPROTO;
    if (!q)
        return 0;
    q->answer.tokens_out++;
    policy_signals_add(&q->in.signals, t.logprob, t.margin, t.entropy);
    if (t.channel != ANSWER_TEXT) {
        r = attempt_call(q, t.channel, t.channel == ANSWER_TOOL_NAME ? "" : NULL, t.text, t.text_len);
        request_run(q);
        return r;
    }
    /* The token that ends the answer has no piece, and clients do not expect to see it. */
    attempt_text(q, t.text, t.text_len, q->chat->params.logprobs && t.piece_len ? logprobs_json(&t) : NULL);
    request_run(q);
    return 0;
}

static bool finished(const struct engine_end *end)
{
    return end->finish == FINISH_STOP || end->finish == FINISH_LENGTH || end->finish == FINISH_TOOL_CALLS;
}

static int on_end(struct request *q, const struct frame *f)
{
    struct engine_end end;

    if (f->len != sizeof(end))
        return -EPROTO;
    memcpy(&end, f->data, sizeof(end));
    if (!q)
        return 0;

    q->answer.tokens_in = end.n_prompt;
    q->answer.tokens_out = end.n_tokens;
    q->answer.stop = end.stop && end.stop <= q->chat->params.n_stop ? q->chat->params.stop[end.stop - 1] : NULL;
    q->answer.prefill_usec = end.prefill_usec;
    q->answer.decode_usec = end.decode_usec;
    q->in.signals.complete = end.finish == FINISH_STOP || end.finish == FINISH_TOOL_CALLS;
    if (finished(&end))
        attempt_finish(q, engine_finish_name((enum engine_finish)end.finish));
    else
        run_fail(q, "engine-error", "engine_failed", "the local model failed; try again");
    return 0;
}

/* What a task asked for, whole. */
static int on_result(struct request *q, const struct frame *f)
{
    struct engine_embedding e = {0};
    size_t head = f->type == ENGINE_EMBEDDING ? sizeof(e) : 0;

    if (f->len < head || (f->type == ENGINE_TOKENS && f->len % sizeof(int32_t)))
        return -EPROTO;
    memcpy(&e, f->data, head);
    if (head && (f->len - head) / sizeof(float) != (uint64_t)e.n * e.width)
        return -EPROTO;
    if (!q)
        return 0;
    if (f->type == ENGINE_TEXT)
        attempt_text(q, (const char *)f->data, f->len, NULL);
    else if (buf_append(&q->answer.result, f->data + head, f->len - head) < 0)
        run_fail(q, "no-memory", "out_of_memory", "out of memory; try again");
    if (q->attempt.state == ATTEMPT_RUNNING)
        attempt_finish(q, "stop");
    q->answer.tokens_in = f->type == ENGINE_TOKENS ? f->len / (uint32_t)sizeof(int32_t) : e.n_tokens;
    q->answer.n_vectors = e.n;
    q->answer.width = e.width;
    return 0;
}

static int on_refused(struct request *q, const struct frame *f)
{
    cleanup(json_decrefp) json_t *why = json_parse(f->data, f->len, NULL);
    const char *code, *message = "the engine refused the request";
    bool context;

    if (json_read_string(why, "code", &code, NULL) != 1)
        return -EPROTO;
    if (!q)
        return 0;

    json_read_string(why, "message", &message, NULL);
    message = arena_strdup(&q->arena, message);
    context = strcmp(code, ENGINE_E_CONTEXT) == 0;
    attempt_fail(q, context ? "context-length" : "engine-refused");
    if (context || strcmp(code, ENGINE_E_INVALID) == 0) {
        q->in.local_fits = !context;
        request_fault(q, 400, "invalid_request_error", context ? ENGINE_E_CONTEXT : ENGINE_E_INVALID, message, 0);
    } else {
        request_fault(q, 503, "engine_error", ENGINE_E_BUSY, message, local_retry_after_sec(q));
    }
    return 0;
}

/* Frames of a run that is over, which a worker never sends, find no run and are dropped. */
static int on_run_frame(struct router *r, const struct frame *f)
{
    struct local *l = &r->local;
    struct request *q;
    unsigned i = 0;
    int result;

    while (i < l->n_runs && l->runs[i].id != f->id)
        i++;
    if (i == l->n_runs)
        return 0;
    q = l->runs[i].request;
    if (f->type == ENGINE_PROMPT)
        return on_prompt(q, f);
    if (f->type == ENGINE_TOKEN)
        return on_token(q, f);

    run_remove(l, i, true);
    result = f->type == ENGINE_END ? on_end(q, f) : f->type == ENGINE_REFUSED ? on_refused(q, f) : on_result(q, f);
    if (result < 0 && q)
        run_fail(q, "engine-protocol", "engine_failed", "the local model failed; try again");
    if (q)
        request_run(q);
    pump(r);
    return result;
}

static int on_frame(struct router *r, const struct frame *f)
{
    switch (f->type) {
    case ENGINE_READY:
        return on_ready(r, f);
    case ENGINE_FAILED:
        return on_failed(r, f);
    case ENGINE_PROMPT:
    case ENGINE_TOKEN:
    case ENGINE_END:
    case ENGINE_REFUSED:
    case ENGINE_EMBEDDING:
    case ENGINE_TOKENS:
    case ENGINE_TEXT:
        return on_run_frame(r, f);
    case ENGINE_PONG:
        return 0;
    }
    return -EPROTO;
}

static void on_down(struct router *r, bool replaced)
{
    struct local *l = &r->local;

    if (l->ready)
        event_add(&l->grace, &(struct timeval) {.tv_sec = GRACE_SEC});
    l->ready = false;
    while (l->n_runs) {
        struct request *q = l->runs[0].request;

        run_remove(l, 0, false);
        if (q) {
            q->lost_engine = true;
            run_fail(q, "engine-lost", "engine_lost", "the local model stopped; try again");
        }
    }
    request_run_all(r);
    if (!replaced && r->hooks.worker_down)
        r->hooks.worker_down(r->hooks.arg, true);
}

static void on_grace_over(evutil_socket_t fd, short what, void *arg)
{
    log_warning("the engine did not become ready within %d s; requests no longer wait for it", GRACE_SEC);
    dismiss(arg);
}

/* ---- The tier ---------------------------------------------------------------------------------------------------- */
void local_init(struct router *r)
{
    struct local *l = &r->local;

    line_init(&l->line);
    link_init(&l->link, r, r->base, ENGINE_PING, on_frame, on_down);
    evtimer_assign(&l->grace, r->base, on_grace_over, r);
    event_add(&l->grace, &(struct timeval) {.tv_sec = GRACE_SEC});
}

void local_done(struct router *r)
{
    link_done(&r->local.link);
    event_del(&r->local.grace);
    while (r->local.n_runs)
        run_remove(&r->local, 0, false);
    line_done(&r->local.line);
    json_decref(r->local.info);
    free(r->local.failure);
}

bool local_up(const struct router *r)
{
    return r->local.ready || evtimer_pending(&r->local.grace, NULL);
}

const char *local_model(const struct router *r)
{
    return r->local.info ? json_string_value(json_object_get(r->local.info, "model")) : NULL;
}

const char *local_digest(const struct router *r)
{
    return r->local.info ? json_string_value(json_object_get(r->local.info, "digest")) : NULL;
}
