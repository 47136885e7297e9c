/* egress.c: the worker as the front sees it, forked over a socketpair, against the stub cloud, whose log tells what
 * really left. The configuration lies in memory that worker and test share, so that a reload finds what the test put
 * there. */
#include <criterion/criterion.h>
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include "base/clock.h"
#include "base/json.h"
#include "router/egress.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#endif

struct shared {
    struct egress_config config;
    bool bad;                      /* the next load fails */
    int dumpable;                  /* of the worker, as its last load saw it */
};

struct rig {
    char dir[64], log[96];
    pid_t stub, worker;
    unsigned port;
    int fd;
    struct frame_reader in;
    struct shared *shared;
};

static const char request_id[] = "01ARZ3NDEKTSV4RRFFQ69G5FAV";

/* All that came for one call. */
struct answer {
    int head;                      /* status, 0: none came */
    unsigned events;
    size_t bytes;
    bool done;                     /* the last event was [DONE] */
    struct buf text;               /* contents joined */
    json_t *end;
};

/* ---- The rig ---- */

static int load(void *arg, struct egress_config *ret, struct err *err)
{
    struct shared *s = arg;

    s->dumpable = prctl(PR_GET_DUMPABLE);
    if (s->bad)
        return err_set(err, -EINVAL, "tern.conf:7: told to fail");
    *ret = s->config;
    return 0;
}

static void stub_start(struct rig *r, const char *cert, const char *key)
{
    char path[512], line[64] = "";
    int out[2];
    FILE *f;

    snprintf(path, sizeof(path), "%s/tests/stub/stub_cloud", getenv("TERN_BUILD") ? getenv("TERN_BUILD") : ".");
    cr_assert_eq(access(path, X_OK), 0, "%s: build it, and set TERN_BUILD", path);
    cr_assert_eq(pipe2(out, O_CLOEXEC), 0);
    r->stub = fork();
    if (r->stub == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(out[1], 1);
        if (cert)
            execl(path, path, "--log", r->log, "--tls", cert, key, NULL);
        execl(path, path, "--log", r->log, NULL);
        _exit(127);
    }
    close(out[1]);
    f = fdopen(out[0], "r");
    cr_assert_not_null(fgets(line, sizeof(line), f));
    cr_assert_eq(sscanf(line, "listening %u", &r->port), 1);
    fclose(f);
}

static struct cloud_endpoint *endpoint_add(struct rig *r, const char *name, const char *url)
{
    struct cloud_endpoint *e = &r->shared->config.endpoints[r->shared->config.n_endpoints++];

    *e = (struct cloud_endpoint) {
        .connect_timeout_msec = 2000, .first_byte_timeout_msec = 10000, .idle_timeout_msec = 10000,
    };
    snprintf(e->policy.name, sizeof(e->policy.name), "%s", name);
    snprintf(e->url, sizeof(e->url), "%s", url);
    e->policy.labels = 1u << LABEL_PUBLIC | 1u << LABEL_INTERNAL;
    return e;
}

