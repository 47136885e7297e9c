/* The egress worker. One loop, three kinds of events: frames from the front, sockets and the timer that curl's multi
 * handle asks for, and one timer a call for its own deadlines. A call is one order under way; it ends with exactly one
 * EGRESS_END. Curl forbids removing a transfer from inside its callbacks, so these only note what is wrong (`error`)
 * and make curl give up; calls_reap() then ends the call.
 *
 * Memory is bounded by holding transfers back: while the front leaves more than OUTPUT_HIGH bytes unread (`congested`),
 * or has asked for a pause, the next bytes of a call make curl pause it (`held`), so that upstream stops sending. */
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/prctl.h>
#include <sys/queue.h>
#include <curl/curl.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "router/order.h"

#define MAX_CALLS 1024
#define MAX_IDLE_CONNECTIONS 64
#define OUTPUT_HIGH (1u << 20)
#define OUTPUT_LOW (256u << 10)
#define MAX_HEADER_BYTES (64u << 10)
#define MAX_ERROR_BODY (16u << 10)
#define MAX_RETRY_AFTER_SEC 86400
#define ERROR_BODY_MSEC 2000     /* the status says enough; its body may add a code, if it comes soon */
#define LINGER_MSEC 1000         /* after [DONE], for the response to end, so that its connection can be used again */

struct egress {
    struct event_base *base;
    struct bufferevent *front;
    struct frame_reader in;
    CURLM *multi;
    struct event *timer;                      /* curl's */
    LIST_HEAD(, call) calls;
    unsigned n_calls;
    bool congested;
    int exit_status;
    struct egress_config config;
    egress_load_fn *load;
    void *load_arg;
};

struct call {
    LIST_ENTRY(call) link;
    struct egress *egress;
    uint64_t id;
    CURL *easy;
    const struct upstream *upstream;
    struct upstream_stream stream;
    struct curl_slist *headers;               /* holds the key */
    struct event *timer;
    uint64_t deadline_usec, due_usec;         /* of everything; of the next event */
    unsigned first_msec, idle_msec;
    bool loopback_only;
    uint8_t *body;
    size_t body_len, body_pos;                /* pos: handed to the connection; at most this has left */
    size_t header_bytes;
    int status;
    enum { ANSWER_NONE, ANSWER_EVENTS, ANSWER_OBJECT, ANSWER_ERROR } answer;
    struct sse sse;                           /* of ANSWER_EVENTS */
    struct buf whole;                         /* of the others */
    unsigned n_events;
    bool finished;                            /* a finish_reason was seen */
    bool paused, held, ended;                 /* by the front; in curl; EGRESS_END was sent */
    const char *error;                        /* class, noted in a callback */
    char upstream_code[65];
};

/* ---- To the front ---- */

static void egress_exit(struct egress *e, int status)
{
    e->exit_status = status;
    event_base_loopbreak(e->base);
}

/* A front that misses a frame would wait for ever, so without memory for one there is no going on. */
static void front_send(struct egress *e, uint32_t type, uint64_t id, const void *data, size_t len)
{
    struct evbuffer *out = bufferevent_get_output(e->front);
    uint8_t header[FRAME_HEADER_BYTES];

    frame_header(header, type, id, (uint32_t)len);
    if (evbuffer_add(out, header, sizeof(header)) < 0 || (len > 0 && evbuffer_add(out, data, len) < 0)) {
        log_error("egress: no memory for a message to the front");
        egress_exit(e, 1);
    }
    if (evbuffer_get_length(out) > OUTPUT_HIGH)
        e->congested = true;
}

/* Takes j, which may be NULL: no memory. */
static void front_send_json(struct egress *e, uint32_t type, uint64_t id, json_t *j)
{
    cleanup(freep) char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;

    json_decref(j);
    if (text)
        front_send(e, type, id, text, strlen(text));
    else
        egress_exit(e, 1);
}

static void end_send(struct egress *e, uint64_t id, const char *result, const char *error, int status,
                     int64_t retry_after_sec, size_t bytes_sent, const char *upstream_code)
{
    front_send_json(e, EGRESS_END, id, json_pack("{s:s, s:s?, s:i, s:o, s:I, s:s?}", "result", result, "error", error,
        "status", status, "retry_after_sec", retry_after_sec > 0 ? json_integer(retry_after_sec) : json_null(),
        "bytes_sent", (json_int_t)bytes_sent, "upstream_code", upstream_code));
}

