/* The router's script, by the last user message of a request:
 *     hi       local, two pieces of text with log-probabilities if asked, end        cloud     the same from a cloud
 *     degraded the same, degraded                    refuse    refused by request_start()
 *     fail N   fails with status N before it begins  cut       begins, one piece, fails
 *     hang     never begins                          begin     begins and says nothing more
 *     piece    begins, one piece, nothing more       flow      8 MiB in pieces, as fast as it is let
 *     long     as hi, and has no more room
 *     calls    words and two calls, one without arguments      call      one call alone */
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <event2/buffer.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "base/clock.h"
#include "base/log.h"
#include "tests/daemon/fake.h"

#define FLOW_PIECE 4096
#define FLOW_PIECES 2048

struct fake fake;
static struct config *config;
static char piece[FLOW_PIECE];

/* ---- The router -------------------------------------------------------------------------------------------------- */

struct request {
    const struct request_sink *sink;
    void *arg;
    struct chat_request *chat;
    struct event *step_event;
    const char *script;
    unsigned step;
    bool paused;
};

static void request_done(struct request *q)
{
    event_free(q->step_event);
    chat_request_free(q->chat);
    free(q);
    fake.running--;
}

static bool script_is(const struct request *q, const char *name)
{
    return strncmp(q->script, name, strlen(name)) == 0;
}

static struct request_meta meta_of(const struct request *q)
{
    bool cloud = script_is(q, "cloud");

    return (struct request_meta){
        .id = FAKE_ID, .route = script_is(q, "fail") ? ROUTE_NONE : cloud ? ROUTE_CLOUD : ROUTE_LOCAL,
        .reason = cloud ? "too-hard" : "confident", .model = cloud ? "big-model" : "tern-nano",
        .endpoint = cloud ? "main" : NULL, .degraded = script_is(q, "degraded"),
        .confidence = cloud ? NAN : 0.75, .created_sec = FAKE_CREATED,
    };
}

static void say(struct request *q, const char *text, size_t len)
{
    json_t *probs = q->chat->params.logprobs
        ? json_pack("[{s:s, s:f, s:[i], s:[]}]", "token", "t", "logprob", -0.5, "bytes", 116, "top_logprobs") : NULL;
    struct request_delta d = {.text = text, .text_len = len, .logprobs = probs};
    struct exchange *x = q->arg;

    q->sink->delta(q->arg, &d);
    json_decref(probs);
    fake.sent += len;
    fake.most_queued = MAX(fake.most_queued, evbuffer_get_length(conn_output(x->conn)));
}

/* A name with an id, arguments without one; NULL says words. */
static void say_call(struct request *q, unsigned call, const char *id, const char *text)
{
    q->sink->delta(q->arg, &(struct request_delta) {
        .channel = id ? ANSWER_TOOL_NAME : ANSWER_TOOL_ARGUMENTS, .call = call, .call_id = id, .text = text,
        .text_len = strlen(text),
    });
}

static void say_calls(struct request *q, unsigned step)
{
    if (step == 1) {
        if (script_is(q, "calls"))
            say(q, "Wait.", 5);
        say_call(q, 0, "call_a", "look");
        say_call(q, 0, NULL, "{\"at\":");
        return;
    }
    say_call(q, 0, NULL, "\"sky\"}");
    if (script_is(q, "calls"))
        say_call(q, 1, "call_b", "stop");
}

static void request_step(evutil_socket_t fd, short what, void *arg)
{
    struct request *q = arg;
    struct request_meta m = meta_of(q);
    unsigned step = q->step++, n_pieces = script_is(q, "flow") ? FLOW_PIECES : 2;
    static const float vectors[] = {0.6f, 0.8f, 1, 0};
    static const int32_t tokens[] = {7, 2045, 0, 1, 5};
    struct request_result res = {.finish = script_is(q, "call") ? "tool_calls" : script_is(q,
        "long") ? "length" : "stop",
                                 .tokens_cached = 3, .vectors = vectors, .n_vectors = 2, .width = 2, .tokens = tokens,
                                 .stop = q->chat->params.n_stop ? q->chat->params.stop[0] : NULL, .prefill_usec = 7,
                                 .decode_usec = 8, .tokens_in = 5, .tokens_out = 2, .confidence = m.confidence,
                                 .cost_microusd = m.route == ROUTE_CLOUD ? 123 : 0};
    struct request_error e = {.http_status = 502, .type = "server_error", .code = "upstream_cut",
                              .message = "the cloud's answer broke off"};

    if (script_is(q, "hang") || (step && script_is(q, "begin")) || (step > 1 && script_is(q, "piece")))
        return;
    if (script_is(q, "fail") || (step > 1 && script_is(q, "cut"))) {
        if (script_is(q, "fail"))
            e = (struct request_error){.http_status = atoi(q->script + 5), .type = "server_error", .code = "scripted",
                                       .message = "as asked", .retry_after_sec = 7};
        q->sink->fail(q->arg, &m, &e);
        request_done(q);
        return;
    }
    if (step == 0) {
        q->sink->begin(q->arg, &m);
    } else if (step <= n_pieces) {
        if (script_is(q, "call"))
            say_calls(q, step);
        else if (n_pieces > 2)
            say(q, piece, sizeof(piece));
        else if (step == 1)
            say(q, "Hel\"l\n", 6);
        else
            say(q, "o ✓", strlen("o ✓"));
    } else {
        q->sink->end(q->arg, &m, &res);
        request_done(q);
        return;
    }
    if (!q->paused)
        event_active(q->step_event, EV_TIMEOUT, 0);
}