/* A stub and a configuration with the endpoint "stub" that leads to it. */
static void rig_init(struct rig *r)
{
    char url[64];

    *r = (struct rig) {.fd = -1};
    strcpy(r->dir, "/tmp/test_egress.XXXXXX");
    cr_assert_not_null(mkdtemp(r->dir));
    snprintf(r->log, sizeof(r->log), "%s/log", r->dir);
    r->shared = mmap(NULL, sizeof(*r->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(r->shared, MAP_FAILED);
    stub_start(r, NULL, NULL);
    snprintf(url, sizeof(url), "http://127.0.0.1:%u/v1/", r->port);
    endpoint_add(r, "stub", url);
}

/* Leave as an exit would, but for what the test framework has put on the way. */
static void worker_exit(int status)
{
#ifdef __SANITIZE_ADDRESS__
    if (__lsan_do_recoverable_leak_check())
        status = 99;
#endif
    _exit(status);
}

static bool frame_next(struct rig *r, struct frame *f, int msec);

static void worker_start(struct rig *r)
{
    int pair[2];
    struct frame f;

    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    r->worker = fork();
    if (r->worker == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(pair[0]);
        worker_exit(egress_worker_main(pair[1], load, r->shared));
    }
    close(pair[1]);
    r->fd = pair[0];
    frame_reader_init(&r->in);
    cr_assert(frame_next(r, &f, 5000));
    cr_assert_eq(f.type, EGRESS_READY);
}

static int worker_stop(struct rig *r)
{
    int status;

    if (r->fd >= 0)
        close(r->fd);
    r->fd = -1;
    cr_assert_eq(waitpid(r->worker, &status, 0), r->worker);
    r->worker = 0;
    frame_reader_done(&r->in);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void rig_done(struct rig *r)
{
    char command[96];

    if (r->worker)
        cr_assert_eq(worker_stop(r), 0);
    kill(r->stub, SIGKILL);
    waitpid(r->stub, NULL, 0);
    munmap(r->shared, sizeof(*r->shared));
    snprintf(command, sizeof(command), "rm -r %s", r->dir);
    cr_assert_eq(system(command), 0);
}

/* ---- Frames ---- */

/* The next frame within msec; false: none. */
static bool frame_next(struct rig *r, struct frame *f, int msec)
{
    uint64_t until = clock_usec() + (uint64_t)msec * USEC_PER_MSEC;

    for (;;) {
        struct pollfd p = {.fd = r->fd, .events = POLLIN};
        uint64_t now = clock_usec();
        int got = frame_reader_next(&r->in, f);

        cr_assert_geq(got, 0);
        if (got > 0)
            return true;
        if (poll(&p, 1, now < until ? (int)((until - now + 999) / 1000) : 0) <= 0)
            return false;
        if (frame_reader_fill(&r->in, r->fd) <= 0)
            return false;
    }
}

static void order(struct rig *r, uint64_t id, const char *json, const char *body, size_t len)
{
    uint32_t n = (uint32_t)strlen(json);
    cleanup(buf_done) struct buf b;

    buf_init(&b, FRAME_MAX_PAYLOAD);
    cr_assert_eq(buf_append(&b, &n, 4), 0);
    cr_assert_eq(buf_puts(&b, json), 0);
    cr_assert_eq(buf_append(&b, body, len), 0);
    cr_assert_eq(frame_send(r->fd, EGRESS_START, id, b.data, b.len), 0);
}

static char *body_make(const char *model, const char *text)
{
    cleanup(json_decrefp) json_t *j = json_pack("{s:s, s:b, s:{s:b}, s:[{s:s, s:s}]}", "model", model, "stream", 1,
        "stream_options", "include_usage", 1, "messages", "role", "user", "content", text);
    return json_dumps(j, JSON_COMPACT);
}

static void sha256_hex(char out[65], const char *data)
{
    uint8_t digest[32];

    EVP_Digest(data, strlen(data), digest, NULL, EVP_sha256(), NULL);
    for (int i = 0; i < 32; i++)
        snprintf(out + 2 * i, 3, "%02x", digest[i]);
}

static void body_order(struct rig *r, uint64_t id, const char *endpoint, const char *label, const char *body,
                       int deadline_msec)
{
    cleanup(freep) char *json = NULL;
    char hex[65];

    sha256_hex(hex, body);
    cr_assert_geq(asprintf(&json, "{\"endpoint\":\"%s\",\"label\":\"%s\",\"body_sha256\":\"%s\",\"deadline_msec\":%d,"
                           "\"request_id\":\"%s\"}", endpoint, label, hex, deadline_msec, request_id), 0);
    order(r, id, json, body, strlen(body));
}

/* Order a call whose body asks the stub to behave as `model` says. */
static void start(struct rig *r, uint64_t id, const char *endpoint, const char *label, const char *model,
                  const char *text, int deadline_msec)
{
    cleanup(freep) char *body = body_make(model, text);

    body_order(r, id, endpoint, label, body, deadline_msec);
}

static void answer_done(struct answer *a)
{
    json_decref(a->end);
    buf_done(&a->text);
}

static void event_note(struct answer *a, const struct frame *f)
{
    cleanup(json_decrefp) json_t *j = NULL;
    const json_t *choice;
    const char *content;

    a->events++;
    a->bytes += f->len;
    a->done = f->len == 6 && memcmp(f->data, "[DONE]", 6) == 0;
    if (a->done)
        return;
    j = json_parse(f->data, f->len, NULL);
    cr_assert_not_null(j);
    choice = json_array_get(json_object_get(j, "choices"), 0);
    content = json_string_value(json_object_get(json_object_get(choice, "delta"), "content"));
    if (!content)
        content = json_string_value(json_object_get(json_object_get(choice, "message"), "content"));
    if (content)
        cr_assert_eq(buf_puts(&a->text, content), 0);
}

/* Take one frame of any call; it must belong to one of the n. False: none came in time. */
static bool answers_take(struct rig *r, struct answer *a, size_t n, int msec)
{
    struct frame f;

    if (!frame_next(r, &f, msec))
        return false;
    cr_assert(f.id >= 1 && f.id <= n, "frame of type %u for call %llu", f.type, (unsigned long long)f.id);
    a += f.id - 1;
    cr_assert_null(a->end, "something came after the end");
    switch (f.type) {
    case EGRESS_HEAD:
        cr_assert_eq(a->head, 0);
        memcpy(&a->head, f.data, 4);
        break;
    case EGRESS_EVENT:
        event_note(a, &f);
        break;
    case EGRESS_END:
        a->end = json_parse(f.data, f.len, NULL);
        cr_assert_not_null(a->end);
        break;
    default:
        cr_assert_fail("frame of type %u", f.type);
    }
    return true;
}

/* Everything of call 1 up to its end. */
static void answer_wait(struct rig *r, struct answer *a, int msec)
{
    *a = (struct answer) {0};
    buf_init(&a->text, 256u << 20);
    cr_assert_eq(buf_puts(&a->text, ""), 0);
    while (!a->end)
        cr_assert(answers_take(r, a, 1, msec), "no end came in time");
}

static const char *end_string(const struct answer *a, const char *member)
{
    const char *s = json_string_value(json_object_get(a->end, member));

    return s ? s : "";
}

static int end_int(const struct answer *a, const char *member)
{
    return (int)json_integer_value(json_object_get(a->end, member));
}

/* ---- The stub's log ---- */

/* How many lines of the log have this event; *ret gets the last of them (new reference). Waits msec for `want`. */
static size_t log_count(const struct rig *r, const char *event, json_t **ret, size_t want, int msec)
{
    uint64_t until = clock_usec() + (uint64_t)msec * USEC_PER_MSEC;
    size_t n;

    do {
        FILE *f = fopen(r->log, "r");
        char line[4096];

        for (n = 0; f && fgets(line, sizeof(line), f);) {
            json_t *j = json_parse(line, strlen(line), NULL);

            if (j && strcmp(json_string_value(json_object_get(j, "event")), event) == 0) {
                n++;
                if (ret) {
                    json_decref(*ret);
                    *ret = json_incref(j);
                }
            }
            json_decref(j);
        }
        if (f)
            fclose(f);
    } while (n < want && clock_usec() < until && usleep(2000) == 0);
    return n;
}

static void nothing_left(const struct rig *r)
{
    usleep(50000);
    cr_assert_eq(log_count(r, "bytes", NULL, 0, 0), 0, "the stub got bytes");
}

/* ---- Tests: how a call can go ---- */

static const char whole[] = "This answer comes from the stub cloud, word by word.";

static const struct {
    const char *mode, *result, *error, *code, *text;
    int status;
    bool done;
} ways[] = {
    {"ok", "ok", "", "", whole, 200, true},
    {"echo", "ok", "", "", "tell me", 200, true},
    {"slow-first-100", "ok", "", "", whole, 200, true},
    {"slow-head-100", "ok", "", "", whole, 200, true},
    {"slow-chunks-20", "ok", "", "", whole, 200, true},
    {"no-done", "ok", "", "", whole, 200, false},
    {"hang-done", "ok", "", "", whole, 200, true},
    {"json", "ok", "", "", whole, 200, false},
    {"cut-after-2", "failed", "cut", "", "This answer", 200, false},
    {"stop-after-2", "failed", "cut", "", "This answer", 200, false},
    {"error-after-3", "failed", "cut", "stub_broke", "This answer comes", 200, false},
    {"garbage", "failed", "protocol", "", "", 200, false},
    {"html", "failed", "protocol", "", "", 200, false},
    {"huge-event-2048", "failed", "protocol", "", "", 200, false},
    {"redirect", "failed", "protocol", "", "", 302, false},
    {"status-202", "failed", "protocol", "stub_status", "", 202, false},
    {"status-400", "rejected", "http", "stub_status", "", 400, false},
    {"status-413", "rejected", "http", "stub_status", "", 413, false},
    {"status-422", "rejected", "http", "stub_status", "", 422, false},
    {"status-401", "denied", "http", "stub_status", "", 401, false},
    {"status-403", "denied", "http", "stub_status", "", 403, false},
    {"status-404", "denied", "http", "stub_status", "", 404, false},
    {"status-408", "failed", "http", "stub_status", "", 408, false},
    {"status-429", "failed", "http", "stub_status", "", 429, false},
    {"status-500", "failed", "http", "stub_status", "", 500, false},
    {"status-503", "failed", "http", "stub_status", "", 503, false},
};

Test(egress, every_way)
{
    struct rig r;

    rig_init(&r);
    worker_start(&r);
    for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
        cleanup(freep) char *body = body_make(ways[i].mode, "tell me");
        cleanup(json_decrefp) json_t *seen = NULL;
        struct answer a;
        char hex[65];

        sha256_hex(hex, body);
        start(&r, 1, "stub", "internal", ways[i].mode, "tell me", 20000);
        answer_wait(&r, &a, 3000);
        cr_assert_str_eq(end_string(&a, "result"), ways[i].result, "%s: %s", ways[i].mode, end_string(&a, "result"));
        cr_assert_str_eq(end_string(&a, "error"), ways[i].error, "%s: %s", ways[i].mode, end_string(&a, "error"));
        cr_assert_eq(a.head, ways[i].status, "%s: %d", ways[i].mode, a.head);
        cr_assert_eq(end_int(&a, "status"), ways[i].status);
        cr_assert_str_eq(end_string(&a, "upstream_code"), ways[i].code);
        cr_assert_eq(end_int(&a, "bytes_sent"), (int)strlen(body));
        cr_assert_eq(a.done, ways[i].done);
        cr_assert_str_eq((char *)a.text.data, ways[i].text, "%s: %s", ways[i].mode, (char *)a.text.data);

        cr_assert_eq(log_count(&r, "request", &seen, i + 1, 1000), i + 1, "%s: sent once", ways[i].mode);
        cr_assert_str_eq(json_string_value(json_object_get(seen, "body_sha256")), hex);
        cr_assert_str_eq(json_string_value(json_object_get(seen, "path")), "/v1/chat/completions");
        answer_done(&a);
    }
    rig_done(&r);
}

Test(egress, headers_and_reuse)
{
    cleanup(json_decrefp) json_t *seen = NULL;
    const json_t *h;
    struct answer a;
    struct rig r;

    rig_init(&r);
    worker_start(&r);
    for (int i = 0; i < 2; i++) {
        start(&r, 1, "stub", "public", "ok", "hello", 5000);
        answer_wait(&r, &a, 3000);
        answer_done(&a);
        log_count(&r, "answered", NULL, (size_t)i + 1, 1000);
        usleep(50000);
    }
    cr_assert_eq(log_count(&r, "request", &seen, 2, 1000), 2);
    h = json_object_get(seen, "headers");
    cr_assert_str_eq(json_string_value(json_object_get(h, "user-agent")), "tern/" TERN_VERSION);
    cr_assert_str_eq(json_string_value(json_object_get(h, "accept")), "text/event-stream");
    cr_assert_str_eq(json_string_value(json_object_get(h, "content-type")), "application/json");
    cr_assert_str_eq(json_string_value(json_object_get(h, "x-client-request-id")), request_id);
    cr_assert_str_eq(json_string_value(json_object_get(seen, "id")), request_id);
    cr_assert_null(json_object_get(h, "expect"));
    cr_assert_null(json_object_get(h, "accept-encoding"));
    cr_assert_null(json_object_get(h, "authorization"));
    cr_assert_null(json_object_get(h, "cookie"));
    cr_assert_eq(json_integer_value(json_object_get(seen, "conn")), 1, "the connection was used again");
    cr_assert_eq(json_integer_value(json_object_get(seen, "seq")), 2);
    rig_done(&r);
}

static void file_write(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    cr_assert_not_null(f);
    cr_assert_geq(fputs(text, f), 0);
    fclose(f);
}

/* The same stub in Anthropic's dialect: chunks come out in our own shape, whatever way the call goes. */
Test(egress, anthropic)
{
    static const struct { const char *mode, *result, *error, *code, *text; int status; bool done; } theirs[] = {
        {"ok", "ok", "", "", whole, 200, true},
        {"echo", "ok", "", "", "tell me", 200, true},
        {"no-done", "ok", "", "", whole, 200, false},
        {"hang-done", "ok", "", "", whole, 200, true},
        {"json", "ok", "", "", whole, 200, false},
        {"cut-after-2", "failed", "cut", "", "This answer", 200, false},
        {"stop-after-2", "failed", "cut", "", "This answer", 200, false},
        {"error-after-3", "failed", "cut", "overloaded_error", "This answer comes", 200, false},
        {"garbage", "failed", "protocol", "", "", 200, false},
        {"html", "failed", "protocol", "", "", 200, false},
        {"status-529", "failed", "http", "overloaded_error", "", 529, false},
        {"status-401", "denied", "http", "stub_status", "", 401, false},
        {"status-400", "rejected", "http", "stub_status", "", 400, false},
    };
    struct cloud_endpoint *e;
    const json_t *h;
    struct rig r;
    char path[96];

    rig_init(&r);
    snprintf(path, sizeof(path), "%s/key", r.dir);
    file_write(path, "sk-ant-1\n");
    e = endpoint_add(&r, "claude", r.shared->config.endpoints[0].url);
    e->dialect = UPSTREAM_ANTHROPIC;
    snprintf(e->key_file, sizeof(e->key_file), "%s", path);
    worker_start(&r);
    for (size_t i = 0; i < ARRAY_SIZE(theirs); i++) {
        cleanup(json_decrefp) json_t *request = json_pack("{s:[{s:s, s:s}]}", "messages", "role", "user", "content", "tell me"),
                                     *sent = anthropic_body(request, theirs[i].mode), *seen = NULL;
        cleanup(freep) char *body = json_dumps(sent, JSON_COMPACT);
        struct answer a;

        body_order(&r, 1, "claude", "internal", body, 20000);
        answer_wait(&r, &a, 3000);
        cr_assert_str_eq(end_string(&a, "result"), theirs[i].result, "%s: %s", theirs[i].mode, end_string(&a, "result"));
        cr_assert_str_eq(end_string(&a, "error"), theirs[i].error, "%s: %s", theirs[i].mode, end_string(&a, "error"));
        cr_assert_eq(a.head, theirs[i].status, "%s: %d", theirs[i].mode, a.head);
        cr_assert_str_eq(end_string(&a, "upstream_code"), theirs[i].code, "%s", theirs[i].mode);
        cr_assert_eq(a.done, theirs[i].done, "%s", theirs[i].mode);
        cr_assert_str_eq((char *)a.text.data, theirs[i].text, "%s: %s", theirs[i].mode, (char *)a.text.data);

        cr_assert_eq(log_count(&r, "request", &seen, i + 1, 1000), i + 1, "%s: sent once", theirs[i].mode);
        h = json_object_get(seen, "headers");
        cr_assert_str_eq(json_string_value(json_object_get(seen, "path")), "/v1/messages");
        cr_assert_str_eq(json_string_value(json_object_get(h, "x-api-key")), "sk-ant-1");
        cr_assert_str_eq(json_string_value(json_object_get(h, "anthropic-version")), "2023-06-01");
        cr_assert_null(json_object_get(h, "authorization"));
        answer_done(&a);
    }
    rig_done(&r);
}

Test(egress, retry_after)
{
    struct answer a;
    struct rig r;

    rig_init(&r);
    worker_start(&r);
    start(&r, 1, "stub", "public", "status-429-7", "x", 5000);
    answer_wait(&r, &a, 3000);
    cr_assert_eq(end_int(&a, "retry_after_sec"), 7);
    answer_done(&a);
    start(&r, 1, "stub", "public", "status-503-date", "x", 5000);
    answer_wait(&r, &a, 3000);
    cr_assert(end_int(&a, "retry_after_sec") >= 28 && end_int(&a, "retry_after_sec") <= 30);
    answer_done(&a);
    start(&r, 1, "stub", "public", "status-503", "x", 5000);
    answer_wait(&r, &a, 3000);
    cr_assert(json_is_null(json_object_get(a.end, "retry_after_sec")));
    answer_done(&a);
    rig_done(&r);
}

/* An event just under the limit arrives whole. */
Test(egress, large_event)
{
    struct answer a;
    struct rig r;

    rig_init(&r);
    worker_start(&r);
    start(&r, 1, "stub", "public", "huge-event-1020", "x", 20000);
    answer_wait(&r, &a, 10000);
    cr_assert_str_eq(end_string(&a, "result"), "ok");
    cr_assert_eq(a.text.len, 1020 * 1024);
    answer_done(&a);
    rig_done(&r);
}

/* A body larger than any buffer on the way. */
Test(egress, large_body)
{
    cleanup(freep) char *text = malloc((4u << 20) + 1);
    cleanup(json_decrefp) json_t *seen = NULL;
    struct answer a;
    struct rig r;

    memset(text, 'y', 4u << 20);
    text[4u << 20] = 0;
    rig_init(&r);
    worker_start(&r);
    start(&r, 1, "stub", "public", "ok", text, 20000);
    answer_wait(&r, &a, 10000);
    cr_assert_str_eq(end_string(&a, "result"), "ok");
    cr_assert_gt(end_int(&a, "bytes_sent"), 4 << 20);
    cr_assert_eq(log_count(&r, "request", &seen, 1, 1000), 1);
    cr_assert_null(json_object_get(json_object_get(seen, "headers"), "expect"));
    answer_done(&a);
    rig_done(&r);
}

/* ---- Tests: time ---- */

Test(egress, timeouts)
{
    static const struct { const char *mode; int deadline_msec, at_least, at_most; bool events; } cases[] = {
        {"blackhole", 20000, 300, 800, false},          /* first event */
        {"slow-first-5000", 20000, 300, 800, false},
        {"slow-head-5000", 20000, 300, 800, false},     /* headers are no event */
        {"slow-chunks-5000", 20000, 150, 800, true},    /* between events */
        {"slow-chunks-100", 450, 400, 900, true},       /* deadline */
        {"blackhole", 120, 100, 400, false},
    };
    struct rig r;

    rig_init(&r);
    r.shared->config.endpoints[0].first_byte_timeout_msec = 300;
    r.shared->config.endpoints[0].idle_timeout_msec = 150;
    worker_start(&r);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        uint64_t began = clock_usec();
        struct answer a;
        int msec;

        start(&r, 1, "stub", "public", cases[i].mode, "x", cases[i].deadline_msec);
        answer_wait(&r, &a, 3000);
        msec = (int)((clock_usec() - began) / USEC_PER_MSEC);
        cr_assert_str_eq(end_string(&a, "result"), "failed");
        cr_assert_str_eq(end_string(&a, "error"), "timeout", "%s: %s", cases[i].mode, end_string(&a, "error"));
        /* The loop's clock is a few milliseconds coarse. */
        cr_assert(msec >= cases[i].at_least - 10 && msec <= cases[i].at_most, "%s: %d ms", cases[i].mode, msec);
        cr_assert_eq(a.events > 0, cases[i].events);
        cr_assert_eq(log_count(&r, "closed", NULL, i + 1, 1000), i + 1, "%s: upstream is closed", cases[i].mode);
        answer_done(&a);
    }
    rig_done(&r);
}

/* Cancel a call after some events: how long until the answer to that was there, and until upstream saw the connection
 * closed. */
static void cancel_once(struct rig *r, const char *mode, unsigned events, uint64_t *ret_end_usec,
                        uint64_t *ret_closed_usec)
{
    size_t requests = log_count(r, "request", NULL, 0, 0) + 1;
    cleanup(json_decrefp) json_t *closed = NULL;
    struct answer a = {0};
    uint64_t when, wall;

    buf_init(&a.text, 256u << 20);
    start(r, 1, "stub", "public", mode, "x", 20000);
    cr_assert_eq(log_count(r, "request", NULL, requests, 2000), requests);
    while (a.events < events)
        cr_assert(answers_take(r, &a, 1, 2000));

    when = clock_usec();
    wall = clock_wall_usec();
    cr_assert_eq(frame_send(r->fd, EGRESS_CANCEL, 1, NULL, 0), 0);
    while (!a.end)
        cr_assert(answers_take(r, &a, 1, 2000));
    *ret_end_usec = clock_usec() - when;
    cr_assert_str_eq(end_string(&a, "result"), "cancelled");
    answer_done(&a);
    cr_assert_eq(log_count(r, "closed", &closed, requests, 1000), requests);
    *ret_closed_usec = (uint64_t)json_integer_value(json_object_get(closed, "time_usec")) - wall;
}

/* Cancelling closes the connection upstream at once, before and after the answer has begun. The best of a few tries
 * counts, since other tests may have the processors meanwhile. */
Test(egress, cancel)
{
    static const struct { const char *mode; unsigned events; } cases[] = {
        {"blackhole", 0}, {"slow-chunks-20", 3}, {"flood-100000", 5},
    };
    struct rig r;

    rig_init(&r);
    worker_start(&r);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        uint64_t end_usec = UINT64_MAX, closed_usec = UINT64_MAX;

        for (int tries = 0; tries < 5 && MAX(end_usec, closed_usec) > 100 * USEC_PER_MSEC; tries++)
            cancel_once(&r, cases[i].mode, cases[i].events, &end_usec, &closed_usec);
        cr_assert_leq(end_usec, 100 * USEC_PER_MSEC, "%s: %llu us", cases[i].mode, (unsigned long long)end_usec);
        cr_assert_leq(closed_usec, 100 * USEC_PER_MSEC, "%s: %llu us", cases[i].mode, (unsigned long long)closed_usec);
    }
    /* Nobody minds a cancel that comes too late. */
    cr_assert_eq(frame_send(r.fd, EGRESS_CANCEL, 1, NULL, 0), 0);
    rig_done(&r);
}