static void ready_send(struct egress *e)
{
    json_t *names = json_array();

    for (size_t i = 0; i < e->config.n_endpoints; i++)
        json_array_append_new(names, json_string(e->config.endpoints[i].policy.name));
    front_send_json(e, EGRESS_READY, 0, json_pack("{s:o}", "endpoints", names));
}

/* ---- A call's end ---- */

static void call_end(struct call *c, const char *result, const char *error)
{
    curl_off_t after = 0;

    curl_easy_getinfo(c->easy, CURLINFO_RETRY_AFTER, &after);
    end_send(c->egress, c->id, result, error, c->status, MIN(after, MAX_RETRY_AFTER_SEC), c->body_pos,
             *c->upstream_code ? c->upstream_code : NULL);
    c->ended = true;
}

/* Forget a call; what it has open upstream is closed. Never from inside a callback of curl. */
static void call_drop(struct call *c)
{
    if (!c)
        return;
    if (c->easy) {
        curl_multi_remove_handle(c->egress->multi, c->easy);
        curl_easy_cleanup(c->easy);
    }
    for (struct curl_slist *h = c->headers; h; h = h->next)
        explicit_bzero(h->data, strlen(h->data));
    curl_slist_free_all(c->headers);
    if (c->timer)
        event_free(c->timer);
    sse_done(&c->sse);
    upstream_stream_done(&c->stream);
    buf_done(&c->whole);
    free(c->body);
    LIST_REMOVE(c, link);
    c->egress->n_calls--;
    free(c);
}

static void call_dropp(struct call **c) { call_drop(*c); }

static bool is_token(const char *s)
{
    size_t n = s ? strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") : 0;

    return n > 0 && n <= 64 && !s[n];
}

/* Keep error.code or error.type where it is a plain word. Messages are not kept: they may quote the prompt. */
static void call_note_code(struct call *c, const json_t *answer)
{
    const json_t *error = json_object_get(answer, "error");
    const char *code = json_string_value(json_object_get(error, "code"));

    if (!is_token(code))
        code = json_string_value(json_object_get(error, "type"));
    if (is_token(code))
        snprintf(c->upstream_code, sizeof(c->upstream_code), "%s", code);
}

static void call_end_status(struct call *c)
{
    cleanup(json_decrefp) json_t *answer = json_parse(c->whole.data, c->whole.len, NULL);
    const char *result = "failed";

    call_note_code(c, answer);
    switch (c->status) {
    case 401: case 403: case 404:
        result = "denied";
        break;
    case 400: case 413: case 422:
        result = "rejected";
        break;
    }
    call_end(c, result, c->status < 400 ? EGRESS_ERR_PROTOCOL : EGRESS_ERR_HTTP);
}

/* A whole chat completion from an upstream that does not stream becomes one event. */
static void call_end_object(struct call *c)
{
    cleanup(json_decrefp) json_t *answer = json_parse(c->whole.data, c->whole.len, NULL), *ours = NULL;

    call_note_code(c, answer);
    if (!c->upstream->answer)
        ours = json_incref(answer);
    else if (c->upstream->answer(&ours, answer) < 0)
        ours = NULL;
    if (!json_is_object(json_object_get(json_array_get(json_object_get(ours, "choices"), 0), "message"))) {
        call_end(c, "failed", EGRESS_ERR_PROTOCOL);
        return;
    }
    front_send_json(c->egress, EGRESS_EVENT, c->id, TAKE(ours));
    call_end(c, "ok", NULL);
}

/* Was anything of the request written? Curl sets this time when connection and TLS are up. */
static bool call_connected(const struct call *c)
{
    curl_off_t usec = 0;

    curl_easy_getinfo(c->easy, CURLINFO_PRETRANSFER_TIME_T, &usec);
    return usec > 0 || c->body_pos > 0 || c->status;
}

