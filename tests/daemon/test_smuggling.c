/* Requests made by crossing what may vary, each with the verdict of a rule that is written here anew and shares nothing
 * with the server: what frames a body, which bytes a head may hold, how chunks are written, what follows a request, and
 * who may ask from where. What a rule does not allow must be refused, and behind whatever was sent a second request
 * waits that must never be answered. */
#include <criterion/criterion.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include "base/buf.h"
#include "tests/daemon/fake.h"

#define HI "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}"
#define HEAD "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
#define SECOND "GET /v1/tern/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

static void configure(struct config *c)
{
    c->listen.n_hosts = c->listen.n_origins = 1;
    strcpy(c->listen.hosts[0], "assistant.example");
    strcpy(c->listen.origins[0], "http://localhost:3000");
}
static void plain(void) { fake_start(configure); }

TestSuite(smuggling, .init = plain, .fini = fake_stop, .timeout = 110);

static unsigned n_cases, n_allowed;

/* Send `bytes` and the second request behind them. Allowed: one answer, 200. Else: one refusal, and the connection ends.
 * Either way no second answer. */
static void check(const struct buf *bytes, bool allowed, const char *what)
{
    cleanup(buf_done) struct buf all = {.max = 1 << 20};
    cleanup(freep) char *answer = NULL;
    unsigned before = fake.started;
    int fd = dial(), status = 0;
    bool closed;

    buf_append(&all, bytes->data, bytes->len);
    buf_puts(&all, SECOND);
    put(fd, (char *)all.data, all.len);
    answer = get(fd, NULL, 3000, NULL, &closed);
    close(fd);
    pump();
    sscanf(answer, "HTTP/1.%*d %d", &status);
    cr_expect(allowed ? status == 200 : status >= 400, "%s: %d\n%s", what, status, (char *)bytes->data);
    cr_expect_eq(fake.started - before, allowed, "%s: %u requests were run", what, fake.started - before);
    cr_expect(closed, "%s: not closed", what);
    cr_expect(!strstr(answer, "text/html"), "%s: it came as far as evhttp", what);
    cr_expect(!*answer || !strstr(answer + 1, "HTTP/1.1 "), "%s: the second request was answered", what);
    n_cases++;
    n_allowed += allowed;
}

/* ---- Where a body ends ------------------------------------------------------------------------------------------- */

/* One way to tell, told in one way: a plain number, or the word chunked, and that not to HTTP/1.0. */
static bool framing_allowed(const char *te, const char *cl, bool http11)
{
    static const char *const chunked[] = {"chunked", "Chunked", "CHUNKED", " chunked", "chunked ", "\tchunked\t"};
    static const char *const numbers[] = {"45", "045", " 45", "45 ", "\t45", "00000045"};

    for (size_t i = 0; te && !cl && http11 && i < ARRAY_SIZE(chunked); i++)
        if (strcmp(te, chunked[i]) == 0)
            return true;
    for (size_t i = 0; cl && !te && i < ARRAY_SIZE(numbers); i++)
        if (strcmp(cl, numbers[i]) == 0)
            return true;
    return false;
}

