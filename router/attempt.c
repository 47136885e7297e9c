/* An attempt of a tier and the answer it brings: text as it comes in, what is released to the sink, and the row that
 * says how it went. The tiers report through attempt_text(), attempt_finish() and attempt_fail(); the steps of
 * request.c open, close and release. */
#include <stdio.h>
#include <string.h>
#include "base/clock.h"
#include "router/internal.h"

const char *request_model(const struct request *q, enum route route, int endpoint)
{
    return route == ROUTE_LOCAL ? local_model(q->router) :
           route == ROUTE_CLOUD ? q->config->policy.endpoints[endpoint].model : NULL;
}

const char *request_endpoint(const struct request *q, int endpoint)
{
    return endpoint < 0 ? NULL : q->config->policy.endpoints[endpoint].name;
}

void answer_init(struct answer *a)
{
    *a = (struct answer) {0};
    buf_init(&a->text, ANSWER_MAX_BYTES);
}

void answer_done(struct answer *a)
{
    buf_done(&a->text);
    json_decref(a->logprobs);
    answer_init(a);
}

void attempt_open(struct request *q, enum route tier, int endpoint)
{
    answer_done(&q->answer);
    q->attempt = (struct attempt) {
        .state = ATTEMPT_RUNNING, .tier = tier, .endpoint = endpoint, .seq = q->n_attempts, .id = q->router->next_id++,
        .started_usec = clock_wall_usec(),
    };
}

static void attempt_over(struct request *q, int state)
{
    q->attempt.state = state;
    q->attempt.ended_usec = clock_wall_usec();
}

void attempt_fail(struct request *q, const char *error)
{
    attempt_over(q, ATTEMPT_FAILED);
    snprintf(q->attempt.error, sizeof(q->attempt.error), "%s", error);
}

void attempt_finish(struct request *q, const char *finish)
{
    attempt_over(q, ATTEMPT_OK);
    q->answer.finish = finish;
}

static void attempt_leave(struct request *q)
{
    if (q->attempt.tier == ROUTE_LOCAL)
        local_stop(q);
    else
        cloud_stop(q);
}

void attempt_text(struct request *q, const char *text, size_t len, json_t *logprobs)
{
    cleanup(json_decrefp) json_t *more = logprobs;
    struct answer *a = &q->answer;

    if (len && !q->attempt.first_byte_usec)
        q->attempt.first_byte_usec = clock_wall_usec();
    a->bytes += len;
    if (buf_append(&a->text, text, len) < 0) {
        attempt_leave(q);
        attempt_fail(q, "answer-too-large");
        request_fault(q, 502, "server_error", "answer_too_large", "the answer is longer than can be held", 0);
        return;
    }
    if (more && !a->logprobs)
        a->logprobs = TAKE(more);
    else if (more)
        json_array_extend(a->logprobs, more);
}

/* Tokens that the upstream did not count are taken as four bytes each; money is rounded up. */
static void attempt_cost(struct request *q)
{
    const struct policy_endpoint *e = &q->config->policy.endpoints[q->attempt.endpoint];
    struct answer *a = &q->answer;

    if (!q->attempt.usage_known && a->bytes) {
        a->tokens_in = (uint32_t)((q->in.features.bytes + 3ull) / 4);
        a->tokens_out = (uint32_t)((a->bytes + 3) / 4);
    }
    q->cost_microusd += (a->tokens_in * e->price_in + a->tokens_out * e->price_out + 999999) / 1000000;
}

void attempt_close(struct request *q, const char *unfinished)
{
    struct attempt *a = &q->attempt;
    bool local = a->tier == ROUTE_LOCAL;
    const char *result = a->state == ATTEMPT_OK ? "ok" : a->state == ATTEMPT_FAILED ? "failed" : unfinished;
    struct router_metrics *m = &q->router->metrics;

    if (a->state == ATTEMPT_NONE)
        return;
    if (a->state == ATTEMPT_RUNNING) {
        attempt_leave(q);
        attempt_over(q, ATTEMPT_FAILED);
    }
    if (!local)
        attempt_cost(q);
    *(local ? &m->tokens_in_local : &m->tokens_in_cloud) += q->answer.tokens_in;
    *(local ? &m->tokens_out_local : &m->tokens_out_cloud) += q->answer.tokens_out;

    row_append(q, &(struct store_record) {.kind = STORE_ATTEMPT, .attempt = {
        .seq = a->seq, .tier = route_name(a->tier), .endpoint = request_endpoint(q, a->endpoint),
        .model = request_model(q, a->tier, a->endpoint), .result = result, .error = *a->error ? a->error : NULL,
        .http_status = a->http_status, .started_usec = a->started_usec, .first_byte_usec = a->first_byte_usec,
        .ended_usec = a->ended_usec, .tokens_in = q->answer.tokens_in, .tokens_out = q->answer.tokens_out,
    }});
    buf_done(&a->order);
    a->state = ATTEMPT_NONE;
    q->n_attempts++;
}

double request_confidence(const struct request *q)
{
    return q->decision.route == ROUTE_LOCAL && q->in.signals.n_tokens ? policy_confidence(&q->in.signals) : NAN;
}

struct request_meta request_meta(const struct request *q)
{
    const struct policy_decision *d = &q->decision;
    const char *model = request_model(q, d->route, d->endpoint);
    /* What a few first tokens say was never calibrated. */
    bool early = q->attempt.state == ATTEMPT_RUNNING && !q->judged;

    return (struct request_meta) {
        .id = q->id, .route = d->route, .reason = reason_code(d->reason), .model = model ? model : "",
        .endpoint = request_endpoint(q, d->endpoint), .degraded = d->degraded,
        .confidence = early ? NAN : request_confidence(q),
        .created_sec = q->created_sec,
    };
}

void answer_begin(struct request *q)
{
    struct request_meta m = request_meta(q);

    if (q->begun || !q->sink)
        return;
    q->begun = true;
    q->sink->begin(q->arg, &m);
}

void answer_flush(struct request *q)
{
    struct answer *a = &q->answer;

    if (q->rows_pending || (!a->text.len && !a->logprobs))
        return;
    answer_begin(q);
    if (!q->sink || q->paused)      /* beginning may have shown that the client has left, or is slow */
        return;
    if (!q->first_token_usec)
        q->first_token_usec = clock_usec() - q->began_usec;
    q->sink->delta(q->arg, &(struct request_delta) {(const char *)a->text.data, a->text.len, a->logprobs});
    buf_clear(&a->text);
    json_decref(a->logprobs);
    a->logprobs = NULL;
}