static const char *curl_error_class(const struct call *c, CURLcode code)
{
    switch (code) {
    case CURLE_SSL_CONNECT_ERROR: case CURLE_PEER_FAILED_VERIFICATION: case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CERTPROBLEM: case CURLE_SSL_CIPHER: case CURLE_SSL_ISSUER_ERROR: case CURLE_SSL_INVALIDCERTSTATUS:
        return EGRESS_ERR_TLS;
    case CURLE_WEIRD_SERVER_REPLY: case CURLE_UNSUPPORTED_PROTOCOL: case CURLE_BAD_CONTENT_ENCODING:
        return EGRESS_ERR_PROTOCOL;
    case CURLE_OPERATION_TIMEDOUT:
        return call_connected(c) ? EGRESS_ERR_TIMEOUT : EGRESS_ERR_CONNECT;
    default:
        return call_connected(c) ? EGRESS_ERR_CUT : EGRESS_ERR_CONNECT;
    }
}

/* Curl is through with the call. */
static void call_finish(struct call *c, CURLcode code)
{
    if (c->ended)
        return;
    if (c->error)
        call_end(c, "failed", c->error);
    else if (c->answer == ANSWER_ERROR)
        call_end_status(c);
    else if (code != CURLE_OK)
        call_end(c, "failed", curl_error_class(c, code));
    else if (c->answer == ANSWER_OBJECT)
        call_end_object(c);
    else if (c->finished)
        call_end(c, "ok", NULL);
    else
        call_end(c, "failed", EGRESS_ERR_CUT);
}

/* ---- A call's time ---- */

static void call_arm(struct call *c)
{
    uint64_t now = clock_usec(), due = c->deadline_usec;
    struct timeval tv;

    /* An upstream that we hold back is not the one that is slow. */
    if (!c->paused && !c->held)
        due = MIN(due, c->due_usec);
    due -= MIN(due, now);
    tv = (struct timeval) {.tv_sec = (time_t)(due / USEC_PER_SEC), .tv_usec = (suseconds_t)(due % USEC_PER_SEC)};
    event_add(c->timer, &tv);
}

static void call_expect(struct call *c, unsigned msec)
{
    c->due_usec = clock_usec() + msec * USEC_PER_MSEC;
    call_arm(c);
}

static void on_call_timer(evutil_socket_t fd, short what, void *arg)
{
    struct call *c = arg;

    call_finish(c, CURLE_OPERATION_TIMEDOUT);
    call_drop(c);
}

/* ---- What comes from upstream: curl's callbacks ---- */

/* The answer is whole, whatever the response still brings. */
static void call_over(struct call *c)
{
    front_send(c->egress, EGRESS_EVENT, c->id, "[DONE]", 6);
    call_end(c, "ok", NULL);
    call_expect(c, LINGER_MSEC);
}

/* Pass a chunk on; `data` is its text where it came as one. */
static void chunk_send(struct call *c, json_t *chunk, const uint8_t *data, size_t len)
{
    const json_t *choice;
    size_t i;

    json_array_foreach(json_object_get(chunk, "choices"), i, choice)
        if (json_string_length(json_object_get(choice, "finish_reason")) > 0)
            c->finished = true;
    if (data)
        front_send(c->egress, EGRESS_EVENT, c->id, data, len);
    else
        front_send_json(c->egress, EGRESS_EVENT, c->id, json_incref(chunk));
}

static int on_event(void *arg, const uint8_t *data, size_t len)
{
    struct call *c = arg;
    cleanup(json_decrefp) json_t *event = NULL, *chunk = NULL;
    const json_t *error;
    int r = 0;

    if (c->ended)
        return 0;
    if (!c->upstream->event && len == 6 && memcmp(data, "[DONE]", 6) == 0) {
        call_over(c);
        return 0;
    }

    event = json_parse(data, len, NULL);
    if (!json_is_object(event)) {
        c->error = EGRESS_ERR_PROTOCOL;
        return -EPROTO;
    }
    error = json_object_get(event, "error");
    if (error && !json_is_null(error)) {
        call_note_code(c, event);
        c->error = EGRESS_ERR_CUT;
        return -EPROTO;
    }
    if (!c->upstream->event)
        chunk_send(c, event, data, len);
    else
        r = c->upstream->event(&chunk, &c->stream, event);
    if (r < 0) {
        c->error = EGRESS_ERR_PROTOCOL;
        return r;
    }
    if (chunk)
        chunk_send(c, chunk, NULL, 0);
    c->n_events++;
    if (c->stream.over)
        call_over(c);
    else
        call_expect(c, c->idle_msec);
    return 0;
}

