/* The server against clients that are wrong, slow, hostile or gone, on real sockets. The table is the contract of what
 * is refused and how: always a JSON error object and a closed connection, and no request is ever started. */
#include <criterion/criterion.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include "base/clock.h"
#include "tests/daemon/fake.h"

#define HI "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}"
#define SAY(text) "{\"messages\":[{\"role\":\"user\",\"content\":\"" text "\"}]}"
#define STREAM(text) "{\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"" text "\"}]}"
#define POST "POST /v1/chat/completions HTTP/1.1\r\n"
#define H "Host: localhost\r\n"
#define J "Content-Type: application/json\r\n"

static void configure(struct config *c)
{
    c->listen.n_hosts = 1;
    strcpy(c->listen.hosts[0], "assistant.example");
    c->listen.n_origins = 1;
    strcpy(c->listen.origins[0], "http://localhost:3000");
}

static void plain(void) { fake_start(configure); }

TestSuite(http, .init = plain, .fini = fake_stop, .timeout = 60);

/* Status, and an error object with all four members. */
static void check_error(const char *name, const char *answer, int expected)
{
    cleanup(json_decrefp) json_t *j = NULL;
    const json_t *e;
    int status = 0;

    sscanf(answer, "HTTP/1.%*d %d", &status);
    cr_expect_eq(status, expected, "%s: %d, expected %d", name, status, expected);
    j = json_loads(body_of(answer), 0, NULL);
    e = json_object_get(j, "error");
    cr_expect(json_is_string(json_object_get(e, "message")) && json_is_string(json_object_get(e, "type")) &&
              json_object_get(e, "param") && json_object_get(e, "code"), "%s: no error object: %s", name,
              body_of(answer));
    cr_expect(header_of(answer, "x-request-id"), "%s: no request id", name);
}

/* ---- Hostile requests -------------------------------------------------------------------------------------------- */