/* ---- Tests: back-pressure ---- */

Test(egress, pause_and_resume)
{
    struct answer a = {0};
    struct rig r;
    unsigned before;

    rig_init(&r);
    r.shared->config.endpoints[0].idle_timeout_msec = 200;
    worker_start(&r);
    buf_init(&a.text, 256u << 20);
    start(&r, 1, "stub", "public", "flood-20000", "x", 30000);
    while (a.events < 5)
        cr_assert(answers_take(&r, &a, 1, 2000));
    cr_assert_eq(frame_send(r.fd, EGRESS_PAUSE, 1, NULL, 0), 0);
    while (answers_take(&r, &a, 1, 300))   /* what was under way; and longer than the idle timeout */
        ;
    before = a.events;
    cr_assert_lt(a.bytes, 4u << 20, "%zu bytes came", a.bytes);
    cr_assert_not(answers_take(&r, &a, 1, 400), "still paused, and not timed out");
    cr_assert_eq(log_count(&r, "answered", NULL, 0, 0), 0, "upstream was stopped");

    cr_assert_eq(frame_send(r.fd, EGRESS_RESUME, 1, NULL, 0), 0);
    while (!a.end)
        cr_assert(answers_take(&r, &a, 1, 3000));
    cr_assert_str_eq(end_string(&a, "result"), "ok", "%s", end_string(&a, "error"));
    cr_assert_gt(a.events, before);
    cr_assert_eq(a.events, 20002);
    cr_assert_eq(a.text.len, 20000 * 1024);
    cr_assert(a.done);
    answer_done(&a);
    rig_done(&r);
}