static void copy(char out[64], const char *s)
{
    snprintf(out, 64, "%s", s ? s : "");
}

int request_start(struct request **ret, struct router *r, struct chat_request *chat, const struct request_options *o,
                  const struct request_sink *sink, void *arg, char ret_id[ID_BYTES], struct request_error *ret_error)
{
    const char *script = chat->input ? "task" : chat_last_user(chat->messages);
    struct request *q;

    strcpy(ret_id, FAKE_ID);
    copy(fake.key, o->key);
    copy(fake.label, o->label);
    copy(fake.mode, o->mode);
    copy(fake.peer, o->peer);
    copy(fake.model, chat->model);
    snprintf(fake.content, sizeof(fake.content), "%s", script);
    fake.key_label = o->key_label ? (int)*o->key_label : -1;
    fake.deadline_usec = o->deadline_usec;
    fake.params = chat->params;
    copy(fake.dialect, o->dialect);
    json_decref(fake.chat);
    fake.chat = chat->input ? json_incref(chat->input) : chat_request_to_json(chat);
    fake.task = chat->task;
    if (strcmp(script, "refuse") == 0) {
        *ret_error = (struct request_error){.http_status = 503, .type = "server_error", .code = "queue_full",
                                            .message = "the queue is full", .retry_after_sec = 2};
        return 1;
    }
    q = calloc(1, sizeof(*q));
    q->sink = sink;
    q->arg = arg;
    q->chat = chat;
    q->script = script;
    q->step_event = event_new(fake.d.base, -1, 0, request_step, q);
    event_active(q->step_event, EV_TIMEOUT, 0);
    fake.started++;
    fake.running++;
    *ret = q;
    return 0;
}

void request_cancel(struct request *q)
{
    fake.cancelled++;
    request_done(q);
}

void request_pause(struct request *q)
{
    assert(!q->paused);
    q->paused = true;
    fake.pauses++;
}

void request_resume(struct request *q)
{
    assert(q->paused);
    q->paused = false;
    fake.resumes++;
    event_active(q->step_event, EV_TIMEOUT, 0);
}

const uint64_t router_latency_bounds_usec[12] = {
    5000, 10000, 50000, 100000, 500000, 1000000, 2000000, 5000000, 10000000, 30000000, 60000000, UINT64_MAX};
bool router_engine_ready(const struct router *r) { return fake.engine_ready; }
bool router_egress_ready(const struct router *r) { return true; }
const char *router_engine_failure(const struct router *r) { return fake.engine_ready ? NULL : "model.gguf: bad magic"; }

json_t *router_status(const struct router *r)
{
    return json_pack("{s:{s:b, s:s, s:i, s:i}, s:{s:b}, s:[{s:s, s:s, s:s, s:s, s:[s], s:s}], s:{s:s, s:s}, s:b, s:i}",
                     "engine", "ready", fake.engine_ready, "model", "tern-nano", "running", 1, "waiting", 2,
                     "egress", "ready", 1, "endpoints", "name", "main", "model", "big-model", "host", "example.com:443",
                     "region", "eu", "labels", "public", "breaker", "closed",
                     "policy", "mode", "auto", "default_label", "private", "offline", 0, "in_flight", 3);
}

const struct router_metrics *router_metrics(const struct router *r)
{
    static struct router_metrics m = {
        .cost_microusd = 2500000, .bytes_left = 77, .latency_count = {3, 0}, .latency_sum_usec = {600000, 0},
        .latency_bucket = {{1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1}},
    };
    return &m;
}

/* ---- The store and the supervisor -------------------------------------------------------------------------------- */

static store_answer_fn *answer;
static void *answer_arg;

bool store_healthy(const struct store *s) { return fake.store_healthy; }
const char *store_fault(const struct store *s) { return fake.store_healthy ? NULL : "disk full"; }
unsigned store_in_flight(const struct store *s) { return 4; }

