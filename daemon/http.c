/* The server: listeners, connections, and everything that is decided from a request's head.
 *
 * libevent's evhttp (2.1.12) reads bodies and writes answers; this file stands between it and the wire. evhttp answers
 * what it dislikes in HTML, accepts what it should not, has no deadlines of its own that fit, and ends the process
 * when bytes arrive while an answer is being made. So each connection's input buffer has a callback that runs before
 * evhttp's, and the bufferevent's low read mark, at the maximum, keeps evhttp from being called at all until a whole
 * head has passed head.c and the checks below.
 *
 *     HEAD     bytes gather; a fault is answered by conn_refuse() and evhttp never learns of the request
 *     BODY     evhttp reads; framing and length are followed as the bytes pass
 *     BUSY     an exchange makes its answer; reading stays on, so that a client that leaves is seen at once; bytes that
 *              come early are dropped and the connection closes after the answer (nobody pipelines)
 *     CLOSING  refused: the error goes out, then what still comes is read and dropped for a moment, so that no reset
 *              overtakes it
 *
 * One timer a connection holds the deadline of its state: head, body, a stalled write, lingering. */
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/bufferevent_ssl.h>
#include <event2/listener.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include "base/clock.h"
#include "base/log.h"
#include "daemon/http.h"

#define IDLE_MSEC 75000            /* a kept-alive connection between requests */
#define LINGER_MSEC 2000
#define ACCEPT_AGAIN_MSEC 100      /* after running out of file descriptors */
#define QUEUED_HIGH (64u << 10)    /* bytes waiting for a slow client: pause its source above, resume below */
#define QUEUED_LOW (16u << 10)
#define OVER_LIMIT 64              /* connections above the limit that are still told so */

enum conn_state { CONN_HEAD, CONN_BODY, CONN_BUSY, CONN_CLOSING };

struct conn {
    struct http *http;
    struct bufferevent *bev;                   /* a reference is held; evhttp frees its own */
    struct evhttp_connection *evcon;           /* known once conn_adopt() ran */
    struct evbuffer_cb_entry *in_cb, *out_cb;
    SSL *ssl;                                  /* bev's, or NULL */
    struct event *timer, *soon;                /* soon: run conn_soon() from the loop */
    enum conn_state state;
    bool is_unix, close_after, paused, served; /* served: at least one answer went out */
    char peer[PEER_BYTES];

    /* The request being read or answered. */
    size_t scanned;                            /* bytes of its head looked at */
    char *text;                                /* its head, cut up; head points into it */
    struct head head;
    struct body body;
    struct config *config;                     /* the one it began with */
    const struct path *path;
    const struct api_key *key;
    const char *allow_origin;
    struct exchange *exchange;

    LIST_ENTRY(conn) link;
};

struct http {
    struct daemon *daemon;
    struct config *config;
    struct evhttp *plain, *tls;
    struct evconnlistener *listeners[LISTEN_MAX];
    size_t n_listeners;
    struct event *accept_again;
    LIST_HEAD(conn_list, conn) conns;
    struct conn *last;                         /* that passed a head to evhttp */
    unsigned n_busy;
    bool stopping;
    struct http_counts counts;
};

/* ---- Paths ------------------------------------------------------------------------------------------------------- */

static void preflight_run(struct exchange *x)
{
    struct evkeyvalq *headers = evhttp_request_get_output_headers(x->req);

    evhttp_add_header(headers, "Access-Control-Allow-Methods", "GET, POST");
    evhttp_add_header(headers, "Access-Control-Allow-Headers",
                      "authorization, content-type, x-api-key, x-tern-label, x-tern-mode, x-tern-priority, x-tern-deadline-ms");
    evhttp_add_header(headers, "Access-Control-Max-Age", "600");
    exchange_reply(x, 204, NULL, NULL, 0);
}