/* Pausing before anything came, and resuming twice, loses nothing; a cancel ends a paused call. */
Test(egress, pause_at_odd_times)
{
    struct answer a;
    struct rig r;

    rig_init(&r);
    worker_start(&r);
    start(&r, 1, "stub", "public", "slow-first-50", "x", 5000);
    cr_assert_eq(frame_send(r.fd, EGRESS_PAUSE, 1, NULL, 0), 0);
    usleep(200000);
    cr_assert_eq(frame_send(r.fd, EGRESS_RESUME, 1, NULL, 0), 0);
    cr_assert_eq(frame_send(r.fd, EGRESS_RESUME, 1, NULL, 0), 0);
    answer_wait(&r, &a, 3000);
    cr_assert_str_eq((char *)a.text.data, whole);
    answer_done(&a);

    start(&r, 1, "stub", "public", "slow-first-50", "x", 5000);
    cr_assert_eq(frame_send(r.fd, EGRESS_PAUSE, 1, NULL, 0), 0);
    usleep(200000);
    cr_assert_eq(frame_send(r.fd, EGRESS_CANCEL, 1, NULL, 0), 0);
    answer_wait(&r, &a, 3000);
    cr_assert_str_eq(end_string(&a, "result"), "cancelled");
    answer_done(&a);

    /* The deadline holds also while paused. */
    start(&r, 1, "stub", "public", "slow-chunks-20", "x", 300);
    cr_assert_eq(frame_send(r.fd, EGRESS_PAUSE, 1, NULL, 0), 0);
    answer_wait(&r, &a, 3000);
    cr_assert_str_eq(end_string(&a, "error"), "timeout");
    answer_done(&a);
    rig_done(&r);
}

