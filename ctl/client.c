/* HTTP to the daemon, by libcurl's easy interface: one request at a time, over TCP or the unix socket, never through a
 * proxy. The daemon's error objects become one line on stderr. */
#include "ctl/ctl.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/sse.h"

#define CLIENT_MAX_ANSWER (64u << 20)

struct call {
    CURL *curl;
    struct buf body;               /* an answer that is not a stream */
    struct sse sse;
    bool is_stream, failed;
    struct client_route *route;
    char *finish;
    void (*on_text)(void *arg, const char *text, size_t len);
    void *arg;
};

static const char *where(const struct ctl *c) { return c->socket ? c->socket : c->url; }

/* Print an {"error":{…}} object, or what there is. */
static void print_error(const json_t *answer, long status)
{
    const json_t *e = json_object_get(answer, "error");
    const char *message = json_string_value(json_object_get(e, "message"));

    if (!message)
        message = json_string_value(e);
    if (message)
        fprintf(stderr, "ternctl: %s\n", message);
    else
        fprintf(stderr, "ternctl: the daemon answered with status %ld\n", status);
}

/* One event of the stream: a chunk, an error, or [DONE]. */
static int on_event(void *arg, const uint8_t *data, size_t len)
{
    struct call *k = arg;
    cleanup(json_decrefp) json_t *chunk = NULL;
    const json_t *choice, *text;
    const char *finish;

    if (len == 6 && !memcmp(data, "[DONE]", 6))
        return 0;
    chunk = json_parse(data, len, NULL);
    if (!chunk)
        return -EPROTO;
    if (json_object_get(chunk, "error")) {
        k->failed = true;
        print_error(chunk, 200);
        return 0;
    }
    choice = json_array_get(json_object_get(chunk, "choices"), 0);
    text = json_object_get(json_object_get(choice, "delta"), "content");
    if (json_is_string(text) && json_string_length(text))
        k->on_text(k->arg, json_string_value(text), json_string_length(text));
    finish = json_string_value(json_object_get(choice, "finish_reason"));
    if (finish)
        snprintf(k->finish, 32, "%s", finish);
    return 0;
}

static size_t on_header(char *line, size_t size, size_t n, void *arg)
{
    struct call *k = arg;
    size_t len = size * n, name = 0, value, end = len;
    struct client_route *r = k->route;

    while (name < len && line[name] != ':')
        name++;
    for (value = name + 1; value < len && line[value] == ' '; value++)
        ;
    while (end > value && (line[end - 1] == '\r' || line[end - 1] == '\n'))
        end--;
    if (value > end)
        return len;
    if (name == 12 && !strncasecmp(line, "content-type", 12))
        k->is_stream = end - value >= 17 && !strncasecmp(line + value, "text/event-stream", 17);
    if (!r)
        return len;

    const struct { const char *name; char *out; size_t size; } headers[] = {
        { "x-tern-decision-id", r->id, sizeof(r->id) },         { "x-tern-route", r->route, sizeof(r->route) },
        { "x-tern-reason", r->reason, sizeof(r->reason) },      { "x-tern-model", r->model, sizeof(r->model) },
        { "x-tern-confidence", r->confidence, sizeof(r->confidence) }, { "x-tern-cost-usd", r->cost, sizeof(r->cost) },
    };
    for (size_t i = 0; i < ARRAY_SIZE(headers); i++)
        if (name == strlen(headers[i].name) && !strncasecmp(line, headers[i].name, name))
            snprintf(headers[i].out, headers[i].size, "%.*s", (int)(end - value), line + value);
    if (name == 15 && !strncasecmp(line, "x-tern-degraded", 15))
        r->degraded = true;
    return len;
}

static size_t on_body(char *data, size_t size, size_t n, void *arg)
{
    struct call *k = arg;

    if (k->is_stream)
        return sse_push(&k->sse, data, size * n) < 0 ? 0 : size * n;
    return buf_append(&k->body, data, size * n) < 0 ? 0 : size * n;
}