static const struct path paths[] = {
    {"POST", "/v1/chat/completions", .run = exchange_chat, .dialect = &openai_chat},
    {"POST", "/v1/completions", .run = exchange_chat, .dialect = &openai_completions},
    {"POST", "/v1/embeddings", .run = exchange_chat, .dialect = &openai_embeddings},
    {"POST", "/tokenize", .run = exchange_chat, .dialect = &openai_tokenize},
    {"POST", "/detokenize", .run = exchange_chat, .dialect = &openai_detokenize},
    {"POST", "/v1/responses", .run = exchange_chat, .dialect = &openai_responses},
    {"POST", "/v1/messages", .run = exchange_chat, .dialect = &anthropic_messages},
    {"POST", "/v1/messages/count_tokens", .run = exchange_chat, .dialect = &anthropic_count},
    {"POST", "/api/chat", .run = exchange_chat, .dialect = &ollama_chat},
    {"POST", "/api/generate", .run = exchange_chat, .dialect = &ollama_generate},
    {"POST", "/api/embed", .run = exchange_chat, .dialect = &ollama_embed},
    {"POST", "/api/embeddings", .run = exchange_chat, .dialect = &ollama_embeddings},
    {"GET", "/api/tags", .run = ollama_tags, .dialect = &ollama_chat},
    {"POST", "/api/show", .run = ollama_show, .dialect = &ollama_chat},
    {"GET", "/api/ps", .run = ollama_ps, .dialect = &ollama_chat},
    {"GET", "/api/version", .run = ollama_version, .dialect = &ollama_chat},
    {"GET", "/", .open = true, .run = ollama_root},
    {"GET", "/v1/models", .run = api_models},
    {"GET", "/v1/models/", .prefix = true, .run = api_model},
    {"GET", "/health", .open = true, .run = api_health},
    {"GET", "/healthz", .open = true, .run = api_health},
    {"GET", "/readyz", .open = true, .run = api_ready},
    {"GET", "/metrics", .run = metrics_show},
    {"GET", "/v1/tern/status", .run = api_status},
    {"GET", "/v1/tern/log", .run = api_log},
    {"GET", "/v1/tern/why/", .prefix = true, .run = api_why},
    {"GET", "/v1/tern/stats", .run = api_stats},
};
/* Whose API a path belongs to, as an API key may be limited to: the first word of the dialect's name, or tern's own
 * pages. 0: nobody's own, such as the list of models. */
static unsigned path_api(const struct path *p)
{
    static const char *const names[] = {
        [API_OPENAI] = "openai-", [API_ANTHROPIC] = "anthropic-", [API_OLLAMA] = "ollama-",
    };

    /* What counts tokens goes with OpenAI's. */
    if (!p->dialect)
        return strncmp(p->path, "/v1/tern/", 9) == 0 || strcmp(p->path, "/metrics") == 0 ? 1u << API_TERN : 0;
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        if (strncmp(p->dialect->name, names[i], strlen(names[i])) == 0)
            return 1u << i;
    return 1u << API_OPENAI;
}

static const struct path preflight = {"OPTIONS", "*", .open = true, .run = preflight_run};

/* NULL: unknown. */
static const struct path *path_find(const char *target)
{
    for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
        size_t n = strlen(paths[i].path);

        if (paths[i].prefix ? strncmp(target, paths[i].path, n) == 0 && target[n] : strcmp(target, paths[i].path) == 0)
            return &paths[i];
    }
    return NULL;
}

static bool path_takes(const struct path *p, const char *method)
{
    return strcmp(method, p->method) == 0 || (strcmp(method, "HEAD") == 0 && strcmp(p->method, "GET") == 0);
}

/* ---- The checks on a head ---------------------------------------------------------------------------------------- */

static int refuse(struct request_error *e, int status, const char *type, const char *code, const char *message)
{
    *e = (struct request_error){.http_status = status, .type = type, .code = code, .message = message};
    return -EACCES;
}

static int no_memory(struct request_error *e)
{
    return refuse(e, 503, "server_error", "out_of_memory", "out of memory");
}