static size_t on_body(char *data, size_t size, size_t n, void *arg)
{
    struct call *c = arg;
    size_t len = size * n;
    int r;

    if (c->ended)
        return len;
    if (c->paused || c->egress->congested) {
        c->held = true;
        call_arm(c);
        return CURL_WRITEFUNC_PAUSE;
    }
    r = c->answer == ANSWER_EVENTS ? sse_push(&c->sse, data, len) : buf_append(&c->whole, data, len);
    if (r == 0)
        return len;
    /* Of an error's body the beginning is enough, and an event has said itself what is wrong with it. */
    if (!c->error && c->answer != ANSWER_ERROR)
        c->error = EGRESS_ERR_PROTOCOL;
    return CURL_WRITEFUNC_ERROR;
}

/* The answer's head is complete: what is to be made of its body? */
static void call_head(struct call *c, long status)
{
    uint32_t shown = (uint32_t)status;
    const char *type = NULL;

    c->status = (int)status;
    front_send(c->egress, EGRESS_HEAD, c->id, &shown, sizeof(shown));
    curl_easy_getinfo(c->easy, CURLINFO_CONTENT_TYPE, &type);
    type = type ? type : "";

    if (status != 200) {
        c->answer = ANSWER_ERROR;
        buf_init(&c->whole, MAX_ERROR_BODY);
        call_expect(c, ERROR_BODY_MSEC);
    } else if (strncasecmp(type, "text/event-stream", 17) == 0) {
        c->answer = ANSWER_EVENTS;
        sse_init(&c->sse, EGRESS_MAX_EVENT, on_event, c);
    } else if (strncasecmp(type, "application/json", 16) == 0) {
        c->answer = ANSWER_OBJECT;
        buf_init(&c->whole, EGRESS_MAX_EVENT);
    } else {
        c->error = EGRESS_ERR_PROTOCOL;
    }
}

static size_t on_header(char *data, size_t size, size_t n, void *arg)
{
    struct call *c = arg;
    long status = 0;

    c->header_bytes += size * n;
    if (c->header_bytes > MAX_HEADER_BYTES)
        c->error = EGRESS_ERR_PROTOCOL;
    if (!c->status && (data[0] == '\r' || data[0] == '\n') &&
        curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status) == CURLE_OK && status >= 200)
        call_head(c, status);
    return c->error && !c->ended ? 0 : size * n;
}

/* The body goes out through a reader that cannot go back: curl may try again on a new connection only as long as
 * nothing of it was sent, so no body ever leaves twice. */
static size_t on_read(char *out, size_t size, size_t n, void *arg)
{
    struct call *c = arg;
    size_t len = MIN(size * n, c->body_len - c->body_pos);

    memcpy(out, c->body + c->body_pos, len);
    c->body_pos += len;
    return len;
}

static bool is_loopback(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24 == 127;
    return a->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)a)->sin6_addr);
}

/* Plain http stays on this machine, whatever a name resolves to. */
static curl_socket_t on_open(void *arg, curlsocktype purpose, struct curl_sockaddr *a)
{
    const struct call *c = arg;

    if (c->loopback_only && !is_loopback(&a->addr))
        return CURL_SOCKET_BAD;
    return socket(a->family, a->socktype | SOCK_CLOEXEC, a->protocol);
}

/* ---- A call's beginning ---- */

static bool header_add(struct call *c, const char *line)
{
    struct curl_slist *l = curl_slist_append(c->headers, line);

    if (l)
        c->headers = l;
    return l;
}

static bool call_set_headers(struct call *c, const char *request_id, const char *authorization)
{
    char id[64];

    /* The endpoint's own log can then be held against the audit record. */
    snprintf(id, sizeof(id), "X-Client-Request-Id: %s", request_id);
    return header_add(c, "Content-Type: application/json") && header_add(c, "Accept: text/event-stream") &&
           header_add(c, "Expect:") && (!*request_id || header_add(c, id)) &&
           (!c->upstream->version_header || header_add(c, c->upstream->version_header)) &&
           (!*authorization || header_add(c, authorization));
}

#define SET(option, value) (curl_easy_setopt(c->easy, CURLOPT_##option, value) == CURLE_OK)

