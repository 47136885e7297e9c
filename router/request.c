/* The life of a request, as one table of steps. request_start() admits it: a configuration to keep, a place in the
 * store, a deadline. From then on request_run() calls the step it is at, which does what can be done now and names the
 * next one, or says STEP_WAIT; whatever happens to the request (a frame, a durable row, a timer) calls request_run()
 * again.
 *
 *                      .--> LOCAL ------------.
 *   MODEL -> LABEL -> DECIDE --> CLOUD -> SEND -> ANSWER -> RELEASE -> RECORD -> DONE
 *                      ^ ^         ^              |    |                 ^
 *                      | |      BACKOFF <-- FALLBACK   |                 `-- from anywhere, once it is over
 *                      | `-------------------'         |
 *                      `------------- to be judged ----'
 *
 * Three rules hold everywhere. No byte is released while a row appended for the request is not durable. A body is
 * ordered out by cloud_send() alone, called by do_send() alone, when its egress row is durable. And `outcome`, once
 * anything has set it (a cancel, the deadline, a refusal), takes the request to RECORD, which tells the sink once. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "router/internal.h"

#define LOG_EVERY_USEC (10 * USEC_PER_SEC)

typedef enum step step_fn(struct request *q);
static step_fn do_model, do_label, do_decide, do_local, do_cloud, do_send, do_answer, do_fallback, do_backoff,
               do_release, do_record;

static step_fn *const steps[] = {
    [STEP_MODEL]    = do_model,     /* what the model's name asks for, once the engine has told its own             */
    [STEP_LABEL]    = do_label,     /* what may leave; the request row                                               */
    [STEP_DECIDE]   = do_decide,    /* policy at q->stage: local, cloud or none, and why; a decision row            */
    [STEP_LOCAL]    = do_local,     /* to the engine, or into the line for it                                        */
    [STEP_CLOUD]    = do_cloud,     /* past the breaker; the body and its digest; an egress row                      */
    [STEP_SEND]     = do_send,      /* every row durable: the body leaves                                            */
    [STEP_ANSWER]   = do_answer,    /* text comes from a tier: held and judged, or passed on                         */
    [STEP_FALLBACK] = do_fallback,  /* the tier failed before a byte was released: once more, or decide again        */
    [STEP_BACKOFF]  = do_backoff,   /* a pause before the second attempt                                             */
    [STEP_RELEASE]  = do_release,   /* the answer is whole and stands: every row durable: the rest of it             */
    [STEP_RECORD]   = do_record,    /* the last attempt's row, the outcome row; the sink's end or fail               */
};

/* What the client is told when nothing answers, as far as it does not depend on the request. */
#define FAULT(name, status, kind, words, retry) \
    static const struct request_error name = {                                                                     \
        .http_status = status, .type = kind, .code = #name, .message = words, .retry_after_sec = retry,            \
    }
FAULT(draining, 503, "server_error", "the server is stopping; try again", 1);
FAULT(out_of_memory, 503, "server_error", "out of memory; try again", 1);
FAULT(audit_queue_full, 503, "server_error", "too many requests in flight; try again", 1);
FAULT(audit_unavailable, 503, "server_error", "the audit record cannot be written; try again later", 5);
FAULT(engine_busy, 503, "server_error", "too many requests wait for the local model; try again later", 1);
FAULT(client_busy, 429, "rate_limit_error", "too many of your requests wait for the local model; try again later", 1);
FAULT(engine_down, 503, "server_error", "the local model is not running, and nothing else may answer this request", 5);
FAULT(engine_lost, 500, "engine_error", "the local model stopped before the answer was complete", 0);
FAULT(cloud_unavailable, 503, "server_error", "only a cloud may answer this request, and none can be reached now", 5);
FAULT(upstream_cut, 502, "upstream_error", "the cloud stopped before the answer was complete", 0);
FAULT(mode_not_allowed, 403, "permission_error", "this API key may not use this mode", 0);
FAULT(model_not_allowed, 403, "permission_error", "this API key may not use this model", 0);
FAULT(label_not_allowed, 403, "permission_error",
      "this API key may not send data with this label; see max_label of its [key NAME]", 0);
