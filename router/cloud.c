/* The cloud tier: a body is made, its digest and size are appended as an egress row, and only cloud_send(), which the
 * step table calls when every row is durable, hands it to the egress worker. Back come chunks in OpenAI's shape,
 * which chunk.c reads.
 *
 * Each endpoint has a breaker, found by name since a request keeps the configuration it began with. Second attempts
 * share one budget: a tenth of the calls, and three besides, so that a failing cloud is not asked twice as much. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <openssl/evp.h>
#include "base/clock.h"
#include "base/log.h"
#include "router/internal.h"

#define ATTEMPTS_MAX 2                     /* at one endpoint */
#define RETRY_BUDGET_MAX 3.0
#define RETRY_BUDGET_SHARE 0.1
#define BACKOFF_MIN_USEC (500 * USEC_PER_MSEC)
#define BACKOFF_MAX_USEC (8 * USEC_PER_SEC)
#define RETRY_AFTER_MAX_SEC 30
#define GRACE_SEC 5                        /* for an egress that is starting */

/* ---- Breakers ---------------------------------------------------------------------------------------------------- */
static struct breaker *breaker_of(struct router *r, const char *endpoint)
{
    for (size_t i = 0; i < r->cloud.n_endpoints; i++)
        if (strcmp(r->cloud.endpoints[i].name, endpoint) == 0)
            return &r->cloud.endpoints[i].breaker;
    return NULL;
}

const struct breaker *cloud_breaker(const struct router *r, const char *endpoint)
{
    return breaker_of((struct router *)r, endpoint);
}

static struct breaker *breaker_at(const struct request *q, size_t endpoint)
{
    return breaker_of(q->router, q->config->policy.endpoints[endpoint].name);
}

bool cloud_ready(const struct request *q, size_t endpoint)
{
    const struct breaker *b = breaker_at(q, endpoint);

    return b && breaker_would_allow(b, clock_usec());
}

bool cloud_admit(struct request *q)
{
    struct breaker *b = breaker_at(q, (size_t)q->decision.endpoint);

    return b && breaker_allows(b, clock_usec());
}

static void breaker_tell(struct request *q, enum call_result result)
{
    struct breaker *b = breaker_at(q, (size_t)q->attempt.endpoint);
    enum breaker_state before;

    if (!b)
        return;
    before = b->state;
    breaker_note(b, clock_usec(), result);
    if (b->state != before)
        log_notice("cloud %s: breaker %s", q->config->policy.endpoints[q->attempt.endpoint].name,
                   breaker_state_name(b->state));
}

void cloud_set_config(struct router *r, const struct router_config *c)
{
    struct cloud *cl = &r->cloud;
    struct cloud_known old[POLICY_MAX_ENDPOINTS];
    size_t n_old = cl->n_endpoints;

    memcpy(old, cl->endpoints, sizeof(old));
    cl->n_endpoints = c->policy.n_endpoints;
    for (size_t i = 0; i < cl->n_endpoints; i++) {
        const char *name = c->policy.endpoints[i].name;

        snprintf(cl->endpoints[i].name, sizeof(cl->endpoints[i].name), "%s", name);
        breaker_init(&cl->endpoints[i].breaker);
        for (size_t k = 0; k < n_old; k++)
            if (strcmp(old[k].name, name) == 0 && old[k].breaker.state != BREAKER_LATCHED)
                cl->endpoints[i].breaker = old[k].breaker;
    }
    link_send(&cl->link, EGRESS_RELOAD, 0, NULL, 0);
}

/* ---- A body out -------------------------------------------------------------------------------------------------- */
static char *body_text(const struct request *q)
{
    const struct cloud_endpoint *e = &q->config->cloud.endpoints[q->attempt.endpoint];
    cleanup(json_decrefp) json_t *request = chat_request_to_json(q->chat), *body = NULL;

    body = request ? upstream_of(e->dialect)->body(request, e->policy.model) : NULL;
    return body ? json_dumps(body, JSON_COMPACT) : NULL;
}