Test(smuggling, framing)
{
    static const char *const te[] = {
        NULL, "chunked", "Chunked", " chunked", "chunked ", "\tchunked\t", "chunked,", ",chunked", "chunked, chunked",
        "chunked, identity", "identity, chunked", "identity", "gzip", "gzip, chunked", "xchunked", "chunkedx", "chunked;q=1",
        "\"chunked\"", "chun ked", "'chunked'", "", "chunked\t,", "trailers",
    };
    static const char *const cl[] = {
        NULL, "45", "045", " 45", "45 ", "+45", "-45", "45,45", "45, 45", "0x2d", "45.0", "", "4 3", "45;", "\"45\"", "45e0",
        "\xd9\xa4\xd9\xa5", "99999999999999999999", "42a",
    };

    for (size_t i = 0; i < ARRAY_SIZE(te) * ARRAY_SIZE(cl) * 4; i++) {
        const char *t = te[i / 4 % ARRAY_SIZE(te)], *l = cl[i / 4 / ARRAY_SIZE(te)];
        bool te_first = i & 1, http11 = i & 2;
        cleanup(buf_done) struct buf b = {.max = 4096};
        char what[128];

        buf_printf(&b, "POST /v1/chat/completions HTTP/1.%d\r\nHost: localhost\r\nContent-Type: application/json\r\n", http11);
        if (t && te_first)
            buf_printf(&b, "Transfer-Encoding:%s\r\n", t);
        if (l)
            buf_printf(&b, "Content-Length:%s\r\n", l);
        if (t && !te_first)
            buf_printf(&b, "Transfer-Encoding:%s\r\n", t);
        buf_puts(&b, t && strcasestr(t, "chunked") ? "\r\n2d\r\n" HI "\r\n0\r\n\r\n" : "\r\n" HI);
        snprintf(what, sizeof(what), "TE \"%s\" CL \"%s\" HTTP/1.%d", t ? t : "-", l ? l : "-", http11);
        check(&b, framing_allowed(t, l, http11), what);
    }
    cr_log_info("%u framings, %u of them allowed", n_cases, n_allowed);
    cr_assert(n_cases >= 1000 && n_allowed > 10 && n_allowed < 100);
}

/* Two fields where one may be, in every order and writing. */
Test(smuggling, doubled_fields)
{
    static const char *const fields[] = {
        "Content-Length: 45", "content-length:45", "CONTENT-LENGTH: 45", "Content-Length: 0", "Transfer-Encoding: chunked",
        "transfer-encoding:chunked", "Transfer-Encoding: identity", "Content-Length : 45", "Content_Length: 45",
    };

    for (size_t i = 0; i < ARRAY_SIZE(fields) * ARRAY_SIZE(fields); i++) {
        const char *a = fields[i / ARRAY_SIZE(fields)], *b = fields[i % ARRAY_SIZE(fields)];
        bool odd = strchr(a, '_') || strchr(b, '_');     /* a field of another name, which says nothing */
        cleanup(buf_done) struct buf bytes = {.max = 4096};
        bool plain_a = strcasestr(a, "length:") && strstr(a, "45") && !strchr(a, '_'),
             plain_b = strcasestr(b, "length:") && strstr(b, "45") && !strchr(b, '_');

        buf_printf(&bytes, HEAD "%s\r\n%s\r\n\r\n%s", a, b, HI);
        if (odd && ((plain_a && !strcasestr(b, "45 ")) || plain_b))
            check(&bytes, true, a);
        else if (odd && (strcasestr(a, ": chunked") || strcasestr(a, ":chunked") || strcasestr(b, "chunked")))
            n_cases++;                                   /* chunked alone, with a body that is not: cut short */
        else
            check(&bytes, false, a);
    }
    cr_assert(n_cases >= 80);
}

/* ---- Bytes that no head may hold --------------------------------------------------------------------------------- */