FAULT(deadline_exceeded, 504, "timeout_error", "the request's time is over; allow it more, or ask for less", 0);

void request_run(struct request *q)
{
    enum step next;

    if (q->running)
        return;                     /* called from inside a step; the loop below looks again */
    q->running = true;
    store_hold(q->router->store);
    while (q->step != STEP_DONE) {
        if (q->outcome)
            q->step = STEP_RECORD;
        next = steps[q->step](q);
        if (next != STEP_WAIT)
            q->step = next;
        else if (!q->outcome)
            break;
    }
    q->running = false;
    store_flush(q->router->store, q->rows_wanted);
    q->rows_wanted = false;
    /* Freed from the loop only, so that no caller loses the request it is at. */
    if (q->step == STEP_DONE && q->rows_pending == 0)
        event_active(&q->timer, EV_TIMEOUT, 0);
}

void request_run_all(struct router *r)
{
    struct request *q;

    /* A request is freed from the loop only, so walking on from it is safe. */
    TAILQ_FOREACH(q, &r->requests, all)
        request_run(q);
}

void request_fault(struct request *q, int status, const char *type, const char *code, const char *message,
                   unsigned retry_after_sec)
{
    q->fault = (struct request_error) {
        .http_status = status, .type = type, .code = code, .message = message ? message : "out of memory",
        .retry_after_sec = retry_after_sec,
    };
}

static void timer_set(struct event *timer, uint64_t usec)
{
    struct timeval tv = {.tv_sec = (time_t)(usec / USEC_PER_SEC), .tv_usec = (suseconds_t)(usec % USEC_PER_SEC)};

    event_add(timer, &tv);
}

/* Over, with q->fault. */
static enum step refuse(struct request *q)
{
    int status = q->fault.http_status;

    q->outcome = q->begun ? "truncated" : status < 500 || status == 503 ? "refused" : "error";
    return STEP_RECORD;
}

/* ---- Rows -------------------------------------------------------------------------------------------------------- */

/* Without a record nothing goes to a cloud; whether the local tier may still answer is configured. */
static void row_lost(struct request *q)
{
    struct router *r = q->router;
    const char *fault = store_fault(r->store);
    uint64_t now = clock_usec();

    q->rows_lost = true;
    if (!r->rows_lost_logged_usec || now - r->rows_lost_logged_usec > LOG_EVERY_USEC) {
        r->rows_lost_logged_usec = now;
        log_error("the audit store cannot write (%s): nothing goes to a cloud%s",
                  fault ? fault : "a record was refused",
                  q->config->audit_or_refuse ? ", requests are refused" : ", local answers go unrecorded");
    }
    if (q->config->audit_or_refuse && !q->begun && !q->outcome) {
        q->fault = audit_unavailable;
        refuse(q);
    }
}

static void on_row(void *arg, int r)
{
    struct request *q = arg;

    q->rows_pending--;
    if (r != 0)
        row_lost(q);
    request_run(q);
}

void row_append(struct request *q, struct store_record *rec)
{
    if (!q->place)
        return;
    memcpy(rec->request_id, q->id, ID_BYTES);
    rec->time_usec = clock_wall_usec();
    if (store_append(q->router->store, rec, on_row, q) < 0)
        row_lost(q);
    else
        q->rows_pending++;
    /* What follows a decision waits for it; what tells how it ended may wait for the next commit. */
    q->rows_wanted |= rec->kind != STORE_ATTEMPT && rec->kind != STORE_OUTCOME;
}

static void decision_row(struct request *q)
{
    const struct policy_decision *d = &q->decision;
    cleanup(json_decrefp) json_t *features = policy_features_json(&q->in);
    cleanup(json_decrefp) json_t *candidates = policy_candidates_json(d, &q->config->policy);
    cleanup(freep) char *features_text = json_dumps(features, JSON_COMPACT);
    cleanup(freep) char *candidates_text = json_dumps(candidates, JSON_COMPACT);

    row_append(q, &(struct store_record) {.kind = STORE_DECISION, .decision = {
        .seq = q->n_decisions++, .stage = stage_name(d->stage), .route = route_name(d->route),
        .endpoint = request_endpoint(q, d->endpoint), .model = request_model(q, d->route, d->endpoint),
        .reason = reason_code(d->reason), .features_json = features_text, .candidates_json = candidates_text,
        .score = d->score, .threshold = d->threshold, .degraded = d->degraded,
    }});
}

