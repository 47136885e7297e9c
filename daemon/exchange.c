/* One request and its answer. tern's own paths answer with one of the exchange_reply functions; a dialect's path goes
 * through exchange_chat(), which hands the parsed body to the router and turns what the router tells (the sink below)
 * into the dialect's events or its one answer. Whichever way it ends, the exchange is freed first and evhttp told
 * last, because evhttp may close the connection, and so call back, before it returns. */
#include <errno.h>
#include <event2/buffer.h>
#include <inttypes.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "daemon/http.h"

#define PING_SEC 5                 /* a stream that was silent for one such turn is pinged at the next */
#define ANSWER_MAX (32u << 20)     /* an answer that is not streamed */
#define DEADLINE_MAX_MSEC 86400000

static const struct request_error no_memory = {
    .http_status = 503, .type = "server_error", .code = "out_of_memory", .message = "out of memory",
    .retry_after_sec = 1,
};

static void exchange_free(struct exchange *x)
{
    if (x->ping)
        event_free(x->ping);
    json_decref(x->logprobs);
    json_decref(x->calls);
    json_decref(x->keep);
    buf_done(&x->arguments);
    buf_done(&x->text);
    arena_done(&x->arena);
    free(x);
}

struct exchange *exchange_new(struct daemon *d, struct http_counts *counts, struct conn *c, struct evhttp_request *req)
{
    struct exchange *x = calloc(1, sizeof(*x));

    if (!x)
        return NULL;
    x->daemon = d;
    x->counts = counts;
    x->conn = c;
    x->req = req;
    x->started_usec = clock_usec();
    x->meta.confidence = NAN;
    arena_init(&x->arena);
    buf_init(&x->text, ANSWER_MAX);
    buf_init(&x->arguments, ANSWER_MAX);
    return x;
}

/* ---- Headers ----------------------------------------------------------------------------------------------------- */