static const struct { const char *name, *bytes; int status; } hostile[] = {
    {"no Host", "GET /health HTTP/1.1\r\n\r\n", 400},
    {"no Host, 1.0", "GET /health HTTP/1.0\r\n\r\n", 400},
    {"empty Host", "GET /health HTTP/1.1\r\nHost:\r\n\r\n", 403},
    {"two Hosts", "GET /health HTTP/1.1\r\n" H H "\r\n", 400},
    {"two Hosts that differ", "GET /health HTTP/1.1\r\n" H "Host: evil.example\r\n\r\n", 400},
    {"foreign Host", "GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403},
    {"foreign Host with our port", "GET /health HTTP/1.1\r\nHost: evil.example:8420\r\n\r\n", 403},
    {"Host with a prefix of ours", "GET /health HTTP/1.1\r\nHost: localhost.evil.example\r\n\r\n", 403},
    {"Host with a suffix of ours", "GET /health HTTP/1.1\r\nHost: evil-localhost\r\n\r\n", 403},
    {"Host with a user", "GET /health HTTP/1.1\r\nHost: localhost@evil.example\r\n\r\n", 403},
    {"Host with a trailing dot", "GET /health HTTP/1.1\r\nHost: localhost.\r\n\r\n", 403},
    {"Host 127.0.0.1.nip", "GET /health HTTP/1.1\r\nHost: 127.0.0.1.nip.example\r\n\r\n", 403},
    {"Host another loopback", "GET /health HTTP/1.1\r\nHost: 127.0.0.2\r\n\r\n", 403},
    {"Host 0.0.0.0", "GET /health HTTP/1.1\r\nHost: 0.0.0.0:8420\r\n\r\n", 403},
    {"Host open bracket", "GET /health HTTP/1.1\r\nHost: [::1\r\n\r\n", 403},
    {"Host bracket and words", "GET /health HTTP/1.1\r\nHost: [::1]evil\r\n\r\n", 403},
    {"Host port of letters", "GET /health HTTP/1.1\r\nHost: localhost:80evil\r\n\r\n", 403},
    {"Host two ports", "GET /health HTTP/1.1\r\nHost: localhost:80:81\r\n\r\n", 403},
    {"Host with a path", "GET /health HTTP/1.1\r\nHost: localhost/evil\r\n\r\n", 403},
    {"Host list", "GET /health HTTP/1.1\r\nHost: localhost, evil.example\r\n\r\n", 403},
    {"space before the colon", "GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n", 400},
    {"foreign Origin", "GET /health HTTP/1.1\r\n" H "Origin: http://evil.example\r\n\r\n", 403},
    {"Origin null", "GET /health HTTP/1.1\r\n" H "Origin: null\r\n\r\n", 403},
    {"Origin on our own host", "GET /health HTTP/1.1\r\n" H "Origin: http://localhost:8420\r\n\r\n", 403},
    {"Origin like an allowed one", "GET /health HTTP/1.1\r\n" H "Origin: http://localhost:3000.evil.example\r\n\r\n",
     403},
    {"Origin allowed, other case", "GET /health HTTP/1.1\r\n" H "Origin: HTTP://localhost:3000\r\n\r\n", 403},
    {"two Origins", "GET /health HTTP/1.1\r\n" H "Origin: http://localhost:3000\r\nOrigin: http://evil\r\n\r\n", 400},
    {"empty Origin", "GET /health HTTP/1.1\r\n" H "Origin:\r\n\r\n", 403},
    {"preflight of a stranger", "OPTIONS /v1/chat/completions HTTP/1.1\r\n" H "Origin: http://evil.example\r\n"
     "Access-Control-Request-Method: POST\r\n\r\n", 403},
    {"OPTIONS", "OPTIONS /v1/chat/completions HTTP/1.1\r\n" H "\r\n", 405},
    {"OPTIONS *", "OPTIONS * HTTP/1.1\r\n" H "\r\n", 400},
    {"PATCH", "PATCH /v1/models HTTP/1.1\r\n" H "\r\n", 405},
    {"PUT", "PUT /v1/models HTTP/1.1\r\n" H "Content-Length: 0\r\n\r\n", 405},
    {"PUT with a body", "PUT /v1/models HTTP/1.1\r\n" H "Content-Length: 3\r\n\r\nabc", 400},
    {"DELETE", "DELETE /v1/models/auto HTTP/1.1\r\n" H "\r\n", 405},
    {"TRACE", "TRACE /health HTTP/1.1\r\n" H "\r\n", 405},
    {"CONNECT", "CONNECT evil.example:443 HTTP/1.1\r\n" H "\r\n", 400},
    {"BREW", "BREW /health HTTP/1.1\r\n" H "\r\n", 405},
    {"get in small letters", "get /health HTTP/1.1\r\n" H "\r\n", 405},
    {"GET of the chat path", "GET /v1/chat/completions HTTP/1.1\r\n" H "\r\n", 405},
    {"POST to a path that is read", "POST /health HTTP/1.1\r\n" H J "Content-Length: 2\r\n\r\n{}", 405},
    {"unknown path", "GET /v1/nothing HTTP/1.1\r\n" H "\r\n", 404},
    {"POST to the root", "POST / HTTP/1.1\r\n" H J "Content-Length: 2\r\n\r\n{}", 405},
    {"path traversal", "GET /../../etc/passwd HTTP/1.1\r\n" H "\r\n", 404},
    {"traversal behind a prefix", "GET /v1/models/../../etc/passwd HTTP/1.1\r\n" H "Connection: close\r\n\r\n", 404},
    {"encoded traversal", "GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n" H "\r\n", 404},
    {"the same, encoded", "GET /v1/models/%2e%2e%2fetc HTTP/1.1\r\n" H "Connection: close\r\n\r\n", 404},
    {"NUL in a model's name", "GET /v1/models/au%00to HTTP/1.1\r\n" H "Connection: close\r\n\r\n", 404},
    {"doubled slash", "GET //health HTTP/1.1\r\n" H "\r\n", 400},
    {"slash behind", "GET /health/ HTTP/1.1\r\n" H "\r\n", 404},
    {"other case", "GET /Health HTTP/1.1\r\n" H "\r\n", 404},
    {"backslashes", "GET \\health HTTP/1.1\r\n" H "\r\n", 400},
    {"absolute target", "GET http://evil.example/health HTTP/1.1\r\n" H "\r\n", 400},
    {"authority target", "GET evil.example:80 HTTP/1.1\r\n" H "\r\n", 400},
    {"fragment", "GET /health#x HTTP/1.1\r\n" H "\r\n", 400},
    {"raw UTF-8 in the target", "GET /h\xc3\xa9 HTTP/1.1\r\n" H "\r\n", 400},
    {"space in the target", "GET /hea lth HTTP/1.1\r\n" H "\r\n", 400},
    {"tab in the request line", "GET\t/health HTTP/1.1\r\n" H "\r\n", 400},
    {"two spaces", "GET  /health HTTP/1.1\r\n" H "\r\n", 400},
    {"no version", "GET /health\r\n" H "\r\n", 400},
    {"HTTP/0.9", "GET /health HTTP/0.9\r\n" H "\r\n", 505},
    {"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
    {"HTTP/1.2", "GET /health HTTP/1.2\r\n" H "\r\n", 505},
    {"HTTP/11", "GET /health HTTP/11\r\n" H "\r\n", 400},
    {"http in small letters", "GET /health http/1.1\r\n" H "\r\n", 400},
    {"no words", "\r\n\r\n", 400},
    {"empty line first", "\r\nGET /health HTTP/1.1\r\n" H "\r\n", 400},
    {"bare LF", "GET /health HTTP/1.1\nHost: localhost\n\n", 400},
    {"one bare LF", "GET /health HTTP/1.1\r\nHost: localhost\n\r\n", 400},
    {"bare CR", "GET /health HTTP/1.1\r\nHost: local\rhost\r\n\r\n", 400},
    {"CR CR LF", "GET /health HTTP/1.1\r\r\n" H "\r\n", 400},
    {"folded header", "GET /health HTTP/1.1\r\n" H "X-A: b\r\n c\r\n\r\n", 400},
    {"folded with a tab", "GET /health HTTP/1.1\r\n" H "X-A: b\r\n\tc\r\n\r\n", 400},
    {"folded first header", "GET /health HTTP/1.1\r\n Host: localhost\r\n\r\n", 400},
    {"no colon", "GET /health HTTP/1.1\r\n" H "nothing\r\n\r\n", 400},
    {"no name", "GET /health HTTP/1.1\r\n" H ": x\r\n\r\n", 400},
    {"name with a space", "GET /health HTTP/1.1\r\n" H "X A: b\r\n\r\n", 400},
    {"escape in a header", "GET /health HTTP/1.1\r\n" H "X-A: \033[2J\r\n\r\n", 400},
    {"DEL in a header", "GET /health HTTP/1.1\r\n" H "X-A: \177\r\n\r\n", 400},
    {"TLS hello", "\026\003\001\002", 400},
    {"CL and TE", POST H J "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
    {"TE and CL", POST H J "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400},
    {"two CL", POST H J "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400},
    {"two CL that differ", POST H J "Content-Length: 2\r\nContent-Length: 20\r\n\r\n{}", 400},
    {"CL list", POST H J "Content-Length: 2, 2\r\n\r\n{}", 400},
    {"CL negative", POST H J "Content-Length: -1\r\n\r\n{}", 400},
    {"CL plus", POST H J "Content-Length: +2\r\n\r\n{}", 400},
    {"CL hexadecimal", POST H J "Content-Length: 0x2\r\n\r\n{}", 400},
    {"CL empty", POST H J "Content-Length:\r\n\r\n{}", 400},
    {"CL beyond 64 bits", POST H J "Content-Length: 18446744073709551618\r\n\r\n{}", 400},
    {"CL huge", POST H J "Content-Length: 999999999999999999\r\n\r\n{}", 413},
    {"CL over the limit", POST H J "Content-Length: 65537\r\n\r\n{}", 413},
    {"no CL", POST H J "\r\n", 411},
    {"two TE", POST H J "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
    {"TE gzip", POST H J "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
    {"TE identity", POST H J "Transfer-Encoding: identity\r\n\r\n", 501},
    {"TE xchunked", POST H J "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501},
    {"TE with an odd byte", POST H J "Transfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n", 400},
    {"TE in 1.0", "POST /v1/chat/completions HTTP/1.0\r\n" H J "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
    {"chunk size is no number", POST H J "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", 400},
    {"chunk size negative", POST H J "Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n", 400},
    {"chunk size empty", POST H J "Transfer-Encoding: chunked\r\n\r\n\r\n{}\r\n0\r\n\r\n", 400},
    {"chunk size wraps", POST H J "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffe\r\n{}\r\n0\r\n\r\n", 400},
    {"chunk extension", POST H J "Transfer-Encoding: chunked\r\n\r\n2;a=b\r\n{}\r\n0\r\n\r\n", 400},
    {"chunk line by LF", POST H J "Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n", 400},
    {"chunk longer than told", POST H J "Transfer-Encoding: chunked\r\n\r\n2\r\n{}x\r\n0\r\n\r\n", 400},
    {"chunk trailers", POST H J "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-A: b\r\n\r\n", 400},
    {"chunks over the limit", POST H J "Transfer-Encoding: chunked\r\n\r\n10001\r\n", 413},
    {"GET with a body", "GET /health HTTP/1.1\r\n" H "Content-Length: 4\r\n\r\nGET ", 400},
    {"HEAD with chunks", "GET /health HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
    {"Expect unknown", POST H J "Expect: 200-maybe\r\nContent-Length: 2\r\n\r\n{}", 417},
    {"no Content-Type", POST H "Content-Length: 2\r\n\r\n{}", 415},
    {"Content-Type text", POST H "Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 415},
    {"Content-Type form", POST H "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 2\r\n\r\n{}", 415},
    {"Content-Type almost", POST H "Content-Type: application/jsonp\r\nContent-Length: 2\r\n\r\n{}", 415},
    {"two Content-Types", POST H J "Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 400},
    {"two labels", POST H J "x-tern-label: secret\r\nx-tern-label: public\r\nContent-Length: 2\r\n\r\n{}", 400},
    {"two keys", POST H J "x-api-key: a\r\nx-api-key: b\r\nContent-Length: 2\r\n\r\n{}", 400},
    {"deadline of words", POST H J "x-tern-deadline-ms: soon\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", 400},
    {"deadline 0", POST H J "x-tern-deadline-ms: 0\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", 400},
    {"deadline negative", POST H J "x-tern-deadline-ms: -5\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", 400},
    {"empty body", POST H J "Connection: close\r\nContent-Length: 0\r\n\r\n", 400},
    {"no JSON", POST H J "Connection: close\r\nContent-Length: 5\r\n\r\nhello", 400},
    {"half JSON", POST H J "Connection: close\r\nContent-Length: 12\r\n\r\n{\"messages\":", 400},
    {"JSON number", POST H J "Connection: close\r\nContent-Length: 2\r\n\r\n42", 400},
    {"JSON array", POST H J "Connection: close\r\nContent-Length: 2\r\n\r\n[]", 400},
    {"JSON null", POST H J "Connection: close\r\nContent-Length: 4\r\n\r\nnull", 400},
    {"JSON and more", POST H J "Connection: close\r\nContent-Length: 4\r\n\r\n{}{}", 400},
    {"JSON with a key twice", POST H J "Connection: close\r\nContent-Length: 13\r\n\r\n{\"n\":1,\"n\":2}", 400},
    {"no UTF-8", POST H J "Connection: close\r\nContent-Length: 7\r\n\r\n{\"\xff\":1}", 400},
    {"empty object", POST H J "Connection: close\r\nContent-Length: 2\r\n\r\n{}", 400},
};

Test(http, hostile_requests_are_refused)
{
    cr_assert_geq(ARRAY_SIZE(hostile), 80);
    for (size_t i = 0; i < ARRAY_SIZE(hostile); i++) {
        cleanup(freep) char *answer = NULL;
        bool closed;
        int fd = dial();

        put(fd, hostile[i].bytes, strlen(hostile[i].bytes));
        answer = get(fd, NULL, 4000, NULL, &closed);
        close(fd);
        pump();
        check_error(hostile[i].name, answer, hostile[i].status);
        cr_expect(closed, "%s: not closed", hostile[i].name);
        cr_expect_null(strstr(answer, "text/html"), "%s: evhttp's own words", hostile[i].name);
    }
    cr_expect_eq(fake.started, 0);
    cr_expect_eq(exchange("GET /health HTTP/1.1\r\n" H "Connection: close\r\n\r\n", NULL), 200);
}

/* The same, a byte at a time: what is refused does not depend on how packets are cut. */
Test(http, hostile_requests_in_single_bytes)
{
    for (size_t i = 0; i < ARRAY_SIZE(hostile); i++) {
        cleanup(freep) char *answer = NULL;
        int fd = dial();

        for (const char *p = hostile[i].bytes; *p; p++) {
            if (send(fd, p, 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 1)
                break;
            event_base_loop(fake.d.base, EVLOOP_NONBLOCK);
        }
        answer = get(fd, NULL, 4000, NULL, NULL);
        close(fd);
        pump();
        check_error(hostile[i].name, answer, hostile[i].status);
    }
    cr_expect_eq(fake.started, 0);
}

/* Well-formed and hostile requests with bytes changed, dropped and doubled, and cut into packets anywhere: whatever
 * comes back is ours, and the server goes on. The seed is fixed. */
Test(http, mangled_requests)
{
    static const char *const good[] = {
        "GET /health HTTP/1.1\r\n" H "Connection: close\r\n\r\n", "HEAD /v1/models HTTP/1.0\r\n" H "\r\n",
        POST H J "Connection: close\r\nContent-Length: 2\r\n\r\n{}",
        POST H J "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
        "GET /v1/tern/log?limit=5&since=24h HTTP/1.1\r\n" H "Connection: close\r\n\r\n",
    };
    static const char odd[] = "\r\n\t :;,%/?0aF\"\\\x01\x80\xff";

    srand(1);
    for (int i = 0; i < 3000; i++) {
        size_t which = (size_t)rand() % (ARRAY_SIZE(good) + ARRAY_SIZE(hostile)), n;
        cleanup(freep) char *answer = NULL;
        char bytes[1024];
        int fd = dial();

        n = (size_t)snprintf(bytes, sizeof(bytes) - 16, "%s",
                             which < ARRAY_SIZE(good) ? good[which] : hostile[which - ARRAY_SIZE(good)].bytes);
        for (int k = rand() % 4; k >= 0; k--) {
            size_t at = (size_t)rand() % n;

            switch (rand() % 3) {
            case 0: bytes[at] = odd[(size_t)rand() % (sizeof(odd) - 1)]; break;
            case 1: memmove(bytes + at, bytes + at + 1, --n - at); break;
            default: memmove(bytes + at + 1, bytes + at, n++ - at); break;
            }
        }
        for (size_t at = 0, len; at < n; at += len) {
            len = MIN(n - at, 1 + (size_t)rand() % 64);
            put(fd, bytes + at, len);
        }
        shutdown(fd, SHUT_WR);
        answer = get(fd, NULL, 500, NULL, NULL);
        close(fd);
        cr_expect(!*answer || strncmp(answer, "HTTP/1.", 7) == 0, "%d: %.*s", i, (int)n, bytes);
        cr_expect_null(strstr(answer, "text/html"), "%d: %.*s", i, (int)n, bytes);
    }
    cr_expect_eq(fake.started, 0);
    cr_expect_eq(exchange("GET /health HTTP/1.1\r\n" H "Connection: close\r\n\r\n", NULL), 200);
}

Test(http, a_refusal_says_what_to_set)
{
    char *answer;

    exchange("GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", &answer);
    cr_expect(strstr(answer, "listen.hosts"));
    cr_expect_null(strstr(answer, "evil.example"));
    free(answer);
    exchange("GET /health HTTP/1.1\r\n" H "Origin: http://evil.example\r\n\r\n", &answer);
    cr_expect(strstr(answer, "listen.origins"));
    cr_expect_null(header_of(answer, "Access-Control-Allow-Origin"));
    free(answer);
    exchange("PATCH /v1/models HTTP/1.1\r\n" H "\r\n", &answer);
    cr_expect_str_eq(header_of(answer, "Allow"), "GET, HEAD");
    free(answer);
    exchange("GET /v1/chat/completions HTTP/1.1\r\n" H "\r\n", &answer);
    cr_expect_str_eq(header_of(answer, "Allow"), "POST");
    free(answer);
}

Test(http, hosts_that_are_ours)
{
    static const char *const hosts[] = {"localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8420", "[::1]",
                                        "[::1]:65535", "assistant.example", "Assistant.Example:443"};
    char request[256];

    for (size_t i = 0; i < ARRAY_SIZE(hosts); i++) {
        snprintf(request, sizeof(request), "GET /health HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", hosts[i]);
        cr_expect_eq(exchange(request, NULL), 200, "%s", hosts[i]);
    }
}

Test(http, unix_socket_takes_any_host)
{
    static const char host[] = "GET /health HTTP/1.1\r\nHost: whatever\r\nConnection: close\r\n\r\n";
    cleanup(freep) char *health = NULL, *answer = NULL;
    char expected[64];
    int fd = dial_unix();

    put(fd, host, strlen(host));
    health = get(fd, NULL, 3000, NULL, NULL);
    close(fd);
    cr_expect(strncmp(health, "HTTP/1.1 200", 12) == 0, "%s", health);
    fd = dial_unix();
    put_chat(fd, "Connection: close\r\n", HI);
    answer = get(fd, NULL, 3000, NULL, NULL);
    close(fd);
    cr_expect(strncmp(answer, "HTTP/1.1 200", 12) == 0, "%s", answer);
    snprintf(expected, sizeof(expected), "unix:uid=%u", getuid());
    cr_expect_str_eq(fake.peer, expected);
}

Test(http, allowed_origin)
{
    char *answer;

    cr_expect_eq(exchange("OPTIONS /v1/chat/completions HTTP/1.1\r\n" H "Origin: http://localhost:3000\r\n"
                          "Access-Control-Request-Method: POST\r\nConnection: close\r\n\r\n", &answer), 204);
    cr_expect_str_eq(header_of(answer, "Access-Control-Allow-Origin"), "http://localhost:3000");
    cr_expect(header_of(answer, "Access-Control-Allow-Methods"));
    free(answer);
    cr_expect_eq(exchange("GET /health HTTP/1.1\r\n" H "Origin: http://localhost:3000\r\nConnection: close\r\n\r\n",
                          &answer), 200);
    cr_expect_str_eq(header_of(answer, "Access-Control-Allow-Origin"), "http://localhost:3000");
    cr_expect_str_eq(header_of(answer, "Vary"), "Origin");
    free(answer);
}

/* ---- Limits and deadlines ---------------------------------------------------------------------------------------- */

static char *filled(const char *front, size_t n, const char *back)
{
    char *s = malloc(strlen(front) + n + strlen(back) + 1);

    memset(stpcpy(s, front), 'a', n);
    strcpy(s + strlen(front) + n, back);
    return s;
}

Test(http, header_limit)
{
    cleanup(freep) char *huge = filled("GET /health HTTP/1.1\r\n" H "X-A: ", 1 << 20, "\r\n\r\n");
    cleanup(freep) char *line = filled("GET /", 9000, " HTTP/1.1\r\n" H "\r\n");
    cleanup(freep) char *fits = filled("GET /health HTTP/1.1\r\n" H "Connection: close\r\nX-A: ", 8000, "\r\n\r\n");
    char many[4096] = "GET /health HTTP/1.1\r\n" H, *answer;

    exchange(huge, &answer);
    check_error("huge header", answer, 431);
    free(answer);
    exchange(line, &answer);
    check_error("huge target", answer, 431);
    free(answer);
    cr_expect_eq(exchange(fits, NULL), 200);
    for (int i = 0; i < 101; i++)
        strcat(many, "X-A: b\r\n");
    strcat(many, "\r\n");
    exchange(many, &answer);
    check_error("many headers", answer, 431);
    free(answer);
}

Test(http, body_limit)
{
    cleanup(freep) char *fits = filled("{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"x\":\"", 65000, "\"}");
    cleanup(freep) char *over = filled("{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"x\":\"", 70000, "\"}");
    char *answer;

    cr_expect_eq(chat("", fits, NULL), 200);
    chat("", over, &answer);
    check_error("a body over the limit, all of it sent", answer, 413);
    free(answer);
}

static void short_deadlines(struct config *c)
{
    c->listen.header_timeout_msec = c->listen.body_timeout_msec = c->listen.write_timeout_msec = 150;
}

static void impatient(void) { fake_start(short_deadlines); }

/* One byte now and then must not keep a connection for ever: the deadline is absolute. */
static void drip(const char *name, const char *front)
{
    uint64_t start = clock_usec();
    cleanup(freep) char *answer = NULL;
    int fd = dial();

    put(fd, front, strlen(front));
    for (int i = 0; i < 12; i++) {
        free(TAKE(answer));
        answer = get(fd, "HTTP/1.1", 40, NULL, NULL);
        if (*answer)
            break;
        put(fd, "a", 1);
    }
    if (!strstr(answer, "}}")) {
        char *rest = get(fd, NULL, 3000, NULL, NULL), *whole = NULL;

        cr_assert(asprintf(&whole, "%s%s", answer, rest) > 0);
        free(rest);
        free(answer);
        answer = whole;
    }
    close(fd);
    pump();
    check_error(name, answer, 408);
    cr_expect_lt(clock_usec() - start, 2 * USEC_PER_SEC);
}

Test(http, slow_requests, .init = impatient)
{
    drip("slow head", "GET /health HTTP/1.1\r\nX-A: ");
    drip("slow body", POST H J "Content-Length: 1000\r\n\r\n{");
    drip("slow chunk", POST H J "Transfer-Encoding: chunked\r\n\r\nff\r\n{");
    drip("silence", "");
    cr_expect_eq(fake.started, 0);
}

Test(http, a_client_that_reads_nothing_counts_as_gone, .init = impatient)
{
    uint64_t end = clock_usec() + 5 * USEC_PER_SEC;
    int fd = dial(), small = 4096;

    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
    put_chat(fd, "", STREAM("flow"));
    while (fake.cancelled == 0 && clock_usec() < end)
        event_base_loop(fake.d.base, EVLOOP_ONCE);
    cr_expect_eq(fake.cancelled, 1);
    cr_expect_eq(fake.running, 0);
    close(fd);
}

static void few(struct config *c) { c->listen.max_connections = 5; }
static void crowded(void) { fake_start(few); }

Test(http, connections_over_the_limit, .init = crowded)
{
    int fds[5], fd;
    char *answer;

    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        fds[i] = dial();
    pump();
    fd = dial();
    answer = get(fd, NULL, 3000, NULL, NULL);
    check_error("the sixth", answer, 503);
    cr_expect(header_of(answer, "Retry-After"));
    free(answer);
    close(fd);
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        close(fds[i]);
    pump();
    cr_expect_eq(exchange("GET /health HTTP/1.1\r\n" H "Connection: close\r\n\r\n", NULL), 200);
}

Test(http, out_of_file_descriptors)
{
    static const char request[] = "GET /health HTTP/1.1\r\n" H "Connection: close\r\n\r\n";
    struct rlimit limit, before;
    int fds[8], fd;
    char *answer;

    getrlimit(RLIMIT_NOFILE, &before);
    fd = dial();
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        fds[i] = dial();
    limit = before;
    limit.rlim_cur = (rlim_t)fds[7] + 1;       /* nothing can be accepted now */
    setrlimit(RLIMIT_NOFILE, &limit);
    pump();
    limit.rlim_cur = before.rlim_cur;
    setrlimit(RLIMIT_NOFILE, &limit);
    put(fd, request, strlen(request));
    answer = get(fd, NULL, 1000, NULL, NULL);
    cr_expect(strncmp(answer, "HTTP/1.1 200", 12) == 0, "recovers within a second");
    free(answer);
    close(fd);
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        close(fds[i]);
}

/* ---- Keeping connections ----------------------------------------------------------------------------------------- */

Test(http, keep_alive)
{
    static const char request[] = "GET /health HTTP/1.1\r\n" H "\r\n";
    static const char last[] = "GET /v1/models HTTP/1.1\r\n" H "Connection: close\r\n\r\n";
    int fd = dial();
    bool closed;

    for (int i = 0; i < 5; i++) {
        put(fd, request, strlen(request));
        cleanup(freep) char *answer = get(fd, "}}", 2000, NULL, &closed);
        cr_expect(strncmp(answer, "HTTP/1.1 200", 12) == 0 && !closed, "%d: %s", i, answer);
    }
    put(fd, last, strlen(last));
    free(get(fd, NULL, 2000, NULL, &closed));
    cr_expect(closed);
    close(fd);
}

/* A second request sent before the first is answered: dropped, and the connection closes, so that nothing can hide in
 * it. */
Test(http, pipelining_closes)
{
    static const char two[] = "GET /health HTTP/1.1\r\n" H "\r\nGET /metrics HTTP/1.1\r\n" H "\r\n";
    cleanup(freep) char *answer = NULL;
    bool closed;
    int fd = dial();

    put(fd, two, strlen(two));
    answer = get(fd, NULL, 2000, NULL, &closed);
    cr_expect(closed);
    cr_expect_str_eq(header_of(answer, "Connection"), "close");
    cr_expect_null(strstr(answer, "tern_requests_total"));
    close(fd);
}

Test(http, bytes_during_an_answer_are_dropped)
{
    char junk[4096];
    int fd = dial();

    memset(junk, 'G', sizeof(junk));
    put_chat(fd, "", STREAM("begin"));
    free(get(fd, "assistant", 2000, NULL, NULL));
    for (int i = 0; i < 500; i++)
        put(fd, junk, sizeof(junk));
    cr_expect_eq(fake.running, 1);
    close(fd);
    for (int i = 0; i < 10; i++)
        pump();
    cr_expect_eq(fake.cancelled, 1);
}

Test(http, old_protocol)
{
    cleanup(freep) char *answer = NULL, *stream = NULL;
    char request[512];
    bool closed;
    int fd;

    cr_expect_eq(exchange("GET /health HTTP/1.0\r\n" H "\r\n", &answer), 200);
    /* Without chunks only the end of the connection ends the stream, whatever the client asks. */
    fd = dial();
    snprintf(request, sizeof(request), "POST /v1/chat/completions HTTP/1.0\r\nConnection: keep-alive\r\n" H J
             "Content-Length: %zu\r\n\r\n%s", strlen(STREAM("hi")), STREAM("hi"));
    put(fd, request, strlen(request));
    stream = get(fd, NULL, 2000, NULL, &closed);
    cr_expect(closed && strstr(stream, "data: [DONE]\n\n") && !strstr(stream, "Content-Length"), "%s", stream);
    close(fd);
}

Test(http, chunked_and_expect)
{
    cleanup(freep) char *answer = NULL, *whole = NULL;
    char request[256];
    int fd = dial();

    cr_expect_eq(exchange(POST H J "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
                          "18\r\n{\"messages\":[{\"role\":\"us\r\n"
                          "18\r\ner\",\"content\":\"hi\"}]}   \r\n0\r\n\r\n", NULL), 200);
    snprintf(request, sizeof(request), POST H J "Connection: close\r\nExpect: 100-continue\r\n"
             "Content-Length: %zu\r\n\r\n", strlen(HI));
    put(fd, request, strlen(request));
    answer = get(fd, "\r\n\r\n", 2000, NULL, NULL);
    cr_expect_str_eq(answer, "HTTP/1.1 100 Continue\r\n\r\n");
    put(fd, HI, strlen(HI));
    whole = get(fd, NULL, 2000, NULL, NULL);
    cr_expect(strncmp(whole, "HTTP/1.1 200", 12) == 0, "%s", whole);
    close(fd);
}

Test(http, stopping)
{
    int idle = dial(), busy = dial();
    bool closed;

    put(idle, "GET /health HTTP/1.1\r\n" H "\r\n", strlen("GET /health HTTP/1.1\r\n" H "\r\n"));
    free(get(idle, "}}", 2000, NULL, &closed));
    put_chat(busy, "", STREAM("begin"));
    free(get(busy, "assistant", 2000, NULL, NULL));
    cr_expect_not(http_idle(fake.d.http));
    http_stop_accepting(fake.d.http);
    free(get(idle, NULL, 1000, NULL, &closed));
    cr_expect(closed, "a kept-alive connection is let go");
    cr_expect_eq(fake.running, 1, "what runs goes on");
    close(busy);
    for (int i = 0; i < 10; i++)
        pump();
    cr_expect(http_idle(fake.d.http));
    close(idle);
}

/* ---- A client that leaves ---------------------------------------------------------------------------------------- */

/* At every stage, closing and resetting: a request that was started is cancelled exactly once, and nothing is touched
 * after. */
Test(http, leaving_at_every_stage)
{
    static const struct { const char *body, *seen; unsigned started; } stages[] = {
        {SAY("hang"), NULL, 1}, {STREAM("hang"), NULL, 1}, {SAY("begin"), NULL, 1}, {STREAM("begin"), "assistant", 1},
        {SAY("piece"), NULL, 1}, {STREAM("piece"), "Hel", 1}, {STREAM("flow"), "xxxx", 1},
    };

    for (size_t i = 0; i < ARRAY_SIZE(stages) * 2; i++) {
        const char *body = stages[i / 2].body, *seen = stages[i / 2].seen;
        unsigned cancelled = fake.cancelled;
        struct linger reset = {.l_onoff = 1};
        int fd = dial();

        put_chat(fd, "", body);
        free(get(fd, seen ? seen : "never", seen ? 2000 : 30, NULL, NULL));
        cr_assert_eq(fake.running, 1, "stage %zu", i);
        if (i % 2)
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
        close(fd);
        for (uint64_t end = clock_usec() + USEC_PER_SEC; fake.running && clock_usec() < end;)
            pump();
        cr_expect_eq(fake.running, 0, "stage %zu", i);
        cr_expect_eq(fake.cancelled, cancelled + 1, "stage %zu", i);
    }
}

/* Before the request is whole, at every byte of it. */
Test(http, leaving_while_sending)
{
    static const char request[] = POST H J "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";

    for (size_t n = 0; n < strlen(request); n++) {
        int fd = dial();

        put(fd, request, n);
        close(fd);
        pump();
    }
    cr_expect_eq(fake.started, 0);
    cr_expect_eq(exchange("GET /health HTTP/1.1\r\n" H "Connection: close\r\n\r\n", NULL), 200);
}

Test(http, leaving_before_the_store_answers)
{
    int fd;

    fake.store_late = true;
    fd = dial();
    put(fd, "GET /v1/tern/log HTTP/1.1\r\n" H "\r\n", strlen("GET /v1/tern/log HTTP/1.1\r\n" H "\r\n"));
    close(fd);
    for (int i = 0; i < 10; i++)
        pump();
    cr_expect(http_idle(fake.d.http));
    fake_store_answer();
    pump();
}

/* The server ends while requests are in all states. */
Test(http, ending_with_everything_open)
{
    static const char *const bodies[] = {SAY("hang"), STREAM("begin"), STREAM("flow")};
    int fds[6] = {dial(), dial(), dial(), dial(), dial(), dial()};

    for (size_t i = 0; i < ARRAY_SIZE(bodies); i++)
        put_chat(fds[i], "", bodies[i]);
    put(fds[3], "GET /hea", 8);
    put(fds[4], "BAD\r\n\r\n", 7);
    dial();                                    /* not even accepted */
    http_free(fake.d.http);
    fake.d.http = NULL;
    cr_expect_eq(fake.running, 0);
    cr_expect_eq(fake.cancelled, 3);
}

/* ---- Back-pressure ----------------------------------------------------------------------------------------------- */

/* 8 MiB to a client that reads slowly: what waits in memory stays near the mark, and every byte arrives. */
Test(http, slow_reader)
{
    uint64_t end = clock_usec() + 40 * USEC_PER_SEC;
    size_t x = 0, total = 0;
    int fd = dial(), small = 128 << 10;
    char bytes[16384];
    ssize_t n = 1;

    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
    put_chat(fd, "Connection: close\r\n", STREAM("flow"));
    while (n != 0 && clock_usec() < end) {
        pump();
        n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);
        for (ssize_t i = 0; i < n; i++)
            x += bytes[i] == 'x';
        total += n > 0 ? (size_t)n : 0;
    }
    close(fd);
    cr_expect_eq(n, 0, "the whole answer came: %zu bytes", total);
    cr_expect_eq(fake.sent, 8u << 20);
    cr_expect_geq(x, 8u << 20);
    cr_expect_lt(fake.most_queued, (64u << 10) + 8192, "%zu bytes waited", fake.most_queued);
    cr_expect_gt(fake.pauses, 10);
    cr_expect_eq(fake.pauses, fake.resumes);
}

/* ---- Keys -------------------------------------------------------------------------------------------------------- */

static void add_key(struct config *c, const char *name, const char *key)
{
    struct api_key *k = &c->auth.keys[c->auth.n_keys++];

    strcpy(k->name, name);
    EVP_Digest(key, strlen(key), k->sha256, NULL, EVP_sha256(), NULL);
}

static void keys_optional(struct config *c)
{
    add_key(c, "laptop", "right");
    add_key(c, "phone", "other");
    c->auth.keys[1].has_label = true;
    c->auth.keys[1].label = LABEL_SECRET;
}
static void keys_required(struct config *c)
{
    keys_optional(c);
    c->auth.required = true;
}
static void optional(void) { fake_start(keys_optional); }
static void required(void) { fake_start(keys_required); }

Test(http, any_key_where_none_is_configured)
{
    cr_expect_eq(chat("Authorization: Bearer sk-whatever\r\n", HI, NULL), 200);
    cr_expect_str_eq(fake.key, "");
    cr_expect_eq(fake.key_label, -1);
}

Test(http, optional_keys, .init = optional)
{
    char *answer;

    cr_expect_eq(chat("", HI, NULL), 200);
    cr_expect_str_eq(fake.key, "");
    cr_expect_eq(chat("Authorization: Bearer right\r\n", HI, NULL), 200);
    cr_expect_str_eq(fake.key, "laptop");
    cr_expect_eq(chat("x-api-key: other\r\n", HI, NULL), 200);
    cr_expect_str_eq(fake.key, "phone");
    cr_expect_eq(fake.key_label, LABEL_SECRET);
    cr_expect_eq(chat("Authorization: Bearer wrong\r\n", HI, &answer), 401);
    check_error("a wrong key", answer, 401);
    cr_expect(header_of(answer, "www-authenticate"));
    cr_expect_null(strstr(answer, "wrong"));
    free(answer);
}

Test(http, required_keys, .init = required)
{
    static const char *const wrong[] = {
        "", "Authorization: Bearer\r\n", "Authorization: Bearer \r\n", "Authorization: Basic right\r\n",
        "Authorization: right\r\n", "x-api-key:\r\n", "x-api-key: Right\r\n", "x-api-key: rightx\r\n",
        "Authorization: Bearer wrong\r\nx-api-key: right\r\n",
    };
    static const char *const closed[] = {"/metrics", "/v1/models", "/v1/tern/status", "/v1/tern/log", "/v1/tern/stats"};
    char request[256];

    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
        cr_expect_eq(chat(wrong[i], HI, NULL), 401, "%s", wrong[i]);
    cr_expect_eq(fake.started, 0);
    cr_expect_eq(chat("Authorization: bearer right\r\n", HI, NULL), 200);
    for (size_t i = 0; i < ARRAY_SIZE(closed); i++) {
        snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\n" H "Connection: close\r\n\r\n", closed[i]);
        cr_expect_eq(exchange(request, NULL), 401, "%s", closed[i]);
    }
    cr_expect_eq(exchange("GET /health HTTP/1.1\r\n" H "Connection: close\r\n\r\n", NULL), 200);
    cr_expect_eq(exchange("GET /healthz HTTP/1.1\r\n" H "Connection: close\r\n\r\n", NULL), 200);
    cr_expect_eq(exchange("GET /readyz HTTP/1.1\r\n" H "Connection: close\r\n\r\n", NULL), 200);
}

/* ---- tern's own paths -------------------------------------------------------------------------------------------- */

static json_t *fetch(const char *target, int expected)
{
    char request[512], *answer;
    json_t *j;
    int status;

    snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\n" H "Connection: close\r\n\r\n", target);
    status = exchange(request, &answer);
    cr_expect_eq(status, expected, "%s: %d", target, status);
    cr_expect_str_eq(header_of(answer, "Content-Type"), "application/json");
    j = json_loads(body_of(answer), 0, NULL);
    cr_expect(j, "%s: %s", target, answer);
    free(answer);
    return j;
}

static const char *at(const json_t *j, const char *a, const char *b)
{
    const json_t *v = json_object_get(j, a);
    const char *s = json_string_value(b ? json_object_get(v, b) : v);

    return s ? s : "";
}

Test(http, readiness)
{
    json_t *j = fetch("/readyz", 200);

    json_decref(j);
    fake.engine_ready = false;
    j = fetch("/readyz", 503);
    cr_expect_str_eq(at(j, "why", NULL), "model.gguf: bad magic");
    json_decref(j);
    j = fetch("/healthz", 200);
    cr_expect_str_eq(at(j, "status", NULL), "ok");
    cr_expect(json_is_false(json_object_get(json_object_get(j, "engine"), "ready")));
    json_decref(j);
    j = fetch("/v1/tern/status", 200);
    cr_expect_str_eq(at(j, "engine", "failure"), "model.gguf: bad magic");
    json_decref(j);
    fake.engine_ready = true;
    fake.store_healthy = false;
    j = fetch("/readyz", 503);
    cr_expect_str_eq(at(j, "why", NULL), "disk full");
    json_decref(j);
}

Test(http, models)
{
    json_t *j = fetch("/v1/models", 200);

    cr_expect_str_eq(at(j, "object", NULL), "list");
    cr_assert_eq(json_array_size(json_object_get(j, "data")), 3);
    cr_expect_str_eq(at(json_array_get(json_object_get(j, "data"), 1), "id", NULL), "tern-nano");
    cr_expect_str_eq(at(json_array_get(json_object_get(j, "data"), 2), "owned_by", NULL), "tern");
    json_decref(j);
    j = fetch("/v1/models/tern%2Dnano", 200);
    cr_expect_str_eq(at(j, "object", NULL), "model");
    json_decref(j);
    j = fetch("/v1/models/gpt-9", 404);
    cr_expect_str_eq(at(j, "error", "code"), "model_not_found");
    json_decref(j);
}

Test(http, status)
{
    json_t *j = fetch("/v1/tern/status", 200);

    cr_expect_str_eq(at(j, "version", NULL), TERN_VERSION);
    cr_expect_eq(json_integer_value(json_object_get(json_object_get(j, "engine"), "pid")), 11);
    cr_expect_eq(json_integer_value(json_object_get(json_object_get(j, "engine"), "running")), 1);
    cr_expect_str_eq(at(j, "store", "path"), "/var/lib/tern/tern.db");
    cr_expect_eq(json_integer_value(json_object_get(json_object_get(j, "store"), "in_flight")), 4);
    cr_expect(json_is_integer(json_object_get(j, "uptime_sec")));
    json_decref(j);
}

Test(http, log_filters)
{
    uint64_t now = clock_wall_usec();
    static const char *const wrong[] = {"limit=0", "limit=1001", "limit=x", "limit=", "since=yesterday", "since=5y",
                                        "until=9999999h", "colour=red", "since=2026-13-45"};
    char target[128];
    json_t *j;

    fake.store_result = "{\"rows\":[{\"id\":\"X\"}]}";
    j = fetch("/v1/tern/log?route=cloud&reason=too-hard&label=public&outcome=ok&key=my%20key&since=24h"
              "&until=2026-11-22T08:00:00Z&limit=7", 200);
    cr_expect_eq(json_array_size(json_object_get(j, "rows")), 1);
    json_decref(j);
    cr_expect_str_eq(fake.query_text, "id=- route=cloud reason=too-hard label=public outcome=ok key=my key limit=7");
    cr_expect(now - fake.query.since_usec > 86390 * USEC_PER_SEC && now - fake.query.since_usec < 86410 * USEC_PER_SEC);
    cr_expect_eq(fake.query.until_usec, 1795334400 * USEC_PER_SEC);
    json_decref(fetch("/v1/tern/log", 200));
    cr_expect_eq(fake.query.limit, 100);
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        snprintf(target, sizeof(target), "/v1/tern/log?%s", wrong[i]);
        json_decref(fetch(target, 400));
    }
    fake.store_result = NULL;
    j = fetch("/v1/tern/stats?since=7d", 503);
    cr_expect_eq(fake.query.ask, STORE_STATS);
    cr_expect_str_eq(at(j, "error", "code"), "store_unavailable");
    json_decref(j);
}

Test(http, why)
{
    json_t *j;

    fake.store_result = "{\"request\":{\"id\":\"X\"},\"decisions\":[],\"attempts\":[],\"egress\":[],\"outcome\":null}";
    j = fetch("/v1/tern/why/chatcmpl-" FAKE_ID, 200);
    cr_expect(json_is_array(json_object_get(j, "sentences")));
    cr_expect(strncmp(fake.query_text, "id=" FAKE_ID " ", 30) == 0, "%s", fake.query_text);
    json_decref(j);
    fake.store_result = "null";
    json_decref(fetch("/v1/tern/why/" FAKE_ID, 404));
}

/* Every line is a comment or NAME{LABELS} VALUE of a family that was announced; buckets never fall. */
Test(http, metrics)
{
    cleanup(freep) char *answer = NULL;
    char family[128] = "", type[32], name[128], *line, *save;
    double value;
    int lines = 0;

    cr_expect_eq(chat("", HI, NULL), 200);
    cr_expect_eq(exchange("GET /metrics HTTP/1.1\r\n" H "Connection: close\r\n\r\n", &answer), 200);
    cr_expect_str_eq(header_of(answer, "Content-Type"), "text/plain; version=0.0.4; charset=utf-8");
    cr_expect(strstr(answer, "\ntern_requests_total{route=\"local\",outcome=\"ok\"} 1\n"));
    cr_expect(strstr(answer, "\ntern_breaker_state{endpoint=\"main\",state=\"closed\"} 1\n"));
    cr_expect(strstr(answer, "\ntern_cost_usd_total 2.5\n"));
    cr_expect(strstr(answer, "\ntern_latency_seconds_bucket{route=\"local\",le=\"0.005\"} 1\n"));
    cr_expect(strstr(answer, "\ntern_latency_seconds_bucket{route=\"local\",le=\"60\"} 2\n"));
    cr_expect(strstr(answer, "\ntern_latency_seconds_bucket{route=\"local\",le=\"+Inf\"} 3\n"));
    cr_expect(strstr(answer, "\nprocess_resident_memory_bytes "));
    for (line = strtok_r((char *)body_of(answer), "\n", &save); line; line = strtok_r(NULL, "\n", &save), lines++) {
        if (sscanf(line, "# TYPE %127s %31s", family, type) == 2 || strncmp(line, "# HELP ", 7) == 0)
            continue;
        cr_expect(sscanf(line, "%127[a-z_]", name) == 1 && strncmp(name, family, strlen(family)) == 0, "%s (in %s)",
                  line, family);
        cr_expect(strrchr(line, ' ') && sscanf(strrchr(line, ' '), "%lf", &value) == 1, "%s", line);
    }
    cr_expect_gt(lines, 80);
}

Test(http, head_has_no_body)
{
    cleanup(freep) char *answer = NULL;

    cr_expect_eq(exchange("HEAD /health HTTP/1.1\r\n" H "Connection: close\r\n\r\n", &answer), 200);
    cr_expect_str_empty(body_of(answer));
}
