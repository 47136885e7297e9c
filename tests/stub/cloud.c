/* stub_cloud: a fake of an OpenAI-compatible server, and of Anthropic's, for the tests, one thread a connection, plain
 * sockets or TLS.
 *
 *     stub_cloud [--port P] [--log FILE] [--mode MODE] [--answer TEXT] [--tls CERT KEY]
 *
 * It listens on 127.0.0.1 (port 0: any) and prints "listening PORT". POST …/chat/completions, and …/messages in
 * Anthropic's way (anthropic.c), behave as MODE says, which is the request's `model` when that begins with the name of a
 * mode, else --mode, else "ok". N is a number after the name, as in "status-429" or "slow-chunks-200":
 *
 *     ok               the answer word by word, a usage chunk when asked for, [DONE]; not streaming: one JSON object
 *     echo             as ok, the answer being the last user message
 *     slow-first-N     as ok, N ms (1000) before anything is answered
 *     slow-head-N      as ok, the headers at once and the first event after N ms (1000)
 *     slow-chunks-N    as ok, N ms (200) between words
 *     cut-after-N      closes the connection after N words (1)
 *     stop-after-N     ends the stream properly after N words (1), with neither finish_reason nor [DONE]
 *     error-after-N    an error event after N words (1)
 *     no-done          as ok, without [DONE];    hang-done: as ok, never ending the response after [DONE]
 *     json             one JSON object though a stream was asked for
 *     flood-N          N chunks (10000) of 1 KiB as fast as they are taken
 *     huge-event-N     one event of N KiB (2048)
 *     garbage          events that are not JSON;    html: a page with status 200
 *     status-N         an error object with that status (500); "status-429-7" adds Retry-After: 7, "…-date" a date
 *     redirect         302 to another path of this server
 *     blackhole        reads the request and never answers
 *
 * Where the answer would be the fixed one, a request with tools is answered with calls of them, one with a response_format
 * in that format, and one that ends in a tool's results with these; see plain.h.
 *
 * The log has one JSON line an event, written at once: "bytes" when the first byte of a request came, "request" when
 * the whole body came, "answered" when the answer was written, "closed" when the client left in the middle of either.
 * Each has conn, seq (request on this connection) and time; "request" has path, headers, bytes, body_sha256, model and
 * id, which is x-client-request-id or the body's `user` or metadata.id; "closed" has `during`, and in a request how
 * many bytes of the body had come. */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include "base/chat.h"
#include "base/clock.h"
#include "tests/stub/plain.h"
#include "tests/stub/stub.h"

#define MAX_REQUEST (64u << 20)
#define MAX_HEAD 65536

static const char *default_mode = "ok";
static const char *fixed_answer = "This answer comes from the stub cloud, word by word.";
static int log_fd = -1;
static SSL_CTX *tls;

/* ---- Log ---- */

/* Takes `more`. One write() a line, so that threads do not mix. */
static void log_event(const struct conn *c, const char *event, json_t *more)
{
    char when[CLOCK_RFC3339_BYTES];
    uint64_t now = clock_wall_usec();
    json_t *line;
    char *text;

    if (log_fd < 0) {
        json_decref(more);
        return;
    }
    clock_rfc3339(when, now);
    line = json_pack("{s:s, s:s, s:I, s:i, s:i}", "event", event, "time", when, "time_usec", (json_int_t)now,
                     "conn", (int)c->number, "seq", (int)c->seq);
    if (more)
        json_object_update(line, more);
    json_decref(more);
    text = json_dumps(line, JSON_COMPACT);
    json_decref(line);
    if (log_fd >= 0 && text)
        dprintf(log_fd, "%s\n", text);
    free(text);
}