static bool is_json(const char *content_type)
{
    size_t n = content_type ? strcspn(content_type, "; \t") : 0;

    return n == 16 && strncasecmp(content_type, "application/json", 16) == 0;
}

static int check_origin(struct conn *c, struct request_error *e)
{
    if (!c->head.origin)
        return 0;
    for (size_t i = 0; i < c->config->listen.n_origins; i++)
        if (strcmp(c->head.origin, c->config->listen.origins[i]) == 0)
            c->allow_origin = c->config->listen.origins[i];
    if (c->allow_origin)
        return 0;
    return refuse(e, 403, "permission_error", "origin_not_allowed",
                  "web pages of this origin may not call this server; list it in listen.origins to allow it");
}

static int check_path(struct conn *c, struct request_error *e)
{
    c->path = path_find(c->head.target);
    if (!c->path)
        return refuse(e, 404, "invalid_request_error", "not_found", "there is nothing at this path");
    if (path_takes(c->path, c->head.method))
        return 0;
    if (strcmp(c->head.method, "OPTIONS") != 0 || !c->allow_origin || !c->head.preflight)
        return refuse(e, 405, "invalid_request_error", "method_not_allowed",
                      "this path does not take this method; see Allow");
    c->path = &preflight;
    return 0;
}

/* Everything that a head alone decides, in the order of who may learn what. */
static int check_head(struct conn *c, struct request_error *e)
{
    int r;

    if (!auth_uid(bufferevent_getfd(c->bev), c->config))
        return refuse(e, 403, "permission_error", "user_not_allowed",
                      "this user may not use the socket; list the uid in listen.unix_uids to allow it");
    if (!c->is_unix && !host_allowed(c->head.host, c->config))
        return refuse(e, 403, "permission_error", "host_not_allowed",
                      "this server does not answer to this Host; list the name in listen.hosts to allow it");
    r = check_origin(c, e);
    if (r < 0)
        return r;
    r = check_path(c, e);
    if (r < 0)
        return r;
    if (!c->path->open) {
        r = auth_check(&c->key, c->config, &c->head, e);
        if (r == 0)
            r = auth_api(c->key, path_api(c->path), e);
        if (r == 0 && c->key)
            r = quota_take(c->key, c->http->daemon->store, clock_usec(), clock_wall_usec(), e);
        if (r < 0)
            return r;
    }
    if (strcmp(c->head.method, "POST") == 0 && !is_json(c->head.content_type))
        return refuse(e, 415, "invalid_request_error", "unsupported_media_type",
                      "a POST needs Content-Type: application/json");
    if (c->head.length > c->config->listen.max_body_bytes)
        return refuse(e, 413, "invalid_request_error", "body_too_large",
                      "the body is longer than listen.max_body allows");
    return 0;
}

/* ---- Connections ------------------------------------------------------------------------------------------------- */

static void conn_arm(struct conn *c, uint64_t msec)
{
    struct timeval tv = {.tv_sec = (time_t)(msec / 1000), .tv_usec = (suseconds_t)(msec % 1000 * 1000)};

    event_add(c->timer, &tv);
}

/* Whether evhttp is called for input at all. */
static void conn_let_read(struct conn *c, bool on)
{
    bufferevent_setwatermark(c->bev, EV_READ, on ? 0 : SIZE_MAX, 0);
}

/* Forget the request, be ready for the next. */
static void conn_reset(struct conn *c)
{
    free(TAKE(c->text));
    config_unref(TAKE(c->config));
    c->head = (struct head){0};
    c->scanned = 0;
    c->path = NULL;
    c->key = NULL;
    c->allow_origin = NULL;
    c->state = CONN_HEAD;
}