static long rss_kib(pid_t pid)
{
    char path[64], line[256];
    long kib = -1;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    f = fopen(path, "r");
    while (f && fgets(line, sizeof(line), f))
        if (sscanf(line, "VmRSS: %ld", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib;
}

/* A front that does not read: three floods of 25 MB stop, memory stays, and later every event is there. */
Test(egress, front_does_not_read)
{
#ifdef __SANITIZE_ADDRESS__   /* which holds freed memory back */
    const long limit_kib = 256 * 1024;
#else
    const long limit_kib = 20 * 1024;
#endif
    struct answer a[3] = {0};
    struct rig r;
    long before;

    rig_init(&r);
    r.shared->config.endpoints[0].idle_timeout_msec = 300;
    worker_start(&r);
    before = rss_kib(r.worker);
    for (size_t i = 0; i < 3; i++) {
        buf_init(&a[i].text, 256u << 20);
        start(&r, i + 1, "stub", "public", "flood-20000", "x", 60000);
    }
    for (long last = 0, now = before; now > last; usleep(1000000)) {   /* until it grows no more */
        last = now;
        now = rss_kib(r.worker);
        cr_assert_lt(now - before, limit_kib, "%ld KiB more", now - before);
    }
    cr_assert_eq(log_count(&r, "answered", NULL, 0, 0), 0, "upstream was stopped");

    while (!a[0].end || !a[1].end || !a[2].end)
        cr_assert(answers_take(&r, a, 3, 5000));
    for (size_t i = 0; i < 3; i++) {
        cr_assert_str_eq(end_string(&a[i], "result"), "ok", "%s", end_string(&a[i], "error"));
        cr_assert_eq(a[i].text.len, 20000 * 1024);
        answer_done(&a[i]);
    }
    rig_done(&r);
}

Test(egress, many_at_once)
{
    enum { N = 60 };
    struct answer a[N] = {0};
    size_t ended = 0;
    struct rig r;

    rig_init(&r);
    worker_start(&r);
    for (size_t i = 0; i < N; i++) {
        char text[64];
        snprintf(text, sizeof(text), "number %zu of many", i);
        buf_init(&a[i].text, 4096);
        start(&r, i + 1, "stub", "public", i % 3 ? "echo" : "status-500", text, 20000);
    }
    while (ended < N) {
        cr_assert(answers_take(&r, a, N, 5000));
        for (ended = 0; ended < N && a[ended].end; ended++)
            ;
    }
    for (size_t i = 0; i < N; i++) {
        char text[64];
        snprintf(text, sizeof(text), "number %zu of many", i);
        if (i % 3)
            cr_assert_str_eq((char *)a[i].text.data, text);
        else
            cr_assert_eq(a[i].head, 500);
        answer_done(&a[i]);
    }
    rig_done(&r);
}

/* ---- Tests: what is refused ---- */

static void refused(struct rig *r, const char *error)
{
    struct answer a;

    answer_wait(r, &a, 3000);
    cr_assert_str_eq(end_string(&a, "result"), "failed");
    cr_assert_str_eq(end_string(&a, "error"), error, "%s", end_string(&a, "error"));
    cr_assert_eq(a.head, 0);
    cr_assert_eq(a.events, 0);
    cr_assert_eq(end_int(&a, "bytes_sent"), 0);
    answer_done(&a);
}

/* An order for the body "{}" with nothing wrong, but for the member that is given instead. */
static void order_text(char *out, size_t size, const char *instead)
{
    static const char *const members[] = {
        "\"endpoint\":\"stub\"", "\"label\":\"public\"", "\"deadline_msec\":1000",
        "\"body_sha256\":\"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a\"",
    };
    size_t n = 0;

    for (size_t i = 0; i < ARRAY_SIZE(members); i++) {
        size_t name = strcspn(members[i], ":");
        n += (size_t)snprintf(out + n, size - n, "%s%s", i ? "," : "{",
                              strncmp(members[i], instead, name) == 0 ? instead : members[i]);
    }
    snprintf(out + n, size - n, "}");
}

Test(egress, orders_that_do_not_match)
{
    /* Each takes the place of its member in an order that would be sent. */
    static const char *const bad[] = {
        "\"endpoint\":null", "\"endpoint\":7", "\"endpoint\":\"\"", "\"endpoint\":\"nobody\"", "\"endpoint\":\"far\"",
        "\"label\":null", "\"label\":0", "\"label\":\"everyone\"", "\"label\":\"private\"", "\"label\":\"secret\"",
        "\"body_sha256\":null", "\"body_sha256\":\"\"", "\"body_sha256\":\"44136fa3\"",
        "\"body_sha256\":\"54136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a\"",
        "\"deadline_msec\":null", "\"deadline_msec\":-1", "\"deadline_msec\":1.5", "\"deadline_msec\":99999999999",
    };
    static const char *const no_orders[] = {"", "{", "[]", "{}", "null", "{\"endpoint\":\"stub\"}"};
    cleanup(json_decrefp) json_t *seen = NULL;
    struct answer a;
    struct rig r;
    char json[512];
    uint32_t n = 1000;

    rig_init(&r);
    endpoint_add(&r, "far", "http://192.0.2.1/v1");
    worker_start(&r);
    for (size_t i = 0; i < ARRAY_SIZE(no_orders); i++) {
        order(&r, 1, no_orders[i], "{}", 2);
        refused(&r, EGRESS_ERR_REFUSED);
    }
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        order_text(json, sizeof(json), bad[i]);
        order(&r, 1, json, "{}", 2);
        refused(&r, EGRESS_ERR_REFUSED);
    }
    /* Another body than the one recorded, by one byte; and payloads too short for what they say. */
    order_text(json, sizeof(json), "");
    order(&r, 1, json, "{ }", 3);
    refused(&r, EGRESS_ERR_REFUSED);
    order(&r, 1, json, "", 0);
    refused(&r, EGRESS_ERR_REFUSED);
    cr_assert_eq(frame_send(r.fd, EGRESS_START, 1, &n, 4), 0);
    refused(&r, EGRESS_ERR_REFUSED);
    cr_assert_eq(frame_send(r.fd, EGRESS_START, 1, &n, 3), 0);
    refused(&r, EGRESS_ERR_REFUSED);
    cr_assert_eq(frame_send(r.fd, EGRESS_START, 1, NULL, 0), 0);
    refused(&r, EGRESS_ERR_REFUSED);
    nothing_left(&r);

    /* The same order with nothing wrong does arrive; an id that could not be ours is not sent along. */
    order(&r, 1, json, "{}", 2);
    answer_wait(&r, &a, 3000);
    cr_assert_eq(a.head, 200);
    answer_done(&a);
    strcpy(strrchr(json, '}'), ",\"request_id\":\"01ARZ3NDEKTSV4RRFFQ69G5F\\r\\n\"}");
    order(&r, 1, json, "{}", 2);
    answer_wait(&r, &a, 3000);
    cr_assert_eq(a.head, 200);
    answer_done(&a);
    cr_assert_eq(log_count(&r, "request", &seen, 2, 1000), 2);
    cr_assert_null(json_object_get(json_object_get(seen, "headers"), "x-client-request-id"));
    rig_done(&r);
}

Test(egress, keys)
{
    static const char *const bad[] = {"", " \n", "two words", "sk\r\nX-Evil: 1\r\n", "sk\x7f", "sk-gr\xc3\xbc\xc3\x9f"};
    struct cloud_endpoint *e;
    size_t requests = 0;
    char path[256];
    struct answer a;
    struct rig r;

    rig_init(&r);
    e = &r.shared->config.endpoints[0];
    snprintf(path, sizeof(path), "%s/key", r.dir);
    snprintf(e->key_file, sizeof(e->key_file), "%s", path);
    e = endpoint_add(&r, "credential", e->url);
    strcpy(e->key_file, "key");
    e = endpoint_add(&r, "lost", r.shared->config.endpoints[0].url);
    strcpy(e->key_file, "another");
    e = endpoint_add(&r, "folder", r.shared->config.endpoints[0].url);
    strcpy(e->key_file, r.dir);
    setenv("CREDENTIALS_DIRECTORY", r.dir, 1);
    worker_start(&r);

    start(&r, 1, "stub", "public", "ok", "x", 5000);   /* no file yet */
    refused(&r, EGRESS_ERR_KEY);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        file_write(path, bad[i]);
        start(&r, 1, "stub", "public", "ok", "x", 5000);
        refused(&r, EGRESS_ERR_KEY);
    }
    start(&r, 1, "lost", "public", "ok", "x", 5000);
    refused(&r, EGRESS_ERR_KEY);
    start(&r, 1, "folder", "public", "ok", "x", 5000);
    refused(&r, EGRESS_ERR_KEY);
    nothing_left(&r);

    /* Blanks around it are no part of a key, and a new one is used at once. */
    for (int i = 0; i < 4; i++) {
        cleanup(json_decrefp) json_t *seen = NULL;
        file_write(path, i % 2 ? "sk-second" : " sk-first\r\n");
        start(&r, 1, i < 2 ? "stub" : "credential", "public", "ok", "x", 5000);
        answer_wait(&r, &a, 3000);
        cr_assert_str_eq(end_string(&a, "result"), "ok");
        answer_done(&a);
        requests++;
        cr_assert_eq(log_count(&r, "request", &seen, requests, 1000), requests);
        cr_assert_str_eq(json_string_value(json_object_get(json_object_get(seen, "headers"), "authorization")),
                         i % 2 ? "Bearer sk-second" : "Bearer sk-first");
    }
    rig_done(&r);
}