/* ---- The steps --------------------------------------------------------------------------------------------------- */
static enum step do_model(struct request *q)
{
    switch (model_resolve(q, &q->fault)) {
    case 0:
        return STEP_LABEL;
    case 1:
        return refuse(q);
    default:
        return STEP_WAIT;
    }
}

/* What the content itself says: all of it that could leave, where that could still raise the label. */
static struct label_result look_inside(struct request *q, struct label_result l)
{
    const struct router_config *c = q->config;
    cleanup(json_decrefp) json_t *all = NULL;
    int r = -ENOMEM;

    if (!c->detector || l.label >= c->policy.detected_label)
        return l;
    all = chat_request_to_json(q->chat);
    if (all)
        r = detector_scan_json(c->detector, all, &q->in.found);
    return policy_label_found(l, r, q->in.found, c->policy.detected_label);
}

/* The key is taken in once, at the start; a digest begins from there. */
static int prompt_digest(struct router *r, const char *prompt, uint8_t ret[32])
{
    if (EVP_MAC_init(r->digest, NULL, 0, NULL) != 1 ||
        EVP_MAC_update(r->digest, (const uint8_t *)prompt, strlen(prompt)) != 1 ||
        EVP_MAC_final(r->digest, ret, NULL, 32) != 1)
        return -ENOMEM;
    return 0;
}

static enum step do_label(struct request *q)
{
    const struct label_result l = look_inside(q, policy_label(q->config->policy.default_label,
                                                              q->asked.has_key_label ? &q->asked.key_label : NULL,
                                                              q->asked.label));
    const json_t *messages = q->chat->messages;
    cleanup(freep) char *prompt = json_canonical(q->chat->input ? q->chat->input : messages);
    struct store_record row = {.kind = STORE_REQUEST, .request = {
        .dialect = q->asked.dialect, .key = q->asked.key, .peer = q->asked.peer, .mode = mode_name(q->in.mode),
        .model_asked = q->chat->model, .label = label_name(l.label), .label_source = label_source_name(l.source),
        .policy_digest = q->config->policy_digest, .model_digest = local_digest(q->router),
        .n_messages = (uint32_t)json_array_size(messages), .stream = q->chat->stream,
        .content_bytes = q->chat->input && prompt ? strlen(prompt) : chat_content_bytes(messages),
    }};

    if (!prompt || prompt_digest(q->router, prompt, row.request.prompt_digest) < 0) {
        q->fault = out_of_memory;
        return refuse(q);
    }
    q->in.label = l.label;
    policy_features(&q->in.features, messages);
    q->in.local_fits = local_check(q, &q->beyond_local) == 0;
    q->labelled = true;
    row_append(q, &row);
    if (l.label > q->asked.max_label) {
        q->fault = label_not_allowed;
        return refuse(q);
    }
    q->stage = STAGE_BEFORE;
    return STEP_DECIDE;
}

/* What is up and what was tried, as policy is to see it now. */
static void input_refresh(struct request *q)
{
    struct policy_input *in = &q->in;

    in->stage = q->stage;
    in->released = q->begun;
    in->local_up = local_up(q->router);
    in->local_complete = q->has_kept || (q->attempt.tier == ROUTE_LOCAL && q->attempt.state == ATTEMPT_OK);
    in->link_up = cloud_up(q->router) && !q->config->offline && !q->rows_lost;
    for (size_t i = 0; i < q->config->policy.n_endpoints; i++)
        in->endpoint_ready[i] = !in->endpoint_tried[i] && cloud_ready(q, i);
}