static void conn_free(struct conn *c)
{
    struct http *h = c->http;

    if (c->link.le_prev) {
        LIST_REMOVE(c, link);
        h->counts.open--;
    }
    if (h->last == c)
        h->last = NULL;
    if (c->in_cb)
        evbuffer_remove_cb_entry(bufferevent_get_input(c->bev), c->in_cb);
    if (c->out_cb)
        evbuffer_remove_cb_entry(bufferevent_get_output(c->bev), c->out_cb);
    if (c->timer)
        event_free(c->timer);
    if (c->soon)
        event_free(c->soon);
    conn_reset(c);
    bufferevent_decref(c->bev);
    free(c);
}

/* evhttp is about to free its connection. */
static void conn_closed(struct evhttp_connection *evcon, void *arg)
{
    struct conn *c = arg;

    if (c->state == CONN_BUSY)
        c->http->n_busy--;
    if (c->exchange)
        exchange_gone(TAKE(c->exchange));
    conn_free(c);
}

static void conn_drain(struct conn *c)
{
    struct evbuffer *in = bufferevent_get_input(c->bev);

    evbuffer_drain(in, evbuffer_get_length(in));
}

static void conn_refused_written(struct bufferevent *bev, void *arg)
{
    shutdown(bufferevent_getfd(bev), SHUT_WR);
}

static void conn_refused_event(struct bufferevent *bev, short what, void *arg)
{
    struct conn *c = arg;

    evhttp_connection_free(c->evcon);
}

/* Answer with an error from outside evhttp, and close. Safe inside the input callback: nothing is freed here. */
static void conn_refuse(struct conn *c, const struct request_error *e)
{
    cleanup(json_decrefp) json_t *j = c->path && c->path->dialect ? c->path->dialect->error(e) : openai_error(e);
    cleanup(freep) char *body = j ? json_dumps(j, JSON_COMPACT) : NULL;
    struct evbuffer *out = bufferevent_get_output(c->bev);
    size_t len = body ? strlen(body) : 0;
    char id[ID_BYTES];

    c->state = CONN_CLOSING;
    bufferevent_setcb(c->bev, NULL, conn_refused_written, conn_refused_event, c);
    conn_let_read(c, false);
    conn_drain(c);
    c->http->counts.answers[e->http_status / 100]++;

    id_new(id, clock_wall_usec());
    evbuffer_add_printf(out, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
                        "Connection: close\r\nx-request-id: %s\r\n",
                        e->http_status, status_phrase(e->http_status), len, id);
    if (c->path && c->path->dialect && c->path->dialect->id_header)
        evbuffer_add_printf(out, "%s: %s\r\n", c->path->dialect->id_header, id);
    if (e->http_status == 401)
        evbuffer_add_printf(out, "WWW-Authenticate: Bearer realm=\"tern\"\r\n");
    if (e->http_status == 405)
        evbuffer_add_printf(out, "Allow: %s\r\n", strcmp(c->path->method, "GET") == 0 ? "GET, HEAD" : c->path->method);
    if (e->retry_after_sec)
        evbuffer_add_printf(out, "Retry-After: %u\r\n", e->retry_after_sec);
    if (c->allow_origin)
        evbuffer_add_printf(out, "Access-Control-Allow-Origin: %s\r\nVary: Origin\r\n", c->allow_origin);
    evbuffer_add(out, "\r\n", 2);
    if (!c->head.method || strcmp(c->head.method, "HEAD") != 0)
        evbuffer_add(out, body, len);
    log_write(e->http_status == 401 || e->http_status == 403 ? LOG_LEVEL_INFO : LOG_LEVEL_DEBUG, id,
              "%s: refused with %d: %s", c->peer, e->http_status, e->code);

    bufferevent_enable(c->bev, EV_READ | EV_WRITE);
    conn_arm(c, LINGER_MSEC);
}

/* More from one address than listen.max_connections_peer. On this machine everybody has the same. */
static bool conn_has_too_many(const struct conn *c)
{
    const struct conn *other;
    unsigned n = 0;

    if (c->is_unix || strncmp(c->peer, "127.", 4) == 0 || strcmp(c->peer, "::1") == 0)
        return false;
    LIST_FOREACH(other, &c->http->conns, link)
        n += strcmp(other->peer, c->peer) == 0;
    return n > c->http->config->listen.max_connections_peer;
}