/* ---- Tests: the network ---- */

/* Name lookup, in place of the C library's: one name takes long. */
__attribute__((visibility("default")))
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **ret)
{
    int (*next)(const char *, const char *, const struct addrinfo *, struct addrinfo **);

    if (node && strcmp(node, "slow.invalid") == 0) {
        sleep(3);
        return EAI_NONAME;
    }
    *(void **)&next = dlsym(RTLD_NEXT, "getaddrinfo");
    return next(node, service, hints, ret);
}

Test(egress, cannot_connect)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(addr);
    cleanup(closep) int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct cloud_endpoint *e;
    struct answer a;
    struct frame f;
    struct rig r;
    char url[64];
    uint64_t when;

    /* A port that is taken and where nobody listens. */
    cr_assert_eq(bind(s, (struct sockaddr *)&addr, len), 0);
    cr_assert_eq(getsockname(s, (struct sockaddr *)&addr, &len), 0);
    snprintf(url, sizeof(url), "http://127.0.0.1:%u", ntohs(addr.sin_port));
    rig_init(&r);
    endpoint_add(&r, "closed", url);
    endpoint_add(&r, "nowhere", "https://nowhere.invalid/v1");
    e = endpoint_add(&r, "slow", "https://slow.invalid/v1");
    e->connect_timeout_msec = 400;
    worker_start(&r);
    start(&r, 1, "closed", "public", "ok", "x", 5000);
    refused(&r, EGRESS_ERR_CONNECT);
    start(&r, 1, "nowhere", "public", "ok", "x", 5000);
    refused(&r, EGRESS_ERR_CONNECT);

    /* Neither a timeout nor a cancel waits for a name to be found, and meanwhile the loop goes on. */
    when = clock_usec();
    start(&r, 1, "slow", "public", "ok", "x", 5000);
    cr_assert_eq(frame_send(r.fd, EGRESS_PING, 7, NULL, 0), 0);
    cr_assert(frame_next(&r, &f, 200));
    cr_assert_eq(f.type, EGRESS_PONG);
    refused(&r, EGRESS_ERR_CONNECT);
    cr_assert_lt(clock_usec() - when, 1500 * USEC_PER_MSEC);

    start(&r, 1, "slow", "public", "ok", "x", 5000);
    usleep(100000);
    when = clock_usec();
    cr_assert_eq(frame_send(r.fd, EGRESS_CANCEL, 1, NULL, 0), 0);
    cr_assert_eq(frame_send(r.fd, EGRESS_PING, 8, NULL, 0), 0);
    answer_wait(&r, &a, 3000);
    cr_assert_str_eq(end_string(&a, "result"), "cancelled");
    answer_done(&a);
    cr_assert(frame_next(&r, &f, 3000));
    cr_assert_eq(f.type, EGRESS_PONG);
    cr_assert_lt(clock_usec() - when, 300 * USEC_PER_MSEC);
    rig_done(&r);
}