static enum step decided_local(struct request *q)
{
    switch (q->stage) {
    case STAGE_STREAM:              /* good so far: a stream is let go, a whole answer is judged again at its end */
        q->judged = true;
        q->hold = !q->chat->stream;
        return STEP_ANSWER;
    case STAGE_END:
        return STEP_RELEASE;
    default:
        break;
    }
    if (!q->has_kept) {
        q->hold = q->decision.hold;
        return STEP_LOCAL;
    }
    answer_done(&q->answer);
    q->answer = q->kept;
    answer_init(&q->kept);
    q->has_kept = false;
    return STEP_RELEASE;
}

static enum step decided_cloud(struct request *q)
{
    bool whole = q->attempt.state == ATTEMPT_OK;

    attempt_close(q, "abandoned");
    if (whole) {
        q->kept = q->answer;
        answer_init(&q->answer);
        q->has_kept = true;
    }
    q->hold = false;
    q->attempts_here = 0;
    return STEP_CLOUD;
}

/* Nothing may answer: for good, or only now? A refusal for good is never a 5xx, which clients would repeat. */
static void none_fault(struct request *q)
{
    const struct policy_decision *d = &q->decision;

    for (size_t i = 0; i < d->n_candidates; i++)
        switch (d->candidates[i].rejected) {
        case REASON_REJ_LOCAL_DOWN:
        case REASON_REJ_LOCAL_TRIED:
            q->fault = engine_down;
            return;
        case REASON_REJ_BREAKER:
        case REASON_REJ_OFFLINE:
        case REASON_REJ_TRIED:
            q->fault = cloud_unavailable;
            return;
        default:
            break;
        }
    if (q->beyond_local.code) {
        q->fault = q->beyond_local;
        return;
    }
    request_fault(q, 400, "invalid_request_error", "route_not_allowed", arena_printf(&q->arena,
                  "with label %s, mode %s and this model nothing may answer; ask for another model or mode",
                  label_name(q->in.label), mode_name(q->in.mode)), 0);
}

static enum step decided_none(struct request *q)
{
    /* An engine that died under the request gets it once more. */
    if (q->lost_engine && !q->restarted && local_up(q->router)) {
        q->restarted = true;
        q->stage = STAGE_BEFORE;
        return STEP_DECIDE;
    }
    if (!q->fault.code)
        none_fault(q);
    return refuse(q);
}

static enum step do_decide(struct request *q)
{
    struct policy_decision d;

    input_refresh(q);
    policy_decide(&d, &q->config->policy, &q->in);
    /* Of an answer that was not held back, doubt is worth a record; confidence leaves the reason it was begun for. */
    if (q->stage == STAGE_END && !q->hold && d.reason == REASON_CONFIDENT)
        return STEP_RELEASE;
    d.degraded |= q->begun && q->decision.degraded;      /* as the client was told */
    q->decision = d;
    decision_row(q);
    switch (q->decision.route) {
    case ROUTE_LOCAL:
        return decided_local(q);
    case ROUTE_CLOUD:
        return decided_cloud(q);
    default:
        return decided_none(q);
    }
}

static enum step do_local(struct request *q)
{
    int r;

    policy_signals_init(&q->in.signals);
    q->in.local_tried = true;
    q->judged = q->lost_engine = false;
    attempt_open(q, ROUTE_LOCAL, -1);
    r = local_start(q);
    if (r == 0)
        return STEP_ANSWER;

    q->attempt.state = ATTEMPT_NONE;          /* nothing was tried */
    q->fault = r == LOCAL_E_BUSY ? engine_busy : r == LOCAL_E_CLIENT ? client_busy : engine_down;
    if (r != LOCAL_E_DOWN)
        q->fault.retry_after_sec = local_retry_after_sec(q);
    q->stage = STAGE_LOCAL_FAILED;
    return STEP_DECIDE;
}

static enum step do_cloud(struct request *q)
{
    int endpoint = q->decision.endpoint, r;

    if (!cloud_admit(q)) {
        q->in.endpoint_tried[endpoint] = true;
        q->stage = STAGE_CLOUD_FAILED;
        return STEP_DECIDE;
    }
    attempt_open(q, ROUTE_CLOUD, endpoint);
    q->attempts_here++;
    r = cloud_prepare(q);
    if (r == 0)
        return STEP_SEND;
    cloud_stop(q);
    attempt_fail(q, r == -EMSGSIZE ? "too-large" : "prepare");
    q->fault = cloud_unavailable;
    return STEP_FALLBACK;
}