Test(smuggling, control_bytes)
{
    static const char *const places[] = {        /* the byte takes the place of @ */
        "GET /hea@lth HTTP/1.1\r\nHost: localhost\r\n\r\n", "GET@ /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /health HTTP/1.1@\r\nHost: localhost\r\n\r\n", "GET /health HTTP/1.1\r\nHost@: localhost\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: local@host\r\n\r\n", "GET /health HTTP/1.1\r\n@Host: localhost\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: b@c\r\n\r\n", "GET /health HTTP/1.1\r\nHost: localhost\r\n@\r\n\r\n",
        "@GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", "GET /health HTTP/1.1\r\nHost: localhost\r\nX@A: b\r\n\r\n",
    };

    for (size_t i = 0; i < ARRAY_SIZE(places) * 34; i++) {
        const char *place = places[i / 34], *at = strchr(place, '@');
        uint8_t byte = i % 34 < 32 ? (uint8_t)(i % 34) : i % 34 == 32 ? 0x7f : ' ';
        cleanup(buf_done) struct buf b = {.max = 4096};
        cleanup(freep) char *answer = NULL;
        /* A blank inside a value is a blank; blanks alone on a line or before the name are not. */
        bool allowed = (byte == '\t' || byte == ' ') && strstr(place, "b@c");
        int fd = dial(), status = 0;
        bool closed;

        buf_append(&b, place, (size_t)(at - place));
        buf_append(&b, &byte, 1);
        buf_puts(&b, at + 1);
        buf_puts(&b, allowed ? "" : SECOND);
        put(fd, (char *)b.data, b.len);
        answer = get(fd, allowed ? "}" : NULL, 3000, NULL, &closed);
        close(fd);
        pump();
        sscanf(answer, "HTTP/1.%*d %d", &status);
        cr_expect(allowed ? status == 200 : status >= 400, "%02x at %s: %d", byte, place, status);
        cr_expect(allowed || (closed && !strstr(answer + 1, "HTTP/1.1 ")), "%02x at %s: more than one answer", byte, place);
        cr_expect(!strstr(answer, "text/html"), "%02x at %s: it came as far as evhttp", byte, place);
        n_cases++;
    }
    cr_assert_eq(n_cases, 340);
}

/* ---- Chunks ------------------------------------------------------------------------------------------------------ */

Test(smuggling, chunks)
{
    static const struct { const char *text; bool allowed; } sizes[] = {
        {"2d", true}, {"2D", true}, {"02d", true}, {"0000002d", true}, {"00000002d", false}, {"2d ", false}, {" 2d", false},
        {"2d\t", false}, {"2d;a=b", false}, {"2d; a", false}, {"0x2d", false}, {"+2d", false}, {"-2d", false}, {"", false},
        {"2c", false}, {"2e", false}, {"2dg", false}, {"2d\r", false}, {"ffffffff", false}, {"80000000", false},
        {"10000000000000000002d", false}, {"2d,2d", false}, {"2_d", false},
    };
    static const struct { const char *text; bool allowed; } ends[] = {
        {"\r\n0\r\n\r\n", true}, {"\r\n00\r\n\r\n", true}, {"\r\n0;x\r\n\r\n", false}, {"\r\n0\r\nX-A: b\r\n\r\n", false},
        {"\n0\r\n\r\n", false}, {"\r\n0\n\r\n", false}, {"\r\n0\r\n\n", false}, {"0\r\n\r\n", false}, {"\r\n\r\n0\r\n\r\n", false},
        {"\r\n0\r\n\r", false}, {"\r\n0 \r\n\r\n", false}, {"\r0\r\n\r\n", false},
    };

    for (size_t i = 0; i < ARRAY_SIZE(sizes) * ARRAY_SIZE(ends); i++) {
        size_t s = i / ARRAY_SIZE(ends), e = i % ARRAY_SIZE(ends);
        cleanup(buf_done) struct buf b = {.max = 4096};
        char what[64];

        buf_printf(&b, HEAD "Transfer-Encoding: chunked\r\n\r\n%s\r\n" HI "%s", sizes[s].text, ends[e].text);
        snprintf(what, sizeof(what), "size %zu end %zu", s, e);
        check(&b, sizes[s].allowed && ends[e].allowed, what);
    }
    cr_assert(n_cases >= 270 && n_allowed == 8);
}

/* ---- What comes behind, and other protocols ---------------------------------------------------------------------- */