const char *status_phrase(int status)
{
    static const struct { int status; const char *phrase; } phrases[] = {
        {200, "OK"}, {204, "No Content"}, {400, "Bad Request"}, {401, "Unauthorized"}, {402, "Payment Required"},
        {403, "Forbidden"}, {404, "Not Found"}, {405, "Method Not Allowed"}, {408, "Request Timeout"},
        {409, "Conflict"}, {411, "Length Required"}, {413, "Content Too Large"}, {415, "Unsupported Media Type"},
        {417, "Expectation Failed"}, {422, "Unprocessable Content"}, {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"}, {501, "Not Implemented"}, {502, "Bad Gateway"}, {503, "Service Unavailable"},
        {504, "Gateway Timeout"}, {505, "HTTP Version Not Supported"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(phrases); i++)
        if (phrases[i].status == status)
            return phrases[i].phrase;
    return status < 500 ? "Refused" : "Failed";
}

void cost_text(char out[COST_BYTES], int64_t microusd)
{
    snprintf(out, COST_BYTES, "%" PRId64 ".%06" PRId64, microusd / 1000000, microusd % 1000000);
}

static void header(struct exchange *x, const char *name, const char *value)
{
    if (value)
        evhttp_add_header(evhttp_request_get_output_headers(x->req), name, value);
}

/* What every answer tells. */
static void headers_common(struct exchange *x, int status, const char *type)
{
    const char *origin = conn_allow_origin(x->conn);

    if (!x->id[0])
        id_new(x->id, clock_wall_usec());
    header(x, "Content-Type", type);
    header(x, "x-request-id", x->id);
    if (x->dialect && x->dialect->id_header)
        header(x, x->dialect->id_header, x->id);
    header(x, "Cache-Control", "no-store");
    if (origin) {
        header(x, "Access-Control-Allow-Origin", origin);
        header(x, "Access-Control-Expose-Headers", "*");
        header(x, "Vary", "Origin");
    }
    if (conn_closes(x->conn))
        header(x, "Connection", "close");
    x->counts->answers[status / 100]++;
}

/* Where it went, as far as that is known. cost < 0: not yet. */
static void headers_decision(struct exchange *x, int64_t cost_microusd)
{
    char text[COST_BYTES];

    if (!x->decided)
        return;
    header(x, "x-tern-decision-id", x->id);
    header(x, "x-tern-route", x->meta.route == ROUTE_NONE ? NULL : route_name(x->meta.route));
    header(x, "x-tern-reason", x->meta.reason);
    header(x, "x-tern-model", x->meta.model);
    if (!isnan(x->meta.confidence)) {
        snprintf(text, sizeof(text), "%.4f", x->meta.confidence);
        header(x, "x-tern-confidence", text);
    }
    if (cost_microusd >= 0) {
        cost_text(text, cost_microusd);
        header(x, "x-tern-cost-usd", text);
    }
    if (x->meta.degraded)
        header(x, "x-tern-degraded", "true");
}

/* ---- Answers ----------------------------------------------------------------------------------------------------- */

void exchange_reply(struct exchange *x, int status, const char *type, const void *data, size_t len)
{
    struct evhttp_request *req = x->req;
    struct evbuffer *body = evhttp_request_get_output_buffer(req);
    char length[24];

    headers_common(x, status, type);
    if (strcmp(x->head->method, "HEAD") == 0) {
        snprintf(length, sizeof(length), "%zu", len);
        header(x, "Content-Length", length);
    } else {
        evbuffer_add(body, data, len);
    }
    conn_answered(x->conn);
    exchange_free(x);
    evhttp_send_reply(req, status, status_phrase(status), NULL);
}

void exchange_reply_json(struct exchange *x, int status, json_t *body)
{
    static const char nothing[] = "{\"error\":{\"message\":\"out of memory\",\"type\":\"server_error\","
                                  "\"param\":null,\"code\":null}}";
    cleanup(freep) char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;

    json_decref(body);
    if (text)
        exchange_reply(x, status, "application/json", text, strlen(text));
    else
        exchange_reply(x, 503, "application/json", nothing, strlen(nothing));
}

void exchange_reply_error(struct exchange *x, const struct request_error *e)
{
    char seconds[16];

    if (e->retry_after_sec) {
        snprintf(seconds, sizeof(seconds), "%u", e->retry_after_sec);
        header(x, "Retry-After", seconds);
    }
    exchange_reply_json(x, e->http_status, x->dialect ? x->dialect->error(e) : openai_error(e));
}

static void stream_ping(evutil_socket_t fd, short what, void *arg)
{
    struct exchange *x = arg;

    /* Bytes that wait already keep the connection alive, if the client reads at all. */
    if (x->quiet && !evbuffer_get_length(conn_output(x->conn)))
        exchange_write(x, x->dialect->ping, strlen(x->dialect->ping));
    else
        x->quiet = true;
}

static void stream_start(struct exchange *x)
{
    struct timeval tv = {.tv_sec = PING_SEC};

    headers_common(x, 200, x->dialect->stream_type);
    headers_decision(x, x->meta.route == ROUTE_LOCAL ? 0 : -1);
    header(x, "X-Accel-Buffering", "no");
    /* HTTP/1.0 knows no chunks: only closing can end the answer, whatever the client would like. */
    if (x->head->http10)
        evhttp_remove_header(evhttp_request_get_input_headers(x->req), "Connection");
    x->started = true;
    evhttp_send_reply_start(x->req, 200, "OK");
    x->ping = x->dialect->ping ? event_new(x->daemon->base, -1, EV_PERSIST, stream_ping, x) : NULL;
    if (x->ping)
        event_add(x->ping, &tv);
}

void exchange_write(struct exchange *x, const void *data, size_t len)
{
    struct evbuffer *chunk = evhttp_request_get_output_buffer(x->req);

    evbuffer_add(chunk, data, len);
    evhttp_send_reply_chunk(x->req, chunk);
    x->quiet = false;
    if (x->request)
        conn_watch(x->conn);
}

/* `whole`: false after a failure, when the connection closes so that nobody takes the answer for complete. */
static void stream_end(struct exchange *x, bool whole)
{
    struct evhttp_request *req = x->req;

    if (!whole || conn_closes(x->conn))
        header(x, "Connection", "close");
    conn_answered(x->conn);
    exchange_free(x);
    evhttp_send_reply_end(req);
}

/* ---- What the router tells --------------------------------------------------------------------------------------- */

/* Keep what is known of the decision; the strings are lent for the call only. */
static void note(struct exchange *x, const struct request_meta *m)
{
    double confidence = isnan(m->confidence) ? x->meta.confidence : m->confidence;

    x->meta = *m;
    x->meta.id = x->id;
    x->meta.reason = arena_strdup(&x->arena, m->reason);
    x->meta.model = arena_strdup(&x->arena, m->model);
    x->meta.endpoint = arena_strdup(&x->arena, m->endpoint);
    x->meta.confidence = confidence;
    x->decided = true;
}

/* One line a request: never what was asked or answered. */
static void over(struct exchange *x, enum outcome outcome, int status, const struct request_result *res)
{
    static const char *const names[] = {"ok", "degraded", "refused", "error", "cancelled", "truncated"};

    x->counts->requests[x->meta.route][outcome]++;
    log_write(LOG_LEVEL_INFO, x->id, "%s %s (%s) %d, %u+%u tokens, %llu ms", route_name(x->meta.route), names[outcome],
              x->meta.reason ? x->meta.reason : "-", status, res ? res->tokens_in : 0, res ? res->tokens_out : 0,
              (unsigned long long)((clock_usec() - x->started_usec) / USEC_PER_MSEC));
}

/* Refused: the request was the reason, or there was no room for it. */
static enum outcome failed(const struct request_error *e)
{
    return e->http_status < 500 || e->http_status == 503 ? OUTCOME_REFUSED : OUTCOME_ERROR;
}

static void on_begin(void *arg, const struct request_meta *m)
{
    struct exchange *x = arg;

    note(x, m);
    if (!x->stream)
        return;
    stream_start(x);
    x->dialect->begin(x);
}

/* The last call has all its arguments. */
static int call_close(struct exchange *x)
{
    json_t *call = json_array_get(x->calls, json_array_size(x->calls) - 1);
    const char *s = x->arguments.len ? (const char *)x->arguments.data : "";
    int r = call ? json_object_set_new(json_object_get(call, "function"), "arguments",
                                       json_stringn(s, x->arguments.len)) : 0;

    buf_clear(&x->arguments);
    return r;
}

/* A piece of an answer that goes out whole. */
static int keep(struct exchange *x, const struct request_delta *d)
{
    switch (d->channel) {
    case ANSWER_TEXT:
        return buf_append(&x->text, d->text, d->text_len);
    case ANSWER_TOOL_NAME:
        if (!x->calls)
            x->calls = json_array();
        return call_close(x) | json_array_append_new(x->calls, json_pack("{s:s, s:s, s:{s:s%}}", "id", d->call_id,
                                                     "type", "function", "function", "name", d->text, d->text_len));
    case ANSWER_TOOL_ARGUMENTS:
        return buf_append(&x->arguments, d->text, d->text_len);
    }
    return -EINVAL;
}

static void on_delta(void *arg, const struct request_delta *d)
{
    struct exchange *x = arg;

    if (x->stream) {
        x->dialect->delta(x, d);
        return;
    }
    /* What does not fit shows at the end: the answer is then refused whole, not shortened. */
    if (keep(x, d) < 0)
        x->text.max = 0;
    if (d->logprobs && !x->logprobs)
        x->logprobs = json_array();
    if (d->logprobs)
        json_array_extend(x->logprobs, d->logprobs);
}

static void on_end(void *arg, const struct request_meta *m, const struct request_result *res)
{
    static const struct request_error too_large = {
        .http_status = 502, .type = "server_error", .code = "answer_too_large",
        .message = "the answer is too long; ask for a stream",
    };
    struct exchange *x = arg;

    note(x, m);
    x->request = NULL;
    if (!isnan(res->confidence))
        x->meta.confidence = res->confidence;
    over(x, m->degraded ? OUTCOME_DEGRADED : OUTCOME_OK, 200, res);
    if (x->stream) {
        if (x->lost)
            x->dialect->fail(x, &no_memory);
        else
            x->dialect->end(x, res);
        stream_end(x, !x->lost);
        return;
    }
    headers_decision(x, res->cost_microusd);
    if (call_close(x) == 0 && x->text.max)
        exchange_reply_json(x, 200, x->dialect->answer(x, res));
    else
        exchange_reply_error(x, &too_large);
}

static void on_fail(void *arg, const struct request_meta *m, const struct request_error *e)
{
    struct exchange *x = arg;

    note(x, m);
    x->request = NULL;
    over(x, x->started ? OUTCOME_TRUNCATED : failed(e), e->http_status, NULL);
    if (x->started) {
        x->dialect->fail(x, e);
        stream_end(x, false);
        return;
    }
    headers_decision(x, -1);
    exchange_reply_error(x, e);
}

static const struct request_sink sink = {.begin = on_begin, .delta = on_delta, .end = on_end, .fail = on_fail};

void exchange_gone(struct exchange *x)
{
    struct evhttp_request *req = x->req;

    if (x->request) {
        request_cancel(x->request);
        over(x, OUTCOME_CANCELLED, 499, NULL);
    }
    if (x->cancel)
        x->cancel(x);
    exchange_free(x);
    /* evhttp let go of the request unless it is still in the connection's list, which is about to be freed. */
    if (!evhttp_request_get_connection(req))
        evhttp_request_free(req);
}

/* ---- From body to request ---------------------------------------------------------------------------------------- */

static int invalid(struct request_error *e, const char *param, const char *message)
{
    *e = (struct request_error){
        .http_status = 400, .type = "invalid_request_error", .param = param, .message = message};
    return -EINVAL;
}

static int read_deadline(const struct exchange *x, uint64_t *ret_usec, struct request_error *e)
{
    const char *s = x->head->deadline_ms;

    if (!s)
        return 0;
    if (!*s || strspn(s, "0123456789") != strlen(s) || strlen(s) > 8 || atol(s) < 1 || atol(s) > DEADLINE_MAX_MSEC)
        return invalid(e, "x-tern-deadline-ms", "x-tern-deadline-ms: expected milliseconds from 1 to 86400000");
    *ret_usec = (uint64_t)atol(s) * USEC_PER_MSEC;
    return 0;
}

/* The header, or what the key says. */
static int read_priority(const struct exchange *x, bool *ret_batch, struct request_error *e)
{
    const char *s = x->head->priority;

    /* The header can only step back. */
    *ret_batch = (s && strcmp(s, "batch") == 0) || (x->key && x->key->batch);
    return !s || strcmp(s, "batch") == 0 || strcmp(s, "interactive") == 0 ? 0 :
           invalid(e, "x-tern-priority", "x-tern-priority: expected interactive or batch");
}

int exchange_body(struct exchange *x, json_t **ret, struct request_error *e)
{
    struct evbuffer *in = evhttp_request_get_input_buffer(x->req);
    size_t len = evbuffer_get_length(in);
    const void *data = evbuffer_pullup(in, -1);
    cleanup(json_decrefp) json_t *body = NULL;
    struct err err;

    if (!len)
        return invalid(e, NULL, "the body is empty; expected a JSON object");
    if (!data)
        return -ENOMEM;
    body = json_parse(data, len, &err);
    evbuffer_drain(in, len);
    if (!body)
        return invalid(e, NULL, arena_printf(&x->arena, "the body is not valid JSON: %s", err.msg));
    if (!json_is_object(body))
        return invalid(e, NULL, "the body is not a JSON object");
    *ret = TAKE(body);
    return 0;
}

static int read_chat(struct exchange *x, struct chat_request **ret, struct request_error *e)
{
    cleanup(json_decrefp) json_t *body = NULL;
    int r = exchange_body(x, &body, e);

    return r < 0 ? r : x->dialect->parse(x, body, ret, e);
}

void exchange_reply_fault(struct exchange *x, int r, const struct request_error *e)
{
    exchange_reply_error(x, r == -ENOMEM ? &no_memory : e);
}

void exchange_chat(struct exchange *x)
{
    struct request_options o = {
        .dialect = x->dialect->name, .peer = x->peer, .label = x->head->label, .mode = x->head->mode,
        .key = x->key ? x->key->name : NULL, .scope = x->key ? &x->key->scope : NULL, .key_label = x->key && x->key->has_label ? &x->key->label : NULL,
    };
    cleanup(chat_request_freep) struct chat_request *chat = NULL;
    struct request_error e;
    int r;

    r = read_deadline(x, &o.deadline_usec, &e);
    if (r == 0)
        r = read_priority(x, &o.batch, &e);
    if (r == 0)
        r = read_chat(x, &chat, &e);
    if (r < 0)
        exchange_reply_fault(x, r, &e);
    if (r != 0)
        return;
    x->stream = chat->stream;
    x->include_usage = chat->include_usage;
    r = request_start(&x->request, x->daemon->router, chat, &o, &sink, x, x->id, &e);
    if (r == 0) {
        chat = NULL;                       /* taken */
        return;
    }
    x->request = NULL;
    if (r > 0)
        over(x, failed(&e), e.http_status, NULL);
    exchange_reply_error(x, r < 0 ? &no_memory : &e);
}