/* Run k->curl against `path`. CTL_OK with *ret_status, or CTL_UNREACHABLE. */
static int call_run(struct ctl *c, struct call *k, const char *path, struct curl_slist *headers, long *ret_status)
{
    struct buf url, auth;
    struct curl_slist *more;
    CURLcode r;

    buf_init(&url, 1 << 16);
    buf_init(&auth, 1 << 12);
    /* Over a socket the host is only a name; localhost is always in the daemon's allow-list. */
    buf_printf(&url, "%s%s", c->socket ? "http://localhost" : c->url, path);
    if (c->key) {
        buf_printf(&auth, "Authorization: Bearer %s", c->key);
        more = curl_slist_append(headers, (char *)auth.data);
        headers = more ? more : headers;
    }
    curl_easy_setopt(k->curl, CURLOPT_URL, (char *)url.data);
    if (c->socket)
        curl_easy_setopt(k->curl, CURLOPT_UNIX_SOCKET_PATH, c->socket);
    curl_easy_setopt(k->curl, CURLOPT_PROXY, "");
    curl_easy_setopt(k->curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(k->curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(k->curl, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(k->curl, CURLOPT_HEADERDATA, k);
    curl_easy_setopt(k->curl, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(k->curl, CURLOPT_WRITEDATA, k);
    r = curl_easy_perform(k->curl);
    curl_easy_getinfo(k->curl, CURLINFO_RESPONSE_CODE, ret_status);
    if (r == CURLE_COULDNT_CONNECT)
        fprintf(stderr, "ternctl: no ternd at %s; is it running? (systemctl status ternd, or ./dev run)\n", where(c));
    else if (r != CURLE_OK)
        fprintf(stderr, "ternctl: %s: %s\n", where(c), curl_easy_strerror(r));
    curl_slist_free_all(headers);
    buf_done(&url);
    buf_done(&auth);
    return r == CURLE_OK ? CTL_OK : CTL_UNREACHABLE;
}

static int call_init(struct call *k)
{
    *k = (struct call){ .curl = curl_easy_init() };
    if (!k->curl)
        return -ENOMEM;
    buf_init(&k->body, CLIENT_MAX_ANSWER);
    sse_init(&k->sse, 1 << 20, on_event, k);
    return 0;
}

static void call_done(struct call *k)
{
    curl_easy_cleanup(k->curl);
    buf_done(&k->body);
    sse_done(&k->sse);
}

int client_get(struct ctl *c, const char *path, json_t **ret)
{
    struct call k;
    json_t *answer;
    long status = 0;
    int r;

    if (call_init(&k) < 0)
        return CTL_UNREACHABLE;
    r = call_run(c, &k, path, NULL, &status);
    if (r == CTL_OK) {
        answer = k.body.len ? json_parse(k.body.data, k.body.len, NULL) : NULL;
        if (status == 200 && answer) {
            *ret = answer;
        } else {
            print_error(answer, status);
            json_decref(answer);
            r = CTL_REFUSED;
        }
    }
    call_done(&k);
    return r;
}

int client_chat(struct ctl *c, const json_t *body, const char *label, const char *mode, struct client_route *route, char *finish,
                void (*on_text)(void *arg, const char *text, size_t len), void *arg)
{
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    cleanup(json_decrefp) json_t *answer = NULL;
    char *text = json_dumps(body, JSON_COMPACT), line[256];
    struct call k;
    long status = 0;
    int r;

    if (!text || call_init(&k) < 0) {
        free(text);
        curl_slist_free_all(headers);
        return CTL_UNREACHABLE;
    }
    memset(route, 0, sizeof(*route));
    finish[0] = '\0';
    k.route = route;
    k.finish = finish;
    k.on_text = on_text;
    k.arg = arg;
    if (label) {
        snprintf(line, sizeof(line), "x-tern-label: %s", label);
        headers = curl_slist_append(headers, line);
    }
    if (mode) {
        snprintf(line, sizeof(line), "x-tern-mode: %s", mode);
        headers = curl_slist_append(headers, line);
    }
    curl_easy_setopt(k.curl, CURLOPT_POSTFIELDS, text);
    r = call_run(c, &k, "/v1/chat/completions", headers, &status);
    if (r == CTL_OK && status != 200) {
        answer = k.body.len ? json_parse(k.body.data, k.body.len, NULL) : NULL;
        print_error(answer, status);
        r = CTL_REFUSED;
    } else if (r == CTL_OK && k.failed) {
        r = CTL_REFUSED;
    }
    call_done(&k);
    free(text);
    return r;
}

int client_add_parameter(struct buf *path, const char *name, const char *value)
{
    char *escaped;
    int r;

    if (!value)
        return 0;
    escaped = curl_easy_escape(NULL, value, 0);
    if (!escaped)
        return -ENOMEM;
    r = buf_printf(path, "%c%s=%s", memchr(path->data, '?', path->len) ? '&' : '?', name, escaped);
    curl_free(escaped);
    return r;
}