void fake_store_answer(void)
{
    store_answer_fn *fn = answer;
    struct err err = {"scripted"};

    answer = NULL;
    if (fn)
        fn(answer_arg, fake.store_result ? json_loads(fake.store_result, JSON_DECODE_ANY, NULL) : NULL, &err);
}

static void answer_now(evutil_socket_t fd, short what, void *arg) { fake_store_answer(); }

int store_query(struct store *s, const struct store_query *q, store_answer_fn *done, void *arg)
{
    struct timeval now = {0};

    if (answer)
        return -EBUSY;
    fake.query = *q;
    snprintf(fake.query_text, sizeof(fake.query_text), "id=%s route=%s reason=%s label=%s outcome=%s key=%s limit=%u",
             q->id ? q->id : "-", q->route ? q->route : "-", q->reason ? q->reason : "-", q->label ? q->label : "-",
             q->outcome ? q->outcome : "-", q->key ? q->key : "-", q->limit);
    answer = done;
    answer_arg = arg;
    if (!fake.store_late)
        event_base_once(fake.d.base, -1, EV_TIMEOUT, answer_now, NULL, &now);
    return 0;
}

json_t *supervisor_status(const struct supervisor *s)
{
    return json_pack("{s:{s:i, s:i}, s:{s:i, s:i}}", "engine", "pid", 11, "restarts", 1,
                     "egress", "pid", 12, "restarts", 0);
}
unsigned supervisor_restarts(const struct supervisor *s, enum spawn_role role) { return role == SPAWN_ENGINE; }

/* ---- The configuration and the server ---------------------------------------------------------------------------- */

struct config *config_ref(struct config *c) { c->refs++; return c; }
void config_unref(struct config *c)
{
    if (c && --c->refs == 0)
        free(c);
}

static struct listener listen_tcp(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct listener l = {.fd = socket(AF_INET, SOCK_STREAM, 0), .is_loopback = true, .name = "tcp"};
    socklen_t len = sizeof(a);

    assert(bind(l.fd, (struct sockaddr *)&a, sizeof(a)) == 0 && listen(l.fd, 1024) == 0);
    getsockname(l.fd, (struct sockaddr *)&a, &len);
    fake.port = ntohs(a.sin_port);
    return l;
}

static struct sockaddr_un unix_address(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};

    snprintf(a.sun_path, sizeof(a.sun_path), "/tmp/tern-test-%d.sock", getpid());
    return a;
}

static struct listener listen_unix(void)
{
    struct sockaddr_un a = unix_address();
    struct listener l = {.fd = socket(AF_UNIX, SOCK_STREAM, 0), .is_unix = true, .name = "unix"};

    unlink(a.sun_path);
    assert(bind(l.fd, (struct sockaddr *)&a, sizeof(a)) == 0 && listen(l.fd, 16) == 0);
    return l;
}

void fake_start(void (*change)(struct config *c))
{
    struct listener listeners[LISTEN_MAX];
    struct err err = {""};

    if (fake.d.base)                       /* Criterion runs a suite's init also before a test's own */
        fake_stop();
    log_init("test", getenv("TERN_TEST_LOG") ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR);
    memset(&fake, 0, sizeof(fake));
    memset(piece, 'x', sizeof(piece));
    fake.engine_ready = fake.store_healthy = true;
    fake.store_result = "{}";
    config = calloc(1, sizeof(*config));
    config->refs = 1;
    config->listen.max_connections = 200;
    config->listen.max_body_bytes = 64 << 10;
    config->listen.max_header_bytes = 8 << 10;
    config->listen.header_timeout_msec = config->listen.body_timeout_msec = config->listen.write_timeout_msec = 5000;
    strcpy(config->store.path, "/var/lib/tern/tern.db");
    if (change)
        change(config);
    fake.d.base = event_base_new();
    fake.d.config = config;
    fake.d.started_usec = clock_usec();
    strcpy(fake.d.status, "serving");
    listeners[0] = listen_tcp();
    listeners[1] = listen_unix();
    if (http_new(&fake.d.http, &fake.d, listeners, 2, &err) < 0)
        abort();
}

void fake_stop(void)
{
    http_free(fake.d.http);
    json_decref(fake.chat);
    event_base_free(fake.d.base);
    config_unref(config);
    unlink(unix_address().sun_path);
    fake.d.base = NULL;
}

/* ---- The client -------------------------------------------------------------------------------------------------- */

void pump(void)
{
    for (int i = 0; i < 20; i++)
        event_base_loop(fake.d.base, EVLOOP_NONBLOCK);
}

int dial(void)
{
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)fake.port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert(connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0);
    return fd;
}