Test(smuggling, pipelines_and_upgrades)
{
    static const char *const behind[] = {
        "", "GET /health HTTP/1.1\r\n", "\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HEAD "Content-Length: 45\r\n\r\n" HI, "\0x",
    };
    static const char *const upgrades[] = {
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA==\r\n",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
        "Connection: upgrade\r\nUpgrade: TLS/1.2\r\n", "Upgrade: websocket\r\n", "Connection: keep-alive, Host\r\n",
        "Connection: Content-Length\r\n", "Proxy-Connection: keep-alive\r\n", "X-HTTP-Method-Override: DELETE\r\n",
        "X-Forwarded-Host: evil.example\r\n", "X-Original-URL: /v1/tern/log\r\n", "X-Rewrite-URL: /v1/tern/log\r\n",
        "Forwarded: host=evil.example\r\n", "Trailer: Host\r\n", "TE: trailers, chunked\r\n",
    };

    for (size_t i = 0; i < ARRAY_SIZE(behind); i++) {
        cleanup(buf_done) struct buf b = {.max = 4096};

        buf_puts(&b, HEAD "Content-Length: 45\r\n\r\n" HI);
        buf_append(&b, behind[i], i == ARRAY_SIZE(behind) - 1 ? 2 : strlen(behind[i]));
        check(&b, true, "pipelined");
    }
    for (size_t i = 0; i < ARRAY_SIZE(upgrades); i++) {
        cleanup(buf_done) struct buf b = {.max = 4096};
        cleanup(freep) char *answer = NULL;

        /* Understood as if they were not there: the answer is the request's own, and never 101. */
        buf_printf(&b, "GET /health HTTP/1.1\r\nHost: localhost\r\n%s\r\n" SECOND, upgrades[i]);
        int fd = dial();
        put(fd, (char *)b.data, b.len);
        answer = get(fd, NULL, 3000, NULL, NULL);
        close(fd);
        pump();
        cr_expect(strncmp(answer, "HTTP/1.1 200", 12) == 0 && strstr(answer, "\"status\""), "%s: %s", upgrades[i], answer);
        cr_expect(!strstr(answer + 1, "HTTP/1.1 "), "%s: two answers", upgrades[i]);
        n_cases++;
    }
    cr_assert_eq(n_cases, ARRAY_SIZE(behind) + ARRAY_SIZE(upgrades));
}

/* Cut anywhere, and then nothing more: no request is run, and nothing of it stays. */
Test(smuggling, cut_anywhere)
{
    static const char *const whole[] = {
        HEAD "Content-Length: 45\r\n\r\n" HI, HEAD "Transfer-Encoding: chunked\r\n\r\n2d\r\n" HI "\r\n0\r\n\r\n",
    };

    for (size_t i = 0; i < ARRAY_SIZE(whole); i++)
        for (size_t n = 1; n < strlen(whole[i]); n += 3) {
            int fd = dial();

            put(fd, whole[i], n);
            pump();
            close(fd);
            pump();
            n_cases++;
        }
    cr_expect_eq(fake.started, 0);
    cr_expect_eq(exchange("GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", NULL), 200);
    cr_assert_geq(n_cases, 100);
}

/* ---- Who may ask, from where ------------------------------------------------------------------------------------- */

static void keys(struct config *c)
{
    configure(c);
    strcpy(c->auth.keys[0].name, "laptop");
    EVP_Digest("right", 5, c->auth.keys[0].sha256, NULL, EVP_sha256(), NULL);
    c->auth.n_keys = 1;
}
static void keys_required(struct config *c)
{
    keys(c);
    c->auth.required = true;
}
static void optional(void) { fake_start(keys); }
static void required(void) { fake_start(keys_required); }

/* Host: exactly a name of ours and perhaps a port; nobody is rebound to a unix socket. */
static bool host_ours(const char *host, bool is_unix)
{
    static const char *const ours[] = {
        "localhost", "localhost:8420", "LocalHost", "127.0.0.1", "127.0.0.1:65535", "[::1]", "[::1]:1", "assistant.example",
        "assistant.example:445",
    };

    for (size_t i = 0; i < ARRAY_SIZE(ours); i++)
        if (strcmp(host, ours[i]) == 0)
            return true;
    return is_unix;
}