/* First run from the loop: evhttp has made its connection around the bufferevent by now. Nothing in its interface
 * tells which; it is the argument of the callbacks that evhttp set. */
static void conn_adopt(struct conn *c)
{
    static const struct request_error full = {
        .http_status = 503, .type = "server_error", .code = "too_many_connections", .retry_after_sec = 1,
        .message = "listen.max_connections are open",
    };
    struct sockaddr_storage addr = {0};
    socklen_t len = sizeof(addr);
    int fd = bufferevent_getfd(c->bev), on = 1;
    void *evcon = NULL;

    bufferevent_getcb(c->bev, NULL, NULL, NULL, &evcon);
    if (!evcon || fd < 0) {                    /* evhttp gave up before it began */
        conn_free(c);
        return;
    }
    c->evcon = evcon;
    evhttp_connection_set_closecb(c->evcon, conn_closed, c);
    getsockname(fd, (struct sockaddr *)&addr, &len);
    c->is_unix = addr.ss_family == AF_UNIX;
    if (!c->is_unix)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    auth_peer(c->peer, fd);
    if (c->ssl)
        bufferevent_openssl_set_allow_dirty_shutdown(c->bev, 1);
    if (c->http->counts.open > c->http->config->listen.max_connections + OVER_LIMIT || conn_has_too_many(c))
        evhttp_connection_free(c->evcon);
    else if (c->http->counts.open > c->http->config->listen.max_connections)
        conn_refuse(c, &full);
}

static void conn_soon(evutil_socket_t fd, short what, void *arg)
{
    struct conn *c = arg;

    if (!c->evcon) {
        conn_adopt(c);
    } else if (c->paused && c->exchange && c->exchange->request) {
        c->paused = false;
        request_resume(c->exchange->request);
    }
}

static void conn_deadline(evutil_socket_t fd, short what, void *arg)
{
    static const struct request_error late = {
        .http_status = 408, .type = "invalid_request_error", .code = "request_timeout",
        .message = "the request did not come in the time allowed (listen.header_timeout, listen.body_timeout)",
    };
    struct conn *c = arg;

    if (c->evcon && c->ssl && !SSL_is_init_finished(c->ssl)) {
        evhttp_connection_free(c->evcon);      /* the handshake did not come to an end; there is nobody to tell */
        return;
    }
    if (c->evcon && (c->state == CONN_BODY || (c->state == CONN_HEAD && (c->scanned || !c->served)))) {
        conn_refuse(c, &late);
        return;
    }
    if (c->state == CONN_BUSY)
        log_info("%s took no byte of its answer in time", c->peer);
    if (c->evcon)
        evhttp_connection_free(c->evcon);
}

/* Bytes of the body, from offset `from` of the input on. */
static int conn_body(struct conn *c, struct evbuffer *in, size_t from, struct request_error *e)
{
    size_t len = evbuffer_get_length(in), used;
    struct evbuffer_ptr at;
    uint8_t bytes[4096];
    ev_ssize_t n;
    int r;

    for (; from < len; from += used) {
        if (c->body.state == BODY_DONE) {
            c->close_after = true;             /* more than the request: dropped when it is handed over */
            break;
        }
        evbuffer_ptr_set(in, &at, from, EVBUFFER_PTR_SET);
        n = evbuffer_copyout_from(in, &at, bytes, sizeof(bytes));
        r = body_scan(&c->body, bytes, n > 0 ? (size_t)n : 0, &used, e);
        if (r < 0)
            return r;
        if (!used)
            break;
    }
    return 0;
}