int dial_unix(void)
{
    struct sockaddr_un a = unix_address();
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert(connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0);
    return fd;
}

void put(int fd, const char *bytes, size_t len)
{
    uint64_t end = clock_usec() + 5 * USEC_PER_SEC;

    while (len && clock_usec() < end) {
        ssize_t n = send(fd, bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n < 0 && errno != EAGAIN)
            return;                        /* the server closed: what it said is read next */
        if (n > 0) {
            bytes += n;
            len -= (size_t)n;
        }
        pump();
    }
}

char *get(int fd, const char *until, unsigned msec, size_t *ret_len, bool *ret_closed)
{
    uint64_t end = clock_usec() + msec * USEC_PER_MSEC;
    struct buf b = {.max = 64 << 20};
    char bytes[65536];
    ssize_t n = -1;

    buf_puts(&b, "");
    while (clock_usec() < end) {
        event_base_loop(fake.d.base, EVLOOP_NONBLOCK);
        n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN))
            break;
        if (n > 0)
            buf_append(&b, bytes, (size_t)n);
        else
            poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 1);
        if (until && b.len && strstr((char *)b.data, until))
            break;
    }
    if (ret_len)
        *ret_len = b.len;
    if (ret_closed)
        *ret_closed = n == 0 || (n < 0 && errno != EAGAIN);
    return buf_take(&b);
}

void put_chat(int fd, const char *more_headers, const char *body)
{
    struct buf b = {.max = 64 << 20};

    buf_printf(&b, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n%s"
               "Content-Length: %zu\r\n\r\n%s", more_headers, strlen(body), body);
    put(fd, (char *)b.data, b.len);
    buf_done(&b);
}

static int finish(int fd, char **ret)
{
    char *text = get(fd, NULL, 3000, NULL, NULL);
    int status = 0;

    close(fd);
    pump();
    sscanf(text, "HTTP/1.%*d %d", &status);
    if (ret)
        *ret = text;
    else
        free(text);
    return status;
}

int exchange(const char *request, char **ret)
{
    int fd = dial();

    put(fd, request, strlen(request));
    return finish(fd, ret);
}

int chat(const char *more_headers, const char *body, char **ret)
{
    struct buf headers = {.max = 4096};
    int fd = dial();

    buf_printf(&headers, "Connection: close\r\n%s", more_headers);
    put_chat(fd, (char *)headers.data, body);
    buf_done(&headers);
    return finish(fd, ret);
}

static char *quoted(const char *text)
{
    char *s = strdup(text);

    for (char *p = s; *p; p++)
        *p = *p == '\'' ? '"' : *p;
    return s;
}

int post(const char *path, const char *body, char **ret)
{
    struct buf b = {.max = 64 << 20};
    cleanup(freep) char *text = quoted(body);
    int status;

    buf_printf(&b, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
               "Content-Length: %zu\r\n\r\n%s", path, strlen(text), text);
    status = exchange((char *)b.data, ret);
    buf_done(&b);
    return status;
}

json_t *json_of(const char *text)
{
    cleanup(freep) char *s = quoted(text);
    json_t *j = json_loads(s, JSON_DECODE_ANY, NULL);

    if (!j)
        fprintf(stderr, "not JSON: %s\n", s);
    assert(j);
    return j;
}

void json_same(json_t *got, json_t *wanted, const char *what)
{
    cleanup(freep) char *a = json_canonical(got), *b = json_canonical(wanted);

    if (strcmp(a, b) != 0)
        fprintf(stderr, "%s:\n%s\nexpected:\n%s\n", what, a, b);
    assert(strcmp(a, b) == 0);
    json_decref(got);
    json_decref(wanted);
}

const char *body_of(const char *answer_text)
{
    const char *p = strstr(answer_text, "\r\n\r\n");

    return p ? p + 4 : "";
}

const char *header_of(const char *answer_text, const char *name)
{
    static char value[512];
    const char *end = strstr(answer_text, "\r\n\r\n"), *p = answer_text;
    size_t n = strlen(name);

    while (p && p < end && (p = strstr(p, "\r\n"))) {
        p += 2;
        if (strncasecmp(p, name, n) == 0 && p[n] == ':') {
            p += n + 1 + (p[n + 1] == ' ');
            snprintf(value, sizeof(value), "%.*s", (int)strcspn(p, "\r"), p);
            return value;
        }
    }
    return NULL;
}

char *dechunk(char *answer_text)
{
    char *in = (char *)body_of(answer_text), *out = in, *start = in;
    unsigned long n;

    while ((n = strtoul(in, &in, 16)) > 0) {
        in += 2;
        memmove(out, in, n);
        out += n;
        in += n + 2;
    }
    *out = '\0';
    return start;
}