static enum step do_send(struct request *q)
{
    if (q->rows_pending || (!q->rows_lost && !cloud_attached(q->router) && cloud_up(q->router)))
        return STEP_WAIT;
    if (!q->rows_lost && cloud_send(q) == 0)
        return STEP_ANSWER;
    cloud_stop(q);
    attempt_fail(q, q->rows_lost ? "audit" : "egress-lost");
    q->fault = cloud_unavailable;
    return STEP_FALLBACK;
}

static bool window_full(const struct request *q)
{
    unsigned window = q->config->policy.hold_tokens;

    return q->hold && !q->judged && window && q->in.signals.n_tokens >= window;
}

static enum step do_answer(struct request *q)
{
    bool local = q->attempt.tier == ROUTE_LOCAL;

    switch (q->attempt.state) {
    case ATTEMPT_RUNNING:
        if (window_full(q)) {
            q->stage = STAGE_STREAM;
            return STEP_DECIDE;
        }
        if (q->chat->stream && !(q->hold && q->config->policy.hold_tokens))
            answer_flush(q);
        return STEP_WAIT;
    case ATTEMPT_OK:
        q->stage = STAGE_END;
        return local && q->chat->task == CHAT_ANSWER ? STEP_DECIDE : STEP_RELEASE;
    default:
        break;
    }
    if (!q->begun)
        return STEP_FALLBACK;
    /* Tiers are never spliced. */
    q->fault = local ? engine_lost : upstream_cut;
    return refuse(q);
}

static enum step do_fallback(struct request *q)
{
    bool cloud = q->attempt.tier == ROUTE_CLOUD;
    uint64_t pause;

    if (cloud && cloud_may_retry(q, &pause)) {
        timer_set(&q->timer, pause);
        attempt_close(q, NULL);
        return STEP_BACKOFF;
    }
    if (cloud)
        q->in.endpoint_tried[q->attempt.endpoint] = true;
    attempt_close(q, NULL);
    q->stage = cloud ? STAGE_CLOUD_FAILED : STAGE_LOCAL_FAILED;
    return STEP_DECIDE;
}

static enum step do_backoff(struct request *q)
{
    return evtimer_pending(&q->timer, NULL) ? STEP_WAIT : STEP_CLOUD;
}

static enum step do_release(struct request *q)
{
    if (q->rows_pending)
        return STEP_WAIT;
    answer_begin(q);
    answer_flush(q);
    return q->answer.pieces.len || q->answer.logprobs ? STEP_WAIT : STEP_RECORD;
}

static enum step do_record(struct request *q)
{
    struct request_meta m;
    const struct policy_decision *d = &q->decision;
    const struct request_sink *sink = TAKE(q->sink);
    uint64_t latency = clock_usec() - q->began_usec;
    bool answered = !q->outcome;

    if (answered)
        q->outcome = d->degraded ? "degraded" : "ok";
    if (!q->labelled)               /* it ended before its first step, and is recorded all the same */
        do_label(q);
    attempt_close(q, "cancelled");
    row_append(q, &(struct store_record) {.kind = STORE_OUTCOME, .outcome = {
        .outcome = q->outcome, .route = route_name(d->route), .endpoint = request_endpoint(q, d->endpoint),
        .model = request_model(q, d->route, d->endpoint), .finish = answered ? q->answer.finish : NULL,
        .error = answered ? NULL : q->fault.code, .http_status = answered || q->begun ? 200 : q->fault.http_status,
        .tokens_in = q->answer.tokens_in, .tokens_out = q->answer.tokens_out,
        .cost_microusd = (int64_t)q->cost_microusd, .first_token_usec = q->first_token_usec, .latency_usec = latency,
        .confidence = request_confidence(q),
    }});
    metrics_request(q->router, q, latency);
    if (q->asked.key && q->router->hooks.spent)
        q->router->hooks.spent(q->router->hooks.arg, q->asked.key, (uint64_t)q->answer.tokens_in + q->answer.tokens_out,
                               (int64_t)q->cost_microusd);
    event_del(&q->deadline);