static char *order_text(const struct request *q, const uint8_t digest[32])
{
    cleanup(json_decrefp) json_t *order = NULL;
    uint64_t now = clock_usec();
    char hex[65];

    for (int i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    order = json_pack("{s:s,s:s,s:s,s:s,s:I}", "endpoint", q->config->policy.endpoints[q->attempt.endpoint].name,
                      "label", label_name(q->in.label), "body_sha256", hex, "request_id", q->id, "deadline_msec",
                      (json_int_t)(q->deadline_usec > now ? (q->deadline_usec - now) / USEC_PER_MSEC : 0));
    return order ? json_dumps(order, JSON_COMPACT) : NULL;
}

int cloud_prepare(struct request *q)
{
    const struct cloud_endpoint *e = &q->config->cloud.endpoints[q->attempt.endpoint];
    cleanup(freep) char *body = body_text(q), *order = NULL;
    struct store_record row = {.kind = STORE_EGRESS};
    struct buf *out = &q->attempt.order;
    char host[sizeof(e->url)];
    uint32_t order_len;
    int r;

    if (!body || EVP_Digest(body, strlen(body), row.egress.body_digest, NULL, EVP_sha256(), NULL) != 1)
        return -ENOMEM;
    order = order_text(q, row.egress.body_digest);
    if (!order)
        return -ENOMEM;
    r = endpoint_host(host, sizeof(host), e->url, NULL);
    if (r < 0)
        return r;

    order_len = (uint32_t)strlen(order);
    buf_init(out, FRAME_MAX_PAYLOAD);
    r = buf_append(out, &order_len, sizeof(order_len));
    if (r == 0)
        r = buf_append(out, order, order_len);
    if (r == 0)
        r = buf_append(out, body, strlen(body));
    if (r < 0)
        return r;

    q->attempt.body_bytes = strlen(body);
    row.egress.seq = q->attempt.seq;
    row.egress.endpoint = e->policy.name;
    row.egress.host = host;
    row.egress.region = e->policy.region;
    row.egress.label = label_name(q->in.label);
    row.egress.bytes = strlen(body);
    row_append(q, &row);
    return 0;
}

int cloud_send(struct request *q)
{
    struct router *r = q->router;
    struct attempt *a = &q->attempt;
    int result = link_send(&r->cloud.link, EGRESS_START, a->id, a->order.data, a->order.len);

    buf_done(&a->order);
    if (result < 0)
        return result;
    a->sent = true;
    TAILQ_INSERT_TAIL(&r->cloud.calls, q, tier);
    r->metrics.cloud_attempts++;
    r->metrics.bytes_left += a->body_bytes;
    if (q->attempts_here == 1)
        r->cloud.retries = MIN(r->cloud.retries + RETRY_BUDGET_SHARE, RETRY_BUDGET_MAX);
    q->upstream_paused = false;
    cloud_flow(q);
    return 0;
}

void cloud_flow(struct request *q)
{
    struct attempt *a = &q->attempt;

    if (a->tier != ROUTE_CLOUD || a->state != ATTEMPT_RUNNING || !a->sent || q->paused == q->upstream_paused)
        return;
    q->upstream_paused = q->paused;
    link_send(&q->router->cloud.link, q->paused ? EGRESS_PAUSE : EGRESS_RESUME, a->id, NULL, 0);
}

/* The attempt is over for the breaker and for egress. */
static void call_close(struct request *q, enum call_result result)
{
    if (q->attempt.sent)
        TAILQ_REMOVE(&q->router->cloud.calls, q, tier);
    breaker_tell(q, result);
    if (result == CALL_FAILED || result == CALL_DENIED)
        q->router->metrics.cloud_failures++;
}

static void hang_up(struct request *q, enum call_result result)
{
    if (q->attempt.sent)
        link_send(&q->router->cloud.link, EGRESS_CANCEL, q->attempt.id, NULL, 0);
    call_close(q, result);
}

void cloud_stop(struct request *q)
{
    hang_up(q, CALL_CANCELLED);
}

bool cloud_may_retry(struct request *q, uint64_t *ret_pause_usec)
{
    struct attempt *a = &q->attempt;
    struct cloud *c = &q->router->cloud;
    uint64_t pause, jitter;

    if (!a->may_repeat || a->first_byte_usec || q->attempts_here >= ATTEMPTS_MAX || q->rows_lost || !c->link.bev ||
        c->retries < 1 || a->retry_after_sec > RETRY_AFTER_MAX_SEC || !cloud_ready(q, (size_t)a->endpoint))
        return false;

    random_bytes(&jitter, sizeof(jitter));
    pause = jitter % MIN(BACKOFF_MIN_USEC << (q->attempts_here - 1), BACKOFF_MAX_USEC);
    pause = MAX(pause, a->retry_after_sec * USEC_PER_SEC);
    if (clock_usec() + pause >= q->deadline_usec)
        return false;
    c->retries--;
    *ret_pause_usec = pause;
    return true;
}

/* ---- Events in -------------------------------------------------------------------------------------------------- */
static void on_event(struct request *q, const struct frame *f)
{
    int r = chunk_take(q, f->data, f->len);

    if (r == 0 || q->attempt.state != ATTEMPT_RUNNING)
        return;
    hang_up(q, CALL_FAILED);
    attempt_fail(q, r == -EIO ? "upstream-error" : EGRESS_ERR_PROTOCOL);
    request_fault(q, 502, "upstream_error", "upstream_failed", "the cloud sent an error, or no valid answer", 0);
}

/* EGRESS_END's members. */
struct end { const char *result, *error, *upstream_code; int64_t status, retry_after_sec; };

static int end_read(struct end *ret, const json_t *j)
{
    *ret = (struct end) {.error = "", .upstream_code = ""};
    if (json_read_string(j, "result", &ret->result, NULL) != 1 ||
        json_read_string(j, "error", &ret->error, NULL) < 0 ||
        json_read_string(j, "upstream_code", &ret->upstream_code, NULL) < 0 ||
        json_read_int(j, "status", 0, 999, &ret->status, NULL) < 0 ||
        json_read_int(j, "retry_after_sec", 0, INT32_MAX, &ret->retry_after_sec, NULL) < 0)
        return -EPROTO;
    return 0;
}

static enum call_result call_result(const struct end *end)
{
    static const struct { const char *name; enum call_result result; } results[] = {
        {"ok", CALL_OK}, {"rejected", CALL_REJECTED}, {"denied", CALL_DENIED}, {"cancelled", CALL_CANCELLED},
    };

    for (size_t i = 0; i < ARRAY_SIZE(results); i++)
        if (strcmp(end->result, results[i].name) == 0)
            return results[i].result;
    return CALL_FAILED;
}

/* What may pass by itself. A certificate, a key or a refusal of egress does not. */
static bool passing(const struct end *end)
{
    if (strcmp(end->error, EGRESS_ERR_HTTP) == 0)
        return end->status == 429 || end->status >= 500;
    return strcmp(end->error, EGRESS_ERR_CONNECT) == 0 || strcmp(end->error, EGRESS_ERR_TIMEOUT) == 0 ||
           strcmp(end->error, EGRESS_ERR_CUT) == 0;
}

/* A failure in the client's words. The upstream's own code is a short token; its text may quote the prompt and is not
 * told. */
static void end_fault(struct request *q, const struct end *end, enum call_result result)
{
    const char *name = q->config->policy.endpoints[q->attempt.endpoint].name, *code = "upstream_failed";
    const char *message = arena_printf(&q->arena, "the cloud endpoint %s did not answer (%s%s%.40s)", name, end->error,
                                       *end->upstream_code ? ", " : "", end->upstream_code);
    int status = 502;

    if (result == CALL_REJECTED) {
        message = arena_printf(&q->arena, "the cloud endpoint %s rejected the request (%.40s)", name,
                               *end->upstream_code ? end->upstream_code : "400");
        request_fault(q, 400, "invalid_request_error", "upstream_rejected", message, 0);
        return;
    }
    if (result == CALL_DENIED)
        code = "upstream_denied";
    else if (end->status == 429)
        status = 429, code = "upstream_rate_limited";
    else if (end->status == 529)       /* Anthropic's "overloaded" */
        status = 503, code = "upstream_overloaded";
    else if (strcmp(end->error, EGRESS_ERR_TIMEOUT) == 0)
        status = 504, code = "upstream_timeout";
    request_fault(q, status, "upstream_error", code, message, q->attempt.retry_after_sec);
}

static int on_end(struct request *q, const struct frame *f)
{
    cleanup(json_decrefp) json_t *j = json_parse(f->data, f->len, NULL);
    enum call_result result;
    struct end end;

    if (end_read(&end, j) < 0)
        return -EPROTO;
    result = call_result(&end);
    /* Nothing at all is no answer, whatever its status. */
    if (result == CALL_OK && !q->answer.finish && !q->answer.bytes) {
        result = CALL_FAILED;
        end.error = EGRESS_ERR_PROTOCOL;
    }

    if (end.status)
        q->attempt.http_status = (int)end.status;
    q->attempt.retry_after_sec = (unsigned)end.retry_after_sec;
    if (result == CALL_OK) {
        attempt_finish(q, q->answer.finish ? q->answer.finish : "stop");
    } else {
        attempt_fail(q, *end.error ? end.error : end.result);
        q->attempt.may_repeat = result == CALL_FAILED && passing(&end);
        end_fault(q, &end, result);
    }
    call_close(q, result);
    return 0;
}

/* Frames of a call that is over, as they arrive after a cancel, find no request and are dropped. */
static int on_call_frame(struct router *r, const struct frame *f)
{
    struct request *q;
    uint32_t status;
    int result = 0;

    TAILQ_FOREACH(q, &r->cloud.calls, tier)
        if (q->attempt.id == f->id)
            break;
    if (!q)
        return 0;
    if (f->type == EGRESS_HEAD) {
        if (f->len != sizeof(status))
            return -EPROTO;
        memcpy(&status, f->data, sizeof(status));
        q->attempt.http_status = (int)status;
        return 0;
    }
    if (f->type == EGRESS_EVENT)
        on_event(q, f);
    else
        result = on_end(q, f);
    request_run(q);
    return result;
}

static int on_frame(struct router *r, const struct frame *f)
{
    switch (f->type) {
    case EGRESS_READY:
        r->cloud.ready = true;
        return 0;
    case EGRESS_FAILED:
        log_error("egress did not load its configuration: %.*s", (int)MIN(f->len, 512u), (const char *)f->data);
        return 0;
    case EGRESS_HEAD:
    case EGRESS_EVENT:
    case EGRESS_END:
        return on_call_frame(r, f);
    case EGRESS_PONG:
        return 0;
    }
    return -EPROTO;
}

static void on_down(struct router *r, bool replaced)
{
    struct request *q;

    if (r->cloud.ready)
        event_add(&r->cloud.grace, &(struct timeval) {.tv_sec = GRACE_SEC});
    r->cloud.ready = false;
    while ((q = TAILQ_FIRST(&r->cloud.calls))) {
        attempt_fail(q, "egress-lost");
        request_fault(q, 502, "upstream_error", "egress_lost", "the connection to the cloud was lost; try again", 1);
        call_close(q, CALL_CANCELLED);
    }
    request_run_all(r);
    if (!replaced && r->hooks.worker_down)
        r->hooks.worker_down(r->hooks.arg, false);
}

static void on_grace_over(evutil_socket_t fd, short what, void *arg)
{
    struct router *r = arg;

    if (!cloud_attached(r))
        log_warning("egress did not come back within %d s; requests no longer wait for it", GRACE_SEC);
    request_run_all(r);
}

bool cloud_attached(const struct router *r)
{
    return r->cloud.link.bev;
}

bool cloud_up(const struct router *r)
{
    return cloud_attached(r) || evtimer_pending(&r->cloud.grace, NULL);
}

void cloud_init(struct router *r)
{
    evtimer_assign(&r->cloud.grace, r->base, on_grace_over, r);
    event_add(&r->cloud.grace, &(struct timeval) {.tv_sec = GRACE_SEC});
    TAILQ_INIT(&r->cloud.calls);
    r->cloud.retries = RETRY_BUDGET_MAX;
    link_init(&r->cloud.link, r, r->base, EGRESS_PING, on_frame, on_down);
}

void cloud_done(struct router *r)
{
    link_done(&r->cloud.link);
    event_del(&r->cloud.grace);
}