Test(egress, listener_that_never_accepts_tls)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(addr);
    cleanup(closep) int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct cloud_endpoint *e;
    struct rig r;
    char url[64];

    cr_assert_eq(bind(s, (struct sockaddr *)&addr, len), 0);
    cr_assert_eq(listen(s, 5), 0);
    cr_assert_eq(getsockname(s, (struct sockaddr *)&addr, &len), 0);
    snprintf(url, sizeof(url), "https://127.0.0.1:%u", ntohs(addr.sin_port));
    rig_init(&r);
    e = endpoint_add(&r, "mute", url);
    e->connect_timeout_msec = 300;
    worker_start(&r);
    start(&r, 1, "mute", "public", "ok", "x", 5000);
    refused(&r, EGRESS_ERR_CONNECT);
    rig_done(&r);
}

/* Proxies of the environment are not asked. */
Test(egress, no_proxy_from_the_environment)
{
    static const char *const names[] = {"http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"};
    struct answer a;
    struct rig r;

    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        setenv(names[i], "http://127.0.0.1:1", 1);
    rig_init(&r);
    worker_start(&r);
    start(&r, 1, "stub", "public", "ok", "x", 5000);
    answer_wait(&r, &a, 3000);
    cr_assert_str_eq(end_string(&a, "result"), "ok");
    answer_done(&a);
    rig_done(&r);
}

/* Write a new key and a certificate for `name` signed with itself. */
static void certificate_make(const char *cert_path, const char *key_path, const char *name)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = X509_new();
    X509_EXTENSION *alt;
    char value[128];
    FILE *f;

    snprintf(value, sizeof(value), "%s", name);
    alt = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, value);
    cr_assert(key && cert && alt);
    X509_set_version(cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
    X509_gmtime_adj(X509_getm_notBefore(cert), -60);
    X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
    X509_set_pubkey(cert, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC, (const uint8_t *)"stub", -1, -1, 0);
    X509_set_issuer_name(cert, X509_get_subject_name(cert));
    X509_add_ext(cert, alt, -1);
    cr_assert_gt(X509_sign(cert, key, EVP_sha256()), 0);

    f = fopen(cert_path, "w");
    cr_assert_eq(PEM_write_X509(f, cert), 1);
    fclose(f);
    f = fopen(key_path, "w");
    cr_assert_eq(PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL), 1);
    fclose(f);
    X509_EXTENSION_free(alt);
    X509_free(cert);
    EVP_PKEY_free(key);
}