/* A whole head: may it go on? */
static int conn_accept(struct conn *c, struct evbuffer *in, size_t len, struct request_error *e)
{
    int r;

    c->text = calloc(1, len + 1);
    if (!c->text)
        return no_memory(e);
    evbuffer_copyout(in, c->text, len);
    c->config = config_ref(c->http->config);
    r = head_parse(&c->head, c->text, len, e);
    if (r < 0)
        return r;
    r = check_head(c, e);
    if (r < 0)
        return r;
    body_init(&c->body, &c->head, c->config->listen.max_body_bytes);
    return conn_body(c, in, len, e);
}

static void conn_head(struct conn *c, struct evbuffer *in)
{
    size_t max = c->http->config->listen.max_header_bytes, have = MIN(evbuffer_get_length(in), max);
    const uint8_t *bytes;
    struct request_error e;
    ssize_t len;

    if (!c->scanned)
        conn_arm(c, c->http->config->listen.header_timeout_msec);
    bytes = evbuffer_pullup(in, (ev_ssize_t)have);
    len = bytes ? head_scan(bytes, have, &c->scanned, &e) : no_memory(&e);
    if (len == 0 && have == max)
        len = refuse(&e, 431, "invalid_request_error", "headers_too_large",
                     "the headers are longer than listen.max_header allows");
    if (len > 0 && conn_accept(c, in, (size_t)len, &e) < 0)
        len = -1;
    if (len < 0)
        conn_refuse(c, &e);
    if (len <= 0)
        return;
    c->state = CONN_BODY;
    c->http->last = c;
    conn_arm(c, c->config->listen.body_timeout_msec);
    conn_let_read(c, true);
}

/* The input buffer grew; evhttp has not seen it yet. */
static void conn_input(struct evbuffer *in, const struct evbuffer_cb_info *info, void *arg)
{
    struct conn *c = arg;
    struct request_error e;

    if (!info->n_added)
        return;
    switch (c->state) {
    case CONN_HEAD:
        conn_head(c, in);
        break;
    case CONN_BODY:
        if (conn_body(c, in, evbuffer_get_length(in) - info->n_added, &e) < 0)
            conn_refuse(c, &e);
        break;
    case CONN_BUSY:
        c->close_after = true;
        conn_drain(c);
        break;
    case CONN_CLOSING:
        conn_drain(c);
        break;
    }
}

/* The output buffer changed: keep the deadline of a write that stalls, and wake a source that was paused. */
static void conn_written(struct evbuffer *out, const struct evbuffer_cb_info *info, void *arg)
{
    struct conn *c = arg;
    size_t len = evbuffer_get_length(out);

    if (c->state != CONN_BUSY)
        return;
    if (!len)
        event_del(c->timer);
    else if (info->n_deleted || !info->orig_size)
        conn_arm(c, c->config->listen.write_timeout_msec);
    if (c->paused && len < QUEUED_LOW)
        event_active(c->soon, EV_TIMEOUT, 0);
}

/* evhttp asks for a bufferevent for a connection just accepted. NULL makes it use one of its own, which http_request()
 * refuses. */
static struct bufferevent *conn_new(struct http *h, SSL *ssl)
{
    struct event_base *base = h->daemon->base;
    struct conn *c = calloc(1, sizeof(*c));

    if (!c) {
        SSL_free(ssl);
        return NULL;
    }
    c->http = h;
    c->ssl = ssl;
    /* The SSL becomes the bufferevent's. */
    c->bev = ssl ? bufferevent_openssl_socket_new(base, -1, ssl, BUFFEREVENT_SSL_ACCEPTING, BEV_OPT_CLOSE_ON_FREE)
                 : bufferevent_socket_new(base, -1, BEV_OPT_CLOSE_ON_FREE);
    if (!c->bev) {
        SSL_free(ssl);
        free(c);
        return NULL;
    }
    c->timer = evtimer_new(base, conn_deadline, c);
    c->soon = event_new(base, -1, 0, conn_soon, c);
    c->in_cb = evbuffer_add_cb(bufferevent_get_input(c->bev), conn_input, c);
    c->out_cb = evbuffer_add_cb(bufferevent_get_output(c->bev), conn_written, c);
    if (!c->timer || !c->soon || !c->in_cb || !c->out_cb) {
        conn_free(c);
        return NULL;
    }
    LIST_INSERT_HEAD(&h->conns, c, link);
    h->counts.open++;
    h->counts.connections++;
    conn_let_read(c, false);
    conn_arm(c, h->config->listen.header_timeout_msec);
    bufferevent_incref(c->bev);
    event_active(c->soon, EV_TIMEOUT, 0);
    return c->bev;
}