static json_t *sha256_json(const void *data, size_t len)
{
    uint8_t digest[32];
    char hex[65];

    EVP_Digest(data, len, digest, NULL, EVP_sha256(), NULL);
    for (size_t i = 0; i < sizeof(digest); i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    return json_string(hex);
}

/* ---- Bytes ---- */

static ssize_t conn_read(struct conn *c)
{
    char chunk[16384];
    ssize_t n = c->ssl ? SSL_read(c->ssl, chunk, sizeof(chunk)) : read(c->fd, chunk, sizeof(chunk));

    return n > 0 && buf_append(&c->in, chunk, (size_t)n) == 0 ? n : 0;
}

void conn_write(struct conn *c, const void *data, size_t len)
{
    const char *p = data;

    while (len > 0 && !c->failed) {
        ssize_t n = c->ssl ? SSL_write(c->ssl, p, (int)MIN(len, 1u << 20)) : send(c->fd, p, len, MSG_NOSIGNAL);

        if (n <= 0) {
            c->failed = true;
            return;
        }
        p += n;
        len -= (size_t)n;
    }
}

void conn_wait(struct conn *c, int msec)
{
    struct pollfd p = {.fd = c->fd, .events = POLLRDHUP};

    if (!c->failed && poll(&p, 1, msec) > 0)
        c->failed = true;
}

/* ---- Requests ---- */

/* Wait for the head; the first byte is logged as it comes. Answers where the head ends, or 0 when the client left. */
static size_t head_read(struct conn *c)
{
    bool logged = false;

    for (;;) {
        char *end = c->in.len ? memmem(c->in.data, c->in.len, "\r\n\r\n", 4) : NULL;

        if (c->in.len > 0 && !logged) {
            c->seq++;
            log_event(c, "bytes", NULL);
            logged = true;
        }
        if (end)
            return (size_t)(end + 4 - (char *)c->in.data);
        if (c->in.len > MAX_HEAD || conn_read(c) == 0)
            return 0;
    }
}

static json_t *headers_parse(const char *head, size_t len)
{
    json_t *headers = json_object();
    const char *end = head + len, *line = memchr(head, '\n', len);

    while (line && ++line < end && *line != '\r') {
        const char *colon = memchr(line, ':', (size_t)(end - line)), *eol = memchr(line, '\r', (size_t)(end - line));
        char name[128] = "", value[1024] = "";

        if (!colon || !eol || colon > eol)
            break;
        for (size_t i = 0; line + i < colon && i < sizeof(name) - 1; i++)
            name[i] = (char)tolower((unsigned char)line[i]);
        colon += 1 + strspn(colon + 1, " ");
        snprintf(value, sizeof(value), "%.*s", (int)(eol - colon), colon);
        json_object_set_new(headers, name, json_string(value));
        line = eol + 1;
    }
    return headers;
}

const char *header(const struct request *q, const char *name)
{
    const char *v = json_string_value(json_object_get(q->headers, name));

    return v ? v : "";
}

static const char *request_id(const struct request *q)
{
    const char *id = header(q, "x-client-request-id");

    if (!*id)
        id = json_string_value(json_object_get(q->body, "user"));
    if (!id)
        id = json_string_value(json_object_get(json_object_get(q->body, "metadata"), "id"));
    return id;
}

static const char *const modes[] = {
    "ok", "echo", "slow-first", "slow-head", "slow-chunks", "cut-after", "stop-after", "error-after", "no-done",
    "hang-done", "json", "flood", "huge-event", "garbage", "html", "status", "redirect", "blackhole",
};

static bool is_mode(const char *s)
{
    for (size_t i = 0; s && i < ARRAY_SIZE(modes); i++) {
        size_t n = strlen(modes[i]);
        if (strncmp(s, modes[i], n) == 0 && (s[n] == 0 || s[n] == '-'))
            return true;
    }
    return false;
}

bool mode_is(const struct request *q, const char *name, int *n)
{
    size_t len = strlen(name);

    if (strncmp(q->mode, name, len) != 0 || (q->mode[len] && q->mode[len] != '-'))
        return false;
    if (q->mode[len] && n)
        *n = atoi(q->mode + len + 1);
    return true;
}

static void request_done(struct request *q)
{
    json_decref(q->headers);
    json_decref(q->body);
}

/* Read one whole request; false when the client left first. What it points to lives until the next read. */
static bool request_read(struct conn *c, struct request *ret)
{
    struct request q = {0};
    const char *model;
    char want[1024];
    int fields;

    q.head_len = head_read(c);
    if (q.head_len == 0) {
        if (c->in.len > 0)
            log_event(c, "closed", json_pack("{s:s, s:I}", "during", "head", "bytes", (json_int_t)c->in.len));
        return false;
    }
    fields = sscanf((char *)c->in.data, "%15s %255s", q.method, q.path);
    q.headers = headers_parse((char *)c->in.data, q.head_len);
    q.body_len = strtoul(header(&q, "content-length"), NULL, 10);
    if (fields != 2 || q.body_len > MAX_REQUEST - MAX_HEAD) {
        request_done(&q);
        return false;
    }
    if (strcasecmp(header(&q, "expect"), "100-continue") == 0)
        conn_write(c, "HTTP/1.1 100 Continue\r\n\r\n", 25);

    while (c->in.len < q.head_len + q.body_len)
        if (conn_read(c) == 0) {
            log_event(c, "closed", json_pack("{s:s, s:I, s:I}", "during", "request",
                                             "bytes", (json_int_t)(c->in.len - q.head_len),
                                             "of", (json_int_t)q.body_len));
            request_done(&q);
            return false;
        }

    q.bytes = c->in.data + q.head_len;
    q.body = json_parse(q.bytes, q.body_len, NULL);
    model = json_string_value(json_object_get(q.body, "model"));
    snprintf(want, sizeof(want), "%s", is_mode(model) ? model : default_mode);
    snprintf(q.mode, sizeof(q.mode), "%.127s", want);
    log_event(c, "request", json_pack("{s:s, s:s, s:s?, s:s?, s:s, s:I, s:o, s:O}", "method", q.method, "path", q.path,
                                      "model", model, "id", request_id(&q), "mode", q.mode,
                                      "bytes", (json_int_t)q.body_len,
                                      "body_sha256", sha256_json(q.bytes, q.body_len), "headers", q.headers));
    *ret = q;
    return true;
}

/* ---- Answers ---- */

static void answer_whole(struct conn *c, int status, const char *type, const char *extra, const char *body, size_t len)
{
    char head[1024];
    int n = snprintf(head, sizeof(head), "HTTP/1.1 %d Stub\r\nContent-Type: %s\r\nContent-Length: %zu\r\n%s\r\n",
                     status, type, len, extra);

    conn_write(c, head, (size_t)n);
    conn_write(c, body, len);
}

void answer_json(struct conn *c, int status, const char *extra, json_t *j)
{
    cleanup(freep) char *text = json_dumps(j, JSON_COMPACT);

    json_decref(j);
    answer_whole(c, status, "application/json", extra, text, strlen(text));
}

static void answer_error(struct conn *c, int status, const char *extra, const char *code)
{
    answer_json(c, status, extra, json_pack("{s:{s:s, s:s, s:n, s:s}}", "error", "message",
                                            "The stub cloud was told to say so.", "type", "stub_error", "param",
                                            "code", code));
}

void stream_begin(struct conn *c)
{
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                               "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
    conn_write(c, head, sizeof(head) - 1);
}

/* One event as one HTTP chunk. */
static void stream_event(struct conn *c, const char *data)
{
    cleanup(buf_done) struct buf b;

    buf_init(&b, 64u << 20);
    if (buf_printf(&b, "%zx\r\ndata: %s\n\n\r\n", strlen(data) + 8, data) == 0)
        conn_write(c, b.data, b.len);
}

void stream_end(struct conn *c)
{
    conn_write(c, "0\r\n\r\n", 5);
}

const char *request_model(const struct request *q)
{
    const char *model = json_string_value(json_object_get(q->body, "model"));

    return model ? model : "stub";
}

bool stream_wanted(const struct request *q)
{
    return json_is_true(json_object_get(q->body, "stream"));
}

static bool usage_wanted(const struct request *q)
{
    return json_is_true(json_object_get(json_object_get(q->body, "stream_options"), "include_usage"));
}

/* A chunk with the choices given (taken); usage is null but on the last chunk, when it was asked for. */
static void stream_chunk(struct conn *c, const struct request *q, json_t *choices, json_t *usage)
{
    json_t *j = json_pack("{s:s, s:s, s:I, s:s, s:o}", "id", "chatcmpl-stub", "object", "chat.completion.chunk",
                          "created", (json_int_t)1700000000, "model", request_model(q), "choices", choices);
    cleanup(freep) char *text = NULL;

    if (usage_wanted(q))
        json_object_set_new(j, "usage", usage ? usage : json_null());
    text = json_dumps(j, JSON_COMPACT);
    json_decref(j);
    stream_event(c, text);
}

static void stream_delta(struct conn *c, const struct request *q, const char *role, const char *content,
                         const char *finish)
{
    json_t *delta = json_object();

    if (role)
        json_object_set_new(delta, "role", json_string(role));
    if (content)
        json_object_set_new(delta, "content", json_string(content));
    stream_chunk(c, q, json_pack("[{s:i, s:o, s:n, s:s?}]", "index", 0, "delta", delta, "logprobs",
                                 "finish_reason", finish), NULL);
}

size_t word_len(const char *s)
{
    size_t n = strspn(s, " ");

    return n + strcspn(s + n, " ");
}

int words_in(const char *s)
{
    int words = 0;

    for (size_t n; (n = word_len(s)) > 0; s += n)
        words++;
    return words;
}

static json_t *usage_json(const struct request *q, const char *answer)
{
    const json_t *messages = json_object_get(q->body, "messages"), *m;
    int in = 0, out = words_in(answer);
    size_t i;

    json_array_foreach(messages, i, m) {
        const char *content = json_string_value(json_object_get(m, "content"));
        in += content ? words_in(content) : 0;
    }
    return json_pack("{s:i, s:i, s:i}", "prompt_tokens", in, "completion_tokens", out, "total_tokens", in + out);
}

static void answer_object(struct conn *c, const struct request *q, const char *answer)
{
    answer_json(c, 200, "", json_pack("{s:s, s:s, s:I, s:s, s:[{s:i, s:{s:s, s:s}, s:n, s:s}], s:o}",
        "id", "chatcmpl-stub", "object", "chat.completion", "created", (json_int_t)1700000000,
        "model", request_model(q), "choices", "index", 0, "message",
        "role", "assistant", "content", answer, "logprobs", "finish_reason", "stop",
        "usage", usage_json(q, answer)));
}

/* The answer word by word, in the ways a stream can go. */
static void answer_stream(struct conn *c, const struct request *q, const char *answer)
{
    const char *rest = answer;
    int gap = mode_is(q, "slow-chunks", NULL) ? 200 : 0, head = 1000, limit = 1, words = 0;
    bool limited = mode_is(q, "cut-after", &limit) || mode_is(q, "stop-after", &limit) ||
                   mode_is(q, "error-after", &limit);

    mode_is(q, "slow-chunks", &gap);
    stream_begin(c);
    if (mode_is(q, "slow-head", &head))
        conn_wait(c, head);
    stream_delta(c, q, "assistant", "", NULL);
    for (size_t n; !c->failed && !(limited && words == limit) && (n = word_len(rest)) > 0; rest += n, words++) {
        cleanup(freep) char *word = strndup(rest, n);
        conn_wait(c, gap);
        stream_delta(c, q, NULL, word, NULL);
    }
    if (mode_is(q, "cut-after", NULL)) {
        c->failed = true;
        return;
    }
    if (mode_is(q, "error-after", NULL))
        stream_event(c, "{\"error\":{\"message\":\"It broke.\",\"type\":\"server_error\",\"code\":\"stub_broke\"}}");
    if (!limited) {
        stream_delta(c, q, NULL, NULL, "stop");
        if (usage_wanted(q))
            stream_chunk(c, q, json_array(), usage_json(q, answer));
        if (!mode_is(q, "no-done", NULL))
            stream_event(c, "[DONE]");
    }
    if (mode_is(q, "hang-done", NULL))
        conn_wait(c, -1);
    stream_end(c);
}

/* A call whole, or in a stream: its name, then its arguments a few bytes at a time. */
static void stream_call(struct conn *c, const struct request *q, size_t i, const json_t *call)
{
    const json_t *f = json_object_get(call, "function");
    const char *rest = json_string_value(json_object_get(f, "arguments"));

    stream_chunk(c, q, json_pack("[{s:i, s:{s:[{s:i, s:O, s:s, s:{s:O, s:s}}]}, s:n}]", "index", 0, "delta", "tool_calls",
                 "index", (int)i, "id", json_object_get(call, "id"), "type", "function", "function",
                 "name", json_object_get(f, "name"), "arguments", "", "finish_reason"), NULL);
    for (size_t n; *rest; rest += n) {
        n = MIN(strlen(rest), 5u);
        stream_chunk(c, q, json_pack("[{s:i, s:{s:[{s:i, s:{s:s%}}]}, s:n}]", "index", 0, "delta", "tool_calls",
                     "index", (int)i, "function", "arguments", rest, n, "finish_reason"), NULL);
    }
}

static void answer_calls(struct conn *c, const struct request *q, json_t *calls)
{
    const json_t *call;
    size_t i;

    if (!stream_wanted(q) || mode_is(q, "json", NULL)) {
        answer_json(c, 200, "", json_pack("{s:s, s:s, s:I, s:s, s:[{s:i, s:{s:s, s:n, s:O}, s:n, s:s}], s:o}",
            "id", "chatcmpl-stub", "object", "chat.completion", "created", (json_int_t)1700000000,
            "model", request_model(q), "choices", "index", 0, "message",
            "role", "assistant", "content", "tool_calls", calls, "logprobs", "finish_reason", "tool_calls",
            "usage", usage_json(q, "call")));
        return;
    }
    stream_begin(c);
    stream_delta(c, q, "assistant", NULL, NULL);
    json_array_foreach(calls, i, call)
        stream_call(c, q, i, call);
    stream_delta(c, q, NULL, NULL, "tool_calls");
    if (usage_wanted(q))
        stream_chunk(c, q, json_array(), usage_json(q, "call"));
    stream_event(c, "[DONE]");
    stream_end(c);
}

static void answer_flood(struct conn *c, const struct request *q, int n)
{
    char text[1025];

    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = 0;
    stream_begin(c);
    for (int i = 0; i < n && !c->failed; i++)
        stream_delta(c, q, NULL, text, NULL);
    stream_delta(c, q, NULL, NULL, "stop");
    stream_event(c, "[DONE]");
    stream_end(c);
}

static void answer_huge(struct conn *c, const struct request *q, int kib)
{
    cleanup(freep) char *text = malloc((size_t)kib * 1024 + 1);

    memset(text, 'x', (size_t)kib * 1024);
    text[(size_t)kib * 1024] = 0;
    stream_begin(c);
    stream_delta(c, q, NULL, text, "stop");
    stream_event(c, "[DONE]");
    stream_end(c);
}

static bool path_is(const struct request *q, const char *end)
{
    size_t n = strlen(q->path), len = strlen(end);

    return n >= len && strcmp(q->path + n - len, end) == 0;
}

static void answer_status(struct conn *c, const struct request *q)
{
    int status = 500, after = 0;
    char extra[128] = "", when[64];
    const char *more = strchr(q->mode + MIN(strlen(q->mode), sizeof("status-") - 1), '-');

    mode_is(q, "status", &status);
    if (more && strcmp(more, "-date") == 0) {
        time_t t = time(NULL) + 30;
        struct tm tm;
        strftime(when, sizeof(when), "%a, %d %b %Y %H:%M:%S GMT", gmtime_r(&t, &tm));
        snprintf(extra, sizeof(extra), "Retry-After: %s\r\n", when);
    } else if (more && (after = atoi(more + 1)) > 0) {
        snprintf(extra, sizeof(extra), "Retry-After: %d\r\n", after);
    }
    if (path_is(q, "/messages"))
        anthropic_error(c, status, extra, status == 529 ? "overloaded_error" : "stub_status", "As told.");
    else
        answer_error(c, status, extra, "stub_status");
}

static void answer(struct conn *c, const struct request *q)
{
    bool theirs = path_is(q, "/messages");
    cleanup(json_decrefp) json_t *calls = NULL, *request = NULL;
    cleanup(freep) char *plain = NULL;
    const char *text = fixed_answer, *why = NULL;
    int n;

    if (strcmp(q->method, "POST") != 0 || !(theirs || path_is(q, "/chat/completions"))) {
        answer_error(c, 404, "", "not_found");
        return;
    }
    if (!q->body) {
        answer_error(c, 400, "", "not_json");
        return;
    }
    request = theirs ? anthropic_read(q, &why) : json_incref(q->body);
    if (!request) {
        anthropic_error(c, 400, "", "invalid_request_error", why);
        return;
    }
    if (mode_is(q, "echo", NULL)) {
        text = chat_last_user(json_object_get(request, "messages"));
        text = text ? text : "";
    } else {
        text = plain = plain_text(request, fixed_answer);
        calls = plain_calls(request);
    }

    n = 1000;
    if (mode_is(q, "slow-first", &n))
        conn_wait(c, n);

    n = 10000;
    if (mode_is(q, "blackhole", NULL)) {
        conn_wait(c, -1);
    } else if (mode_is(q, "status", NULL)) {
        answer_status(c, q);
    } else if (mode_is(q, "redirect", NULL)) {
        answer_whole(c, 302, "text/plain", "Location: /elsewhere/chat/completions\r\n", "moved", 5);
    } else if (mode_is(q, "html", NULL)) {
        answer_whole(c, 200, "text/html", "", "<html>Welcome</html>", 20);
    } else if (mode_is(q, "garbage", NULL)) {
        stream_begin(c);
        stream_event(c, "this is not JSON");
        stream_end(c);
    } else if (mode_is(q, "flood", &n)) {
        answer_flood(c, q, n);
    } else if (mode_is(q, "huge-event", NULL)) {
        n = 2048;
        mode_is(q, "huge-event", &n);
        answer_huge(c, q, n);
    } else if (theirs) {
        anthropic_say(c, q, text, calls);
    } else if (calls) {
        answer_calls(c, q, calls);
    } else if (mode_is(q, "json", NULL) || !stream_wanted(q)) {
        answer_object(c, q, text);
    } else {
        answer_stream(c, q, text);
    }
}

/* ---- Connections ---- */

static void *conn_run(void *arg)
{
    struct conn *c = arg;
    struct request q;

    if (tls) {
        c->ssl = SSL_new(tls);
        SSL_set_fd(c->ssl, c->fd);
        c->failed = SSL_accept(c->ssl) != 1;
        if (c->failed)
            log_event(c, "tls-failed", NULL);
    }
    while (!c->failed && request_read(c, &q)) {
        answer(c, &q);
        if (c->failed && !mode_is(&q, "cut-after", NULL))
            log_event(c, "closed", json_pack("{s:s}", "during", "answer"));
        else
            log_event(c, "answered", NULL);
        buf_consume(&c->in, q.head_len + q.body_len);
        request_done(&q);
    }
    SSL_free(c->ssl);
    close(c->fd);
    buf_done(&c->in);
    free(c);
    return NULL;
}

static int listen_loopback(int port)
{
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    socklen_t len = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, 1024) < 0 ||
        getsockname(fd, (struct sockaddr *)&a, &len) < 0) {
        perror("stub_cloud");
        exit(1);
    }
    printf("listening %d\n", ntohs(a.sin_port));
    fflush(stdout);
    return fd;
}