    m = request_meta(q);
    if (sink && answered)
        sink->end(q->arg, &m, &(struct request_result) {
            .finish = q->answer.finish, .tokens_in = q->answer.tokens_in, .tokens_out = q->answer.tokens_out,
            .tokens_cached = q->answer.tokens_cached, .cost_microusd = (int64_t)q->cost_microusd,
            .confidence = request_confidence(q), .vectors = (const float *)q->answer.result.data,
            .n_vectors = q->answer.n_vectors, .width = q->answer.width,
            .tokens = (const int32_t *)q->answer.result.data, .stop = q->answer.stop,
            .prefill_usec = q->answer.prefill_usec, .decode_usec = q->answer.decode_usec,
        });
    else if (sink)
        sink->fail(q->arg, &m, &q->fault);
    return STEP_DONE;
}

/* ---- The front's side -------------------------------------------------------------------------------------------- */
static void request_free(struct request *q)
{
    struct router *r = q->router;

    if (q->place)
        store_release(r->store);
    TAILQ_REMOVE(&r->requests, q, all);
    r->in_flight--;
    event_del(&q->deadline);
    event_del(&q->timer);
    answer_done(&q->answer);
    answer_done(&q->kept);
    chat_request_free(q->chat);
    router_config_unref(q->config);
    arena_done(&q->arena);
    free(q);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct request *q = arg;

    if (q->step == STEP_DONE && q->rows_pending == 0)
        request_free(q);
    else
        request_run(q);
}

static void on_deadline(evutil_socket_t fd, short what, void *arg)
{
    struct request *q = arg;

    q->fault = deadline_exceeded;
    refuse(q);
    request_run(q);
}

/* A place in the store, or the refusal. */
static int admit(struct request *q, struct request_error *ret_error)
{
    struct router *r = q->router;
    int full = r->draining ? 0 : store_reserve(r->store);

    q->place = !r->draining && full == 0;
    if (r->draining)
        q->fault = draining;
    else if (full == STORE_E_FULL)
        q->fault = audit_queue_full;
    else if (full && q->config->audit_or_refuse)
        q->fault = audit_unavailable;
    else if (full)
        row_lost(q);
    if (!q->fault.code)
        return 0;
    *ret_error = q->fault;
    return 1;
}

/* A mode that the key does not allow is refused where it was asked for, and else becomes the one it does allow. */
static int scope_mode(struct request *q, const struct request_scope *s, const char *asked)
{
    enum mode mode = q->in.mode;
    unsigned is = mode == MODE_LOCAL_ONLY ? SCOPE_LOCAL : mode == MODE_CLOUD_ONLY ? SCOPE_CLOUD : SCOPE_AUTO;

    if (!s->modes || s->modes & is)
        return 0;
    /* Only what the device leaves open can be narrowed. */
    if (asked || is != SCOPE_AUTO)
        return -EACCES;
    q->in.mode = s->modes & SCOPE_LOCAL ? MODE_LOCAL_ONLY : MODE_CLOUD_ONLY;
    return 0;
}

/* The clouds that are left, and whether the model asked for is within it all. */
static int scope_model(struct request *q, const struct request_scope *s)
{
    const struct policy_config *c = &q->config->policy;
    const char *name = q->chat->model ? q->chat->model : "";
    bool cloud = q->in.ask == ASK_CLOUD || strcmp(name, "cloud") == 0;

    for (size_t i = 0; s->n_endpoints && i < c->n_endpoints; i++) {
        q->in.endpoint_denied[i] = true;
        for (size_t k = 0; k < s->n_endpoints; k++)
            if (strcmp(s->endpoints[k], c->endpoints[i].name) == 0)
                q->in.endpoint_denied[i] = false;
    }
    if (s->modes && cloud && !(s->modes & (SCOPE_CLOUD | SCOPE_AUTO)))
        return -EACCES;
    if (s->modes && q->in.ask == ASK_LOCAL && !(s->modes & (SCOPE_LOCAL | SCOPE_AUTO)))
        return -EACCES;
    return q->in.ask == ASK_CLOUD && q->in.endpoint_denied[q->in.ask_endpoint] ? -EACCES : 0;
}