static void check_matrix(bool is_required)
{
    static const char *const hosts[] = {
        "localhost", "localhost:8420", "LocalHost", "127.0.0.1", "127.0.0.1:65535", "[::1]", "[::1]:1", "assistant.example",
        "assistant.example:445", "evil.example", "localhost.evil.example", "evil.example:8420", "127.0.0.2", "0.0.0.0",
        "localhost:", "localhost:123456", "[::1", "[::2]", "::1", "assistant.example.", "xassistant.example", "2130706453",
        "0x7f.1", "127.1", "localhost:80:80", "localhost, localhost", "user@localhost",
        "local", "l", "127", "assistant", "[", ":8420",
    };
    static const char *const origins[] = {
        NULL, "http://localhost:3000", "http://localhost:3001", "https://localhost:3000", "http://evil.example", "null", "",
        "http://localhost:3000/", "HTTP://LOCALHOST:3000", "http://localhost:3000, http://evil.example",
    };
    static const struct { const char *header; bool right, none; } sent[] = {
        {"", false, true}, {"Authorization: Bearer right\r\n", true, false}, {"Authorization: Bearer wrong\r\n", false, false},
        {"x-api-key: right\r\n", true, false}, {"Authorization: Basic cmlnaHQ=\r\n", false, false},
        {"Authorization: Bearer right \r\n", true, false}, {"Authorization: Bearer\r\n", false, false},
        {"Authorization: Bearer Right\r\n", false, false},
    };
    unsigned n[3] = {0};

    for (size_t i = 0; i < ARRAY_SIZE(hosts) * ARRAY_SIZE(origins) * ARRAY_SIZE(sent) * 2; i++) {
        bool is_unix = i & 1;
        const char *host = hosts[i / 2 % ARRAY_SIZE(hosts)];
        const char *origin = origins[i / 2 / ARRAY_SIZE(hosts) % ARRAY_SIZE(origins)];
        size_t k = i / 2 / ARRAY_SIZE(hosts) / ARRAY_SIZE(origins);
        bool origin_ours = !origin || strcmp(origin, "http://localhost:3000") == 0;
        bool open = i / 2 % 3 == 0, key_ours = sent[k].right || (sent[k].none && !is_required);
        int wanted = !host_ours(host, is_unix) || !origin_ours ? 403 : open || key_ours ? 200 : 401, status = 0;
        cleanup(buf_done) struct buf b = {.max = 4096};
        cleanup(freep) char *answer = NULL;
        int fd = is_unix ? dial_unix() : dial();

        buf_printf(&b, "GET %s HTTP/1.1\r\nHost: %s\r\n%s%s%s%sConnection: close\r\n\r\n", open ? "/health" : "/v1/models",
                   host, origin ? "Origin: " : "", origin ? origin : "", origin ? "\r\n" : "", sent[k].header);
        put(fd, (char *)b.data, b.len);
        answer = get(fd, NULL, 3000, NULL, NULL);
        close(fd);
        sscanf(answer, "HTTP/1.%*d %d", &status);
        cr_expect_eq(status, wanted, "%d, not %d: %s", status, wanted, (char *)b.data);
        cr_expect_eq(header_of(answer, "Access-Control-Allow-Origin") != NULL,
                     origin && origin_ours && host_ours(host, is_unix), "%s", (char *)b.data);
        cr_expect(wanted == 200 || !strstr(answer, "\"object\":\"list\""), "refused, and told all the same");
        n[wanted == 200 ? 0 : wanted == 401 ? 1 : 2]++;
    }
    cr_log_info("%u answered, %u without a key, %u from a foreign place", n[0], n[1], n[2]);
    cr_assert(n[0] + n[1] + n[2] >= 4000 && n[0] > 100 && n[1] > 100);
}

Test(smuggling, who_may_ask_keys_optional, .init = optional) { check_matrix(false); }
Test(smuggling, who_may_ask_keys_required, .init = required) { check_matrix(true); }
