/* An attempt of a tier and the answer it brings: text as it comes in, what is released to the sink, and the row that
 * says how it went. The tiers report through attempt_text(), attempt_finish() and attempt_fail(); the steps of
 * request.c open, close and release. */
#include <errno.h>
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
    buf_init(&a->pieces, ANSWER_MAX_BYTES);
    buf_init(&a->result, FRAME_MAX_PAYLOAD);
}

void answer_done(struct answer *a)
{
    buf_done(&a->text);
    buf_done(&a->pieces);
    buf_done(&a->result);
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
    struct attempt *a = &q->attempt;

    attempt_over(q, ATTEMPT_OK);
    q->answer.finish = finish;
    if (a->tier == ROUTE_CLOUD && a->first_byte_usec) {
        q->answer.prefill_usec = a->first_byte_usec - MIN(a->first_byte_usec, a->started_usec);
        q->answer.decode_usec = a->ended_usec - MIN(a->ended_usec, a->first_byte_usec);
    }
}

static void attempt_leave(struct request *q)
{
    if (q->attempt.tier == ROUTE_LOCAL)
        local_stop(q);
    else
        cloud_stop(q);
}

static struct piece *piece_last(const struct answer *a)
{
    return a->pieces.len ? (struct piece *)(a->pieces.data + a->pieces.len) - 1 : NULL;
}

/* More of the last piece, or a new one. An id begins a call. */
static int piece_add(struct answer *a, enum answer_channel channel, const char *id, const char *text, size_t len)
{
    struct piece *last = piece_last(a);
    struct piece new = {.channel = channel, .id = id, .len = len};

    new.call = channel == ANSWER_TEXT ? 0 : a->n_calls - 1;
    if (buf_append(&a->text, text, len) < 0)
        return -EMSGSIZE;
    a->bytes += len;
    if (!last || id || last->channel != channel)
        return buf_append(&a->pieces, &new, sizeof(new));
    last->len += len;
    return 0;
}

static void attempt_add(struct request *q, enum answer_channel channel, const char *id, const char *text, size_t len)
{
    if (len && !q->attempt.first_byte_usec)
        q->attempt.first_byte_usec = clock_wall_usec();
    if (q->attempt.state != ATTEMPT_RUNNING || (!len && !id) || piece_add(&q->answer, channel, id, text, len) == 0)
        return;
    attempt_leave(q);
    attempt_fail(q, "answer-too-large");
    request_fault(q, 502, "server_error", "answer_too_large", "the answer is longer than can be held", 0);
}

/* As random as OpenAI's: a client may keep calls of many answers in one map. */
static char *call_id_new(struct request *q)
{
    uint64_t bits[2];

    random_bytes(bits, sizeof(bits));
    return arena_printf(&q->arena, "call_%016llx%08llx", (unsigned long long)bits[0],
                        (unsigned long long)bits[1] & 0xffffffff);
}

int attempt_call(struct request *q, enum answer_channel channel, const char *id, const char *text, size_t len)
{
    struct answer *a = &q->answer;

    if (!id && !a->n_calls)
        return -EPROTO;
    if (id) {
        id = *id ? arena_strdup(&q->arena, id) : call_id_new(q);
        if (!id)
            return -ENOMEM;
        a->n_calls++;
    }
    attempt_add(q, channel, id, text, len);
    return 0;
}

void attempt_text(struct request *q, const char *text, size_t len, json_t *logprobs)
{
    cleanup(json_decrefp) json_t *more = logprobs;
    struct answer *a = &q->answer;

    attempt_add(q, ANSWER_TEXT, NULL, text, len);
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
        .tokens_in = q->answer.tokens_in, .created_sec = q->created_sec,
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

/* Tell the sink one piece, its bytes at `at`; the first text takes the log-probabilities along. */
static void delta(struct request *q, const struct piece *p, size_t at)
{
    struct answer *a = &q->answer;
    cleanup(json_decrefp) json_t *logprobs = p->channel == ANSWER_TEXT ? TAKE(a->logprobs) : NULL;

    if (q->sink && (p->len || p->id || logprobs))
        q->sink->delta(q->arg, &(struct request_delta) {
            .channel = p->channel, .call = p->call, .call_id = p->id, .logprobs = logprobs,
            .text = p->len ? (const char *)a->text.data + at : "", .text_len = p->len,
        });
}

void answer_flush(struct request *q)
{
    struct answer *a = &q->answer;
    const struct piece *p = (const struct piece *)a->pieces.data;
    size_t n = a->pieces.len / sizeof(*p), at = 0;

    if (q->rows_pending || (!n && !a->logprobs))
        return;
    answer_begin(q);
    if (!q->sink || q->paused)      /* beginning may have shown that the client has left, or is slow */
        return;
    if (!q->first_token_usec)
        q->first_token_usec = clock_usec() - q->began_usec;
    if (!n || p->channel != ANSWER_TEXT)
        delta(q, &(struct piece) {.channel = ANSWER_TEXT}, 0);
    for (size_t i = 0; i < n; i++) {
        delta(q, &p[i], at);
        at += p[i].len;
    }
    buf_consume(&a->text, at);
    buf_consume(&a->pieces, n * sizeof(*p));
}