static bool call_set_options(struct call *c, const struct cloud_endpoint *endpoint)
{
    char url[sizeof(endpoint->url) + 32];
    int base = (int)strlen(endpoint->url);

    while (base > 0 && endpoint->url[base - 1] == '/')
        base--;
    snprintf(url, sizeof(url), "%.*s%s", base, endpoint->url, c->upstream->path);

    return SET(URL, url) && SET(PROTOCOLS_STR, c->loopback_only ? "http" : "https") && SET(FOLLOWLOCATION, 0L) &&
           SET(PROXY, "") && SET(NOPROXY, "*") && SET(NETRC, (long)CURL_NETRC_IGNORED) &&
           SET(HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1) &&   /* where closing the connection cancels just one call */
           SET(SSL_VERIFYPEER, 1L) && SET(SSL_VERIFYHOST, 2L) && SET(SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2) &&
           (!*endpoint->ca_file || (SET(CAINFO, endpoint->ca_file) && SET(CAPATH, NULL))) &&
           SET(CONNECTTIMEOUT_MS, (long)endpoint->connect_timeout_msec) && SET(NOSIGNAL, 1L) &&
           SET(QUICK_EXIT, 1L) &&   /* a cancel does not wait for a name lookup's thread */
           SET(POST, 1L) && SET(POSTFIELDSIZE_LARGE, (curl_off_t)c->body_len) && SET(USERAGENT, "tern/" TERN_VERSION) &&
           SET(HTTPHEADER, c->headers) &&
           SET(READFUNCTION, on_read) && SET(READDATA, c) && SET(WRITEFUNCTION, on_body) && SET(WRITEDATA, c) &&
           SET(HEADERFUNCTION, on_header) && SET(HEADERDATA, c) && SET(OPENSOCKETFUNCTION, on_open) &&
           SET(OPENSOCKETDATA, c) && SET(PRIVATE, c);
}

static int call_start(struct egress *e, uint64_t id, const struct order *o, const char *authorization)
{
    cleanup(call_dropp) struct call *c = calloc(1, sizeof(*c));

    if (!c)
        return -ENOMEM;
    c->egress = e;
    c->id = id;
    c->upstream = upstream_of(o->endpoint->dialect);
    LIST_INSERT_HEAD(&e->calls, c, link);
    e->n_calls++;

    c->first_msec = o->endpoint->first_byte_timeout_msec;
    c->idle_msec = o->endpoint->idle_timeout_msec;
    c->loopback_only = strncasecmp(o->endpoint->url, "http://", 7) == 0;
    c->body_len = o->body_len;
    c->body = malloc(o->body_len + 1);
    c->timer = evtimer_new(e->base, on_call_timer, c);
    c->easy = curl_easy_init();
    if (!c->body || !c->timer || !c->easy)
        return -ENOMEM;
    memcpy(c->body, o->body, o->body_len);
    if (!call_set_headers(c, o->request_id, authorization) || !call_set_options(c, o->endpoint) ||
        curl_multi_add_handle(e->multi, c->easy) != CURLM_OK)
        return -ENOMEM;

    c->deadline_usec = clock_usec() + (uint64_t)o->deadline_msec * USEC_PER_MSEC;
    call_expect(c, c->first_msec);
    c = NULL;
    return 0;
}

static void order_take(struct egress *e, const struct frame *f)
{
    char authorization[ORDER_AUTHORIZATION_BYTES] = "";
    struct order o = {0};
    struct err err = {0};

    if (e->n_calls >= MAX_CALLS) {
        log_warning("egress: call %llu refused: %u are under way", (unsigned long long)f->id, e->n_calls);
        end_send(e, f->id, "failed", EGRESS_ERR_REFUSED, 0, 0, 0, NULL);
    } else if (order_check(&o, &e->config, f->data, f->len, &err) < 0) {
        log_warning("egress: call %llu refused: %s", (unsigned long long)f->id, err.msg);
        end_send(e, f->id, "failed", EGRESS_ERR_REFUSED, 0, 0, 0, NULL);
    } else if (order_authorization(authorization, o.endpoint, &err) < 0) {
        log_error("egress: endpoint %s: %s", o.endpoint->policy.name, err.msg);
        end_send(e, f->id, "failed", EGRESS_ERR_KEY, 0, 0, 0, NULL);
    } else if (call_start(e, f->id, &o, authorization) < 0) {
        log_error("egress: endpoint %s: no memory for a call", o.endpoint->policy.name);
        end_send(e, f->id, "failed", EGRESS_ERR_CONNECT, 0, 0, 0, NULL);
    }
    explicit_bzero(authorization, sizeof(authorization));
}

/* ---- Curl on the loop ---- */