/* Over TLS to the certificate we trust; not one byte of a request to any other. */
Test(egress, tls)
{
    char cert[128], key[128], other[128], url[64], name_url[64];
    struct cloud_endpoint *e;
    struct answer a;
    struct rig r;

    rig_init(&r);
    kill(r.stub, SIGKILL);
    waitpid(r.stub, NULL, 0);
    snprintf(cert, sizeof(cert), "%s/cert.pem", r.dir);
    snprintf(key, sizeof(key), "%s/key.pem", r.dir);
    snprintf(other, sizeof(other), "%s/other.pem", r.dir);
    certificate_make(other, key, "IP:127.0.0.1");
    certificate_make(cert, key, "IP:127.0.0.1");
    stub_start(&r, cert, key);
    snprintf(url, sizeof(url), "https://127.0.0.1:%u/v1", r.port);
    snprintf(name_url, sizeof(name_url), "https://localhost:%u/v1", r.port);

    e = endpoint_add(&r, "trusted", url);
    strcpy(e->ca_file, cert);
    e = endpoint_add(&r, "system", url);
    e = endpoint_add(&r, "other", url);
    strcpy(e->ca_file, other);
    e = endpoint_add(&r, "name", name_url);
    strcpy(e->ca_file, cert);
    e = endpoint_add(&r, "nofile", url);
    snprintf(e->ca_file, sizeof(e->ca_file), "%s/absent.pem", r.dir);
    snprintf(url, sizeof(url), "http://127.0.0.1:%u/v1", r.port);
    endpoint_add(&r, "plain", url);
    worker_start(&r);

    for (const char **bad = (const char *[]) {"system", "other", "name", "nofile", NULL}; *bad; bad++) {
        start(&r, 1, *bad, "public", "ok", "x", 5000);
        refused(&r, EGRESS_ERR_TLS);
    }
    nothing_left(&r);

    start(&r, 1, "trusted", "public", "ok", "x", 5000);
    answer_wait(&r, &a, 3000);
    cr_assert_str_eq(end_string(&a, "result"), "ok", "%s", end_string(&a, "error"));
    cr_assert_str_eq((char *)a.text.data, whole);
    answer_done(&a);

    /* The trusted endpoint's connection is open now, and still none of the others may use it. */
    usleep(50000);
    start(&r, 1, "other", "public", "ok", "x", 5000);
    refused(&r, EGRESS_ERR_TLS);
    cr_assert_eq(log_count(&r, "bytes", NULL, 1, 0), 1);

    start(&r, 1, "plain", "public", "ok", "x", 5000);
    answer_wait(&r, &a, 3000);
    cr_assert_str_eq(end_string(&a, "result"), "failed");
    answer_done(&a);
    rig_done(&r);
}

/* ---- Tests: the worker's own life ---- */

Test(egress, ping_reload_and_dumps)
{
    cleanup(json_decrefp) json_t *ready = NULL;
    struct answer a;
    struct frame f;
    struct rig r;

    rig_init(&r);
    worker_start(&r);
    cr_assert_eq(frame_send(r.fd, EGRESS_PING, 42, NULL, 0), 0);
    cr_assert(frame_next(&r, &f, 1000));
    cr_assert(f.type == EGRESS_PONG && f.id == 42);

    start(&r, 1, "stub", "private", "ok", "x", 5000);
    refused(&r, EGRESS_ERR_REFUSED);

    /* A configuration that cannot be read changes nothing. */
    r.shared->bad = true;
    r.shared->config.endpoints[0].policy.labels = 1u << LABEL_PRIVATE;
    endpoint_add(&r, "second", r.shared->config.endpoints[0].url);
    cr_assert_eq(frame_send(r.fd, EGRESS_RELOAD, 0, NULL, 0), 0);
    cr_assert(frame_next(&r, &f, 1000));
    cr_assert_eq(f.type, EGRESS_FAILED);
    cr_assert_eq(f.len, strlen("tern.conf:7: told to fail"));
    cr_assert_eq(memcmp(f.data, "tern.conf:7: told to fail", f.len), 0);
    start(&r, 1, "stub", "private", "ok", "x", 5000);
    refused(&r, EGRESS_ERR_REFUSED);
    nothing_left(&r);

    r.shared->bad = false;
    cr_assert_eq(frame_send(r.fd, EGRESS_RELOAD, 0, NULL, 0), 0);
    cr_assert(frame_next(&r, &f, 1000));
    cr_assert_eq(f.type, EGRESS_READY);
    ready = json_parse(f.data, f.len, NULL);
    cr_assert_str_eq(json_string_value(json_array_get(json_object_get(ready, "endpoints"), 1)), "second");
    start(&r, 1, "stub", "private", "ok", "x", 5000);
    answer_wait(&r, &a, 3000);
    cr_assert_str_eq(end_string(&a, "result"), "ok");
    answer_done(&a);
    start(&r, 1, "stub", "public", "ok", "x", 5000);
    refused(&r, EGRESS_ERR_REFUSED);
#ifndef __SANITIZE_ADDRESS__
    cr_assert_eq(r.shared->dumpable, 0);
#endif
    rig_done(&r);
}

/* A worker whose front is gone hangs up upstream and leaves. */
Test(egress, front_goes)
{
    struct rig r;

    rig_init(&r);
    worker_start(&r);
    start(&r, 1, "stub", "public", "blackhole", "x", 20000);
    start(&r, 2, "stub", "public", "slow-chunks-50", "x", 20000);
    cr_assert_eq(log_count(&r, "request", NULL, 2, 2000), 2);
    cr_assert_eq(worker_stop(&r), 0);
    cr_assert_eq(log_count(&r, "closed", NULL, 2, 1000), 2);
    rig_done(&r);
}

Test(egress, configuration_fails_at_start)
{
    struct frame f;
    struct rig r;
    int pair[2], status;

    rig_init(&r);
    r.shared->bad = true;
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    r.worker = fork();
    if (r.worker == 0)
        worker_exit(egress_worker_main(pair[1], load, r.shared));
    close(pair[1]);
    r.fd = pair[0];
    frame_reader_init(&r.in);
    cr_assert(frame_next(&r, &f, 3000));
    cr_assert_eq(f.type, EGRESS_FAILED);
    status = worker_stop(&r);
    cr_assert_eq(status, 1);
    rig_done(&r);
}

/* A front that sends what makes no sense is not served any longer. */
Test(egress, nonsense_from_the_front)
{
    static const uint8_t huge[FRAME_HEADER_BYTES] = {1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff};
    struct rig r;

    rig_init(&r);
    for (int i = 0; i < 3; i++) {
        worker_start(&r);
        if (i == 0) {
            cr_assert_eq(frame_send(r.fd, 999, 1, "x", 1), 0);
        } else if (i == 1) {
            cr_assert_eq(write(r.fd, huge, sizeof(huge)), sizeof(huge));
        } else {
            start(&r, 1, "stub", "public", "blackhole", "x", 20000);
            start(&r, 1, "stub", "public", "blackhole", "x", 20000);
        }
        struct pollfd p = {.fd = r.fd, .events = POLLIN};
        cr_assert_eq(poll(&p, 1, 3000), 1);
        cr_assert_eq(worker_stop(&r), 1);
    }
    rig_done(&r);
}