static void tls_load(const char *cert, const char *key)
{
    tls = SSL_CTX_new(TLS_server_method());
    if (!tls || SSL_CTX_use_certificate_chain_file(tls, cert) != 1 ||
        SSL_CTX_use_PrivateKey_file(tls, key, SSL_FILETYPE_PEM) != 1) {
        ERR_print_errors_fp(stderr);
        exit(1);
    }
}

static int usage(void)
{
    fprintf(stderr, "usage: stub_cloud [--port P] [--log FILE] [--mode MODE] [--answer TEXT] [--tls CERT KEY]\n");
    return 2;
}

int main(int argc, char **argv)
{
    unsigned n_conns = 0;
    int port = 0, fd;

    for (int i = 1; i < argc; i++) {
        const char *v = i + 1 < argc ? argv[i + 1] : NULL;
        if (!v)
            return usage();
        if (strcmp(argv[i], "--port") == 0)
            port = atoi(v);
        else if (strcmp(argv[i], "--log") == 0)
            log_fd = open(v, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        else if (strcmp(argv[i], "--mode") == 0 && is_mode(v))
            default_mode = v;
        else if (strcmp(argv[i], "--answer") == 0)
            fixed_answer = v;
        else if (strcmp(argv[i], "--tls") == 0 && i + 2 < argc)
            tls_load(v, argv[++i + 1]);
        else
            return usage();
        i++;
    }
    signal(SIGPIPE, SIG_IGN);

    fd = listen_loopback(port);
    for (;;) {
        struct conn *c = calloc(1, sizeof(*c));
        pthread_t thread;
        int on = 1;

        c->fd = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
        c->number = ++n_conns;
        buf_init(&c->in, MAX_REQUEST);
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        if (c->fd < 0 || pthread_create(&thread, NULL, conn_run, c) != 0) {
            if (c->fd >= 0)
                close(c->fd);
            free(c);
            continue;
        }
        pthread_detach(thread);
    }
}