static void calls_reap(struct egress *e)
{
    CURLMsg *m;
    int left;

    while ((m = curl_multi_info_read(e->multi, &left))) {
        struct call *c = NULL;

        if (m->msg != CURLMSG_DONE)
            continue;
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &c);
        call_finish(c, m->data.result);
        call_drop(c);
    }
}

static void multi_drive(struct egress *e, curl_socket_t s, int what)
{
    int running;

    if (curl_multi_socket_action(e->multi, s, what, &running) != CURLM_OK) {
        log_error("egress: curl's multi handle failed");
        egress_exit(e, 1);
    }
    calls_reap(e);
}

static void on_socket_ready(evutil_socket_t fd, short what, void *arg)
{
    multi_drive(arg, fd, (what & EV_READ ? CURL_CSELECT_IN : 0) | (what & EV_WRITE ? CURL_CSELECT_OUT : 0));
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    multi_drive(arg, CURL_SOCKET_TIMEOUT, 0);
}

/* Curl wants to know of other things about a socket; `known` is the event we gave it for that socket, if any. */
static int on_curl_socket(CURL *easy, curl_socket_t s, int what, void *arg, void *known)
{
    struct egress *e = arg;
    struct event *ev = known;
    short events = (what & CURL_POLL_IN ? EV_READ : 0) | (what & CURL_POLL_OUT ? EV_WRITE : 0);

    if (ev)
        event_free(ev);
    ev = what == CURL_POLL_REMOVE ? NULL : event_new(e->base, s, events | EV_PERSIST, on_socket_ready, e);
    curl_multi_assign(e->multi, s, ev);
    if (what != CURL_POLL_REMOVE && (!ev || event_add(ev, NULL) < 0))
        egress_exit(e, 1);
    return 0;
}

static int on_curl_timer(CURLM *multi, long msec, void *arg)
{
    struct egress *e = arg;
    struct timeval tv = {.tv_sec = msec / 1000, .tv_usec = msec % 1000 * 1000};

    if (msec < 0)
        event_del(e->timer);
    else
        event_add(e->timer, &tv);
    return 0;
}

/* ---- Frames from the front ---- */

static struct call *call_find(struct egress *e, uint64_t id)
{
    struct call *c;

    LIST_FOREACH(c, &e->calls, link)
        if (c->id == id && !c->ended)
            return c;
    return NULL;
}

/* Let a held call go on, unless there is another reason to hold it. Curl delivers what it kept from inside this. */
static void call_release(struct call *c)
{
    if (!c->held || c->paused || c->egress->congested)
        return;
    c->held = false;
    call_expect(c, c->n_events ? c->idle_msec : c->first_msec);
    if (curl_easy_pause(c->easy, CURLPAUSE_CONT) != CURLE_OK) {
        call_finish(c, CURLE_WRITE_ERROR);
        call_drop(c);
    }
}

static void call_cancel(struct call *c)
{
    call_end(c, "cancelled", NULL);
    call_drop(c);
}

static void call_resume(struct egress *e, struct call *c)
{
    c->paused = false;
    if (c->held)
        call_release(c);
    else
        call_expect(c, c->n_events ? c->idle_msec : c->first_msec);
    multi_drive(e, CURL_SOCKET_TIMEOUT, 0);
}

static void config_reload(struct egress *e)
{
    cleanup(freep) struct egress_config *fresh = calloc(1, sizeof(*fresh));
    struct err err = {0};

    if (!fresh || e->load(e->load_arg, fresh, &err) < 0) {
        log_error("egress: the old configuration stays: %s", err.msg);
        front_send(e, EGRESS_FAILED, 0, err.msg, strlen(err.msg));
        return;
    }
    e->config = *fresh;
    ready_send(e);
}

/* 0, or -EPROTO for a front that makes no sense. */
static int frame_take(struct egress *e, const struct frame *f)
{
    struct call *c = call_find(e, f->id);

    switch (f->type) {
    case EGRESS_START:
        if (c)
            return -EPROTO;
        order_take(e, f);
        return 0;
    case EGRESS_CANCEL:
        if (c)
            call_cancel(c);
        return 0;
    case EGRESS_PAUSE:
        if (c) {
            c->paused = true;
            call_arm(c);
        }
        return 0;
    case EGRESS_RESUME:
        if (c && c->paused)
            call_resume(e, c);
        return 0;
    case EGRESS_RELOAD:
        config_reload(e);
        return 0;
    case EGRESS_PING:
        front_send(e, EGRESS_PONG, f->id, NULL, 0);
        return 0;
    default:
        return -EPROTO;
    }
}