static struct bufferevent *conn_new_plain(struct event_base *base, void *arg)
{
    return conn_new(arg, NULL);
}

static struct bufferevent *conn_new_tls(struct event_base *base, void *arg)
{
    struct http *h = arg;
    SSL *ssl = h->config->tls ? SSL_new(h->config->tls) : NULL;

    return ssl ? conn_new(h, ssl) : NULL;
}

/* ---- Requests ---------------------------------------------------------------------------------------------------- */

static struct conn *conn_of(struct http *h, struct evhttp_connection *evcon)
{
    struct conn *c;

    if (h->last && h->last->evcon == evcon)
        return h->last;
    LIST_FOREACH(c, &h->conns, link)
        if (c->evcon == evcon)
            return c;
    return NULL;
}

/* The answer is written to the last byte. evhttp now closes the connection or reads on. */
static void conn_complete(struct evhttp_request *req, void *arg)
{
    struct conn *c = arg;

    c->http->n_busy--;
    c->served = true;
    conn_reset(c);
    conn_arm(c, IDLE_MSEC);
}

/* evhttp has a whole request. */
static void http_request(struct evhttp_request *req, void *arg)
{
    struct http *h = arg;
    struct evhttp_connection *evcon = evhttp_request_get_connection(req);
    struct conn *c = conn_of(h, evcon);

    if (!c || c->state != CONN_BODY) {
        evhttp_connection_free(evcon);         /* not one of ours: no memory when it came */
        return;
    }
    c->state = CONN_BUSY;
    h->n_busy++;
    event_del(c->timer);
    conn_let_read(c, false);
    conn_drain(c);
    bufferevent_enable(c->bev, EV_READ);
    evhttp_request_set_on_complete_cb(req, conn_complete, c);
    c->exchange = exchange_new(h->daemon, &h->counts, c, req);
    if (!c->exchange) {
        evhttp_connection_free(evcon);
        return;
    }
    c->exchange->path = c->path;
    c->exchange->dialect = c->path->dialect;
    c->exchange->head = &c->head;
    c->exchange->key = c->key;
    c->exchange->peer = c->peer;
    c->path->run(c->exchange);
}

struct evbuffer *conn_output(const struct conn *c) { return bufferevent_get_output(c->bev); }
const char *conn_allow_origin(const struct conn *c) { return c->allow_origin; }
bool conn_closes(const struct conn *c) { return c->close_after || c->http->stopping; }

void conn_answered(struct conn *c)
{
    c->exchange = NULL;
    c->paused = false;
}

void conn_watch(struct conn *c)
{
    if (c->paused || evbuffer_get_length(conn_output(c)) <= QUEUED_HIGH)
        return;
    c->paused = true;
    request_pause(c->exchange->request);
}

/* ---- The server -------------------------------------------------------------------------------------------------- */

/* evconnlistener hands its error callback evhttp's argument, so ours has to be found here; a process has one server. */
static struct http *server;

static void accept_failed(struct evconnlistener *l, void *arg)
{
    struct timeval tv = {.tv_usec = ACCEPT_AGAIN_MSEC * 1000};
    struct http *h = server;

    log_warning("cannot accept connections for the moment: %s", strerror(EVUTIL_SOCKET_ERROR()));
    for (size_t i = 0; i < h->n_listeners; i++)
        evconnlistener_disable(h->listeners[i]);
    event_add(h->accept_again, &tv);
}