/* Keep what the client asked for beside the body. 0, -ENOMEM, or 1 with *ret_error. */
static int ask(struct request *q, const struct request_options *o, struct request_error *ret_error)
{
    struct err err;
    int result;

    q->asked.dialect = o->dialect;
    q->asked.key = arena_strdup(&q->arena, o->key);
    q->asked.peer = arena_strdup(&q->arena, o->peer);
    q->asked.label = arena_strdup(&q->arena, o->label);
    q->asked.has_key_label = o->key_label;
    q->asked.batch = o->batch;
    q->asked.max_label = o->scope && o->scope->has_max_label ? o->scope->max_label : LABEL_COUNT - 1;
    if (o->key_label)
        q->asked.key_label = *o->key_label;
    if ((o->key && !q->asked.key) || (o->peer && !q->asked.peer) || (o->label && !q->asked.label))
        return -ENOMEM;

    if (policy_mode(&q->in.mode, q->config->policy.mode, o->mode, &err) < 0) {
        snprintf(q->router->words, sizeof(q->router->words), "%s", err.msg);
        *ret_error = (struct request_error) {
            .http_status = 400, .type = "invalid_request_error", .code = "invalid_mode", .message = q->router->words,
        };
        return 1;
    }
    if (o->scope && scope_mode(q, o->scope, o->mode) < 0) {
        *ret_error = mode_not_allowed;
        return 1;
    }
    result = model_resolve(q, ret_error);
    if (result == 1)
        return 1;
    if (o->scope && scope_model(q, o->scope) < 0) {
        *ret_error = model_not_allowed;
        return 1;
    }
    return 0;
}

static void deadline_set(struct request *q, uint64_t asked_usec)
{
    uint64_t usec = asked_usec ? MIN(asked_usec, q->config->deadline_usec) : q->config->deadline_usec;

    q->deadline_usec = q->began_usec + usec;
    evtimer_assign(&q->deadline, q->router->base, on_deadline, q);
    timer_set(&q->deadline, usec);
}

int request_start(struct request **ret, struct router *r, struct chat_request *chat, const struct request_options *o,
                  const struct request_sink *sink, void *arg, char ret_id[ID_BYTES], struct request_error *ret_error)
{
    struct request *q = calloc(1, sizeof(*q));
    uint64_t wall = clock_wall_usec();
    int result;

    id_new(ret_id, wall);
    if (!q)
        return -ENOMEM;
    q->router = r;
    q->config = router_config_ref(r->config);
    q->chat = chat;
    q->sink = sink;
    q->arg = arg;
    q->began_usec = clock_usec();
    q->created_sec = wall / USEC_PER_SEC;
    q->in.local_fits = true;
    q->decision.endpoint = -1;
    memcpy(q->id, ret_id, ID_BYTES);
    arena_init(&q->arena);
    answer_init(&q->answer);
    answer_init(&q->kept);
    evtimer_assign(&q->timer, r->base, on_timer, q);
    deadline_set(q, o->deadline_usec);
    TAILQ_INSERT_TAIL(&r->requests, q, all);
    r->in_flight++;

    result = ask(q, o, ret_error);
    if (result == 0)
        result = admit(q, ret_error);
    if (result != 0) {
        q->chat = NULL;             /* still the caller's */
        request_free(q);
        return result;
    }
    r->metrics.requests++;
    event_active(&q->timer, EV_TIMEOUT, 0);
    *ret = q;
    return 0;
}

void request_cancel(struct request *q)
{
    q->sink = NULL;
    q->fault = (struct request_error) {0};
    if (!q->outcome)
        q->outcome = "cancelled";
    request_run(q);
}

void request_pause(struct request *q)
{
    q->paused = true;
    cloud_flow(q);
}

void request_resume(struct request *q)
{
    q->paused = false;
    cloud_flow(q);
    request_run(q);
}