static void on_front_read(struct bufferevent *front, void *arg)
{
    struct egress *e = arg;
    uint8_t chunk[16384];
    struct frame f;
    size_t n;
    int r = 0;

    while (r == 0 && (n = bufferevent_read(front, chunk, sizeof(chunk))) > 0) {
        r = frame_reader_push(&e->in, chunk, n);
        while (r == 0 && (r = frame_reader_next(&e->in, &f)) > 0)
            r = frame_take(e, &f);
    }
    if (r < 0) {
        log_error("egress: the front sent what cannot be understood: %s", strerror(-r));
        egress_exit(e, 1);
    }
}

static void on_front_written(struct bufferevent *front, void *arg)
{
    struct egress *e = arg;
    struct call *c, *next;

    if (!e->congested || evbuffer_get_length(bufferevent_get_output(front)) > OUTPUT_LOW)
        return;
    e->congested = false;
    for (c = LIST_FIRST(&e->calls); c; c = next) {
        next = LIST_NEXT(c, link);
        call_release(c);
    }
    multi_drive(e, CURL_SOCKET_TIMEOUT, 0);
}

static void on_front_event(struct bufferevent *front, short what, void *arg)
{
    egress_exit(arg, 0);
}

/* ---- The worker ---- */

static int egress_init(struct egress *e, int fd)
{
    frame_reader_init(&e->in);
    LIST_INIT(&e->calls);
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != 0)
        return -ENOMEM;
    e->base = event_base_new();
    e->multi = curl_multi_init();
    if (!e->base || !e->multi || evutil_make_socket_nonblocking(fd) < 0)
        return -ENOMEM;
    e->timer = evtimer_new(e->base, on_timer, e);
    e->front = bufferevent_socket_new(e->base, fd, 0);
    if (!e->timer || !e->front)
        return -ENOMEM;

    curl_multi_setopt(e->multi, CURLMOPT_SOCKETFUNCTION, on_curl_socket);
    curl_multi_setopt(e->multi, CURLMOPT_SOCKETDATA, e);
    curl_multi_setopt(e->multi, CURLMOPT_TIMERFUNCTION, on_curl_timer);
    curl_multi_setopt(e->multi, CURLMOPT_TIMERDATA, e);
    /* Curl's own number goes by the calls of the moment, and closes connections whenever these become fewer. */
    curl_multi_setopt(e->multi, CURLMOPT_MAXCONNECTS, (long)MAX_IDLE_CONNECTIONS);
    bufferevent_setcb(e->front, on_front_read, on_front_written, on_front_event, e);
    bufferevent_setwatermark(e->front, EV_WRITE, OUTPUT_LOW, 0);
    return bufferevent_enable(e->front, EV_READ | EV_WRITE) < 0 ? -ENOMEM : 0;
}

static void egress_done(struct egress *e)
{
    while (!LIST_EMPTY(&e->calls))
        call_drop(LIST_FIRST(&e->calls));
    if (e->multi)
        curl_multi_cleanup(e->multi);
    if (e->timer)
        event_free(e->timer);
    if (e->front)
        bufferevent_free(e->front);
    if (e->base)
        event_base_free(e->base);
    frame_reader_done(&e->in);
    curl_global_cleanup();
}

int egress_worker_main(int fd, egress_load_fn *load, void *arg)
{
    struct egress e = {.load = load, .load_arg = arg};
    struct err err = {0};

#ifndef __SANITIZE_ADDRESS__   /* whose search for leaks needs to look */
    prctl(PR_SET_DUMPABLE, 0);
#endif
    unsetenv("SSLKEYLOGFILE");   /* curl would write the TLS secrets there */
    signal(SIGPIPE, SIG_IGN);

    if (load(arg, &e.config, &err) < 0) {
        log_error("egress: %s", err.msg);
        frame_send(fd, EGRESS_FAILED, 0, err.msg, strlen(err.msg));
        return 1;
    }
    if (egress_init(&e, fd) < 0) {
        log_error("egress: no memory to start");
        e.exit_status = 1;
    } else {
        ready_send(&e);
        event_base_dispatch(e.base);
    }
    egress_done(&e);
    return e.exit_status;
}