static void accept_again(evutil_socket_t fd, short what, void *arg)
{
    struct http *h = arg;

    for (size_t i = 0; i < h->n_listeners && !h->stopping; i++)
        evconnlistener_enable(h->listeners[i]);
}

static int listener_add(struct http *h, struct listener *l, struct err *err)
{
    struct evconnlistener *e;

    /* One that was passed in may block, and then an accept() that finds nothing would stop the loop. */
    if (evutil_make_socket_nonblocking(l->fd) < 0)
        return err_set(err, -errno, "%s: %s", l->name, strerror(errno));
    e = evconnlistener_new(h->daemon->base, NULL, NULL, LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, 0, l->fd);
    if (!e)
        return -ENOMEM;
    l->fd = -1;
    if (!evhttp_bind_listener(l->tls ? h->tls : h->plain, e)) {
        evconnlistener_free(e);
        return -ENOMEM;
    }
    evconnlistener_set_error_cb(e, accept_failed);
    h->listeners[h->n_listeners++] = e;
    return 0;
}

static struct evhttp *server_new(struct http *h, struct bufferevent *(*make)(struct event_base *, void *))
{
    struct evhttp *e = evhttp_new(h->daemon->base);

    if (!e)
        return NULL;
    evhttp_set_bevcb(e, make, h);
    evhttp_set_gencb(e, http_request, h);
    /* Methods are judged by check_path(); what passes, evhttp shall not refuse in its own words. */
    evhttp_set_allowed_methods(e, EVHTTP_REQ_GET | EVHTTP_REQ_HEAD | EVHTTP_REQ_POST | EVHTTP_REQ_OPTIONS);
    return e;
}

static void http_freep(struct http **h) { http_free(*h); }

int http_new(struct http **ret, struct daemon *d, struct listener *listeners, size_t n, struct err *err)
{
    cleanup(http_freep) struct http *h = calloc(1, sizeof(*h));
    int r;

    if (!h)
        return -ENOMEM;
    h->daemon = d;
    h->config = config_ref(d->config);
    h->plain = server_new(h, conn_new_plain);
    h->tls = server_new(h, conn_new_tls);
    h->accept_again = evtimer_new(d->base, accept_again, h);
    if (!h->plain || !h->tls || !h->accept_again)
        return -ENOMEM;
    for (size_t i = 0; i < n && i < LISTEN_MAX; i++) {
        r = listener_add(h, &listeners[i], err);
        if (r < 0)
            return r;
    }
    server = h;
    *ret = TAKE(h);
    return 0;
}

void http_set_config(struct http *h, struct config *c)
{
    config_ref(c);
    config_unref(h->config);
    h->config = c;
}

void http_stop_accepting(struct http *h)
{
    struct conn *c, *next;

    h->stopping = true;
    for (size_t i = 0; i < h->n_listeners; i++)
        evconnlistener_disable(h->listeners[i]);
    for (c = LIST_FIRST(&h->conns); c; c = next) {
        next = LIST_NEXT(c, link);
        if (c->evcon && c->state == CONN_HEAD && !c->scanned)
            evhttp_connection_free(c->evcon);
    }
}

bool http_idle(const struct http *h)
{
    return h->n_busy == 0;
}

void http_free(struct http *h)
{
    struct conn *c, *next;

    if (!h)
        return;
    /* Connections that evhttp has but that no loop turn has told us of. */
    for (c = LIST_FIRST(&h->conns); c; c = next) {
        next = LIST_NEXT(c, link);
        if (!c->evcon)
            conn_adopt(c);
    }
    if (h->plain)
        evhttp_free(h->plain);
    if (h->tls)
        evhttp_free(h->tls);
    if (h->accept_again)
        event_free(h->accept_again);
    if (server == h)
        server = NULL;
    config_unref(h->config);
    free(h);
}
