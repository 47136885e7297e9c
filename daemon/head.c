/* The head of an HTTP/1 request, read once and strictly, after RFC 9112 without its leniencies: lines end in CRLF,
 * nothing is folded, nothing that decides where a message ends or who sent it comes twice, and the target is a plain
 * path. What evhttp would read in another way than a proxy in front of us might is refused here, so that a request
 * cannot be smuggled inside another. The body's framing is followed the same way. Pure: bytes in, words out. */
#include <ctype.h>
#include <errno.h>
#include <string.h>
#include "daemon/http.h"

static int refuse(struct request_error *e, int status, const char *code, const char *message)
{
    *e = (struct request_error){
        .http_status = status, .type = "invalid_request_error", .code = code, .message = message};
    return -EPROTO;
}

static int malformed(struct request_error *e, const char *message)
{
    return refuse(e, 400, "malformed_request", message);
}

ssize_t head_scan(const uint8_t *p, size_t len, size_t *from, struct request_error *e)
{
    for (size_t i = *from; i < len; i++) {
        uint8_t before = i ? p[i - 1] : 0;

        if (p[i] == '\n' && before != '\r')
            return malformed(e, "a line of the request does not end in CRLF");
        if (p[i] != '\n' && before == '\r')
            return malformed(e, "a carriage return inside a line");
        if ((p[i] < 0x20 && p[i] != '\r' && p[i] != '\n' && p[i] != '\t') || p[i] == 0x7f)
            return malformed(e, "a control character in the request; this port speaks plain HTTP/1.1, not TLS");
        if (p[i] == '\n' && i == 1)
            return malformed(e, "an empty line before the request");
        if (p[i] == '\n' && i >= 3 && p[i - 2] == '\n') {
            *from = i + 1;
            return (ssize_t)(i + 1);
        }
    }
    *from = len;
    return 0;
}

static bool is_token(const char *s)
{
    if (!*s)
        return false;
    for (; *s; s++)
        if (!isalnum((unsigned char)*s) && !strchr("!#$%&'*+-.^_`|~", *s))
            return false;
    return true;
}

/* Characters of RFC 3986 that a path and query may hold. */
static bool is_target(const char *s)
{
    if (s[0] != '/' || s[1] == '/')
        return false;
    for (; *s; s++)
        if (!isalnum((unsigned char)*s) && !strchr("-._~!$&'()*+,;=:@/?%", *s))
            return false;
    return true;
}

static int read_request_line(struct head *h, char *line, struct request_error *e)
{
    char *target = strchr(line, ' '), *version = target ? strchr(target + 1, ' ') : NULL, *query;

    if (!version || strchr(version + 1, ' ') || strchr(line, '\t'))
        return malformed(e, "the request line is not METHOD PATH VERSION");
    *target++ = *version++ = '\0';
    if (strncmp(version, "HTTP/", 5) != 0 || !isdigit((unsigned char)version[5]) || version[6] != '.' ||
        !isdigit((unsigned char)version[7]) || version[8])
        return malformed(e, "the request line does not end in an HTTP version");
    if (version[5] != '1' || version[7] > '1')
        return refuse(e, 505, "http_version_not_supported", "only HTTP/1.0 and HTTP/1.1 are spoken here");
    if (!is_token(line))
        return malformed(e, "the method is not a token");
    if (!is_target(target))
        return malformed(e, "the target must be a path that begins with one '/', percent-encoded where needed");
    h->method = line;
    h->target = target;
    h->http10 = version[7] == '0';
    query = strchr(target, '?');
    if (query)
        *query++ = '\0';
    h->query = query;
    return 0;
}

/* Fields that are looked at. Each may come once only: they say who asks, for what, or where the message ends. */
#define FIELD(name_, member) {name_, offsetof(struct head, member)}
static const struct { const char *name; size_t offset; } fields[] = {
    FIELD("host", host), FIELD("origin", origin), FIELD("authorization", authorization), FIELD("x-api-key", api_key),
    FIELD("content-type", content_type), FIELD("content-length", content_length), FIELD("expect", expect),
    FIELD("transfer-encoding", transfer_encoding), FIELD("access-control-request-method", preflight),
    FIELD("x-tern-label", label), FIELD("x-tern-mode", mode), FIELD("x-tern-priority", priority),
    FIELD("x-tern-deadline-ms", deadline_ms),
};

static int read_field(struct head *h, char *line, struct request_error *e)
{
    char *value = strchr(line, ':'), *end;

    if (*line == ' ' || *line == '\t')
        return malformed(e, "a header folded over several lines");
    if (!value)
        return malformed(e, "a header without a colon");
    *value++ = '\0';
    if (!is_token(line))
        return malformed(e, "a header's name is not a token");
    value += strspn(value, " \t");
    end = value + strlen(value);
    while (end > value && (end[-1] == ' ' || end[-1] == '\t'))
        *--end = '\0';
    for (size_t i = 0; i < ARRAY_SIZE(fields); i++) {
        const char **slot = (const char **)((char *)h + fields[i].offset);

        if (strcasecmp(line, fields[i].name) != 0)
            continue;
        if (*slot)
            return malformed(e, "a header that may come only once came twice");
        *slot = value;
    }
    return 0;
}

/* Where the body ends: one answer, or none. */
static int read_framing(struct head *h, struct request_error *e)
{
    bool post = strcmp(h->method, "POST") == 0;

    if (h->transfer_encoding && h->content_length)
        return malformed(e, "both Content-Length and Transfer-Encoding");
    if (h->transfer_encoding) {
        if (h->http10)
            return malformed(e, "Transfer-Encoding in HTTP/1.0");
        if (strcasecmp(h->transfer_encoding, "chunked") != 0)
            return refuse(e, 501, "transfer_encoding_not_supported",
                          "the only Transfer-Encoding understood is chunked");
        h->chunked = true;
    }
    if (h->content_length) {
        const char *s = h->content_length;

        if (!*s || strspn(s, "0123456789") != strlen(s) || strlen(s) > 18)
            return malformed(e, "Content-Length is not a number");
        h->length = strtoull(s, NULL, 10);
        h->has_length = true;
    }
    if (!post && (h->chunked || h->length))
        return malformed(e, "only a POST may have a body");
    if (post && !h->chunked && !h->has_length)
        return refuse(e, 411, "length_required", "a POST needs Content-Length");
    if (h->expect && strcasecmp(h->expect, "100-continue") != 0)
        return refuse(e, 417, "expectation_failed", "the only Expect understood is 100-continue");
    return 0;
}

int head_parse(struct head *ret, char *text, size_t len, struct request_error *e)
{
    struct head h = {0};
    char *line = text, *next;
    unsigned n = 0;
    int r;

    for (; line < text + len; line = next) {
        next = memchr(line, '\r', (size_t)(text + len - line));
        if (!next || next == line)
            break;
        *next = '\0';
        next += 2;
        if (n++ > HEAD_MAX_FIELDS)
            return refuse(e, 431, "too_many_headers", "more than 100 headers");
        r = h.method ? read_field(&h, line, e) : read_request_line(&h, line, e);
        if (r < 0)
            return r;
    }
    if (!h.method)
        return malformed(e, "no request line");
    if (!h.host)
        return malformed(e, "no Host header");
    r = read_framing(&h, e);
    if (r < 0)
        return r;
    *ret = h;
    return 0;
}

/* ---- Body -------------------------------------------------------------------------------------------------------- */

void body_init(struct body *b, const struct head *h, uint64_t max)
{
    *b = (struct body){.left = h->length, .max = max};
    b->state = h->chunked ? BODY_SIZE : h->length ? BODY_PLAIN : BODY_DONE;
}

static int too_long(struct request_error *e)
{
    return refuse(e, 413, "body_too_large", "the body is longer than listen.max_body allows");
}

static int chunk_digit(struct body *b, uint8_t c, struct request_error *e)
{
    if (!isxdigit(c) || b->digits == 8)
        return malformed(e, "a chunk's size is not a short hexadecimal number");
    b->left = b->left * 16 + (uint64_t)(isdigit(c) ? c - '0' : (c | 0x20) - 'a' + 10);
    b->digits++;
    return 0;
}

/* One byte of framing, outside the data. */
static int chunk_step(struct body *b, uint8_t c, struct request_error *e)
{
    static const struct { uint8_t expected, next; } steps[] = {
        [BODY_DATA_CR] = {'\r', BODY_DATA_LF}, [BODY_DATA_LF] = {'\n', BODY_SIZE},
        [BODY_END_CR] = {'\r', BODY_END_LF},   [BODY_END_LF] = {'\n', BODY_DONE},
    };

    switch (b->state) {
    case BODY_SIZE:
        if (c != '\r' || !b->digits)
            return chunk_digit(b, c, e);
        b->state = BODY_SIZE_LF;
        return 0;
    case BODY_SIZE_LF:
        if (c != '\n')
            return malformed(e, "a chunk's size does not end in CRLF");
        b->total += b->left;
        b->digits = 0;
        b->state = b->left ? BODY_DATA : BODY_END_CR;
        return b->total > b->max ? too_long(e) : 0;
    default:
        if (c != steps[b->state].expected)
            return malformed(e, "a chunk does not end in CRLF, or trailers follow the last one");
        b->state = steps[b->state].next;
        return 0;
    }
}

int body_scan(struct body *b, const uint8_t *bytes, size_t len, size_t *ret_used, struct request_error *e)
{
    size_t i = 0;

    if (b->state == BODY_PLAIN && b->left > b->max)
        return too_long(e);
    while (i < len && b->state != BODY_DONE) {
        if (b->state == BODY_PLAIN || b->state == BODY_DATA) {
            size_t n = (size_t)MIN(b->left, (uint64_t)(len - i));

            i += n;
            b->left -= n;
            if (!b->left)
                b->state = b->state == BODY_PLAIN ? BODY_DONE : BODY_DATA_CR;
        } else {
            int r = chunk_step(b, bytes[i++], e);

            if (r < 0)
                return r;
        }
    }
    *ret_used = i;
    return 0;
}

/* ---- Host -------------------------------------------------------------------------------------------------------- */

bool host_allowed(const char *host, const struct config *c)
{
    static const char *const loopback[] = {"localhost", "127.0.0.1", "[::1]"};
    size_t n = *host == '[' ? strcspn(host, "]") + 1 : strcspn(host, ":");
    const char *port = host + MIN(n, strlen(host));

    if (*port && (*port != ':' || !port[1] || strlen(port) > 6 || strspn(port + 1, "0123456789") != strlen(port + 1)))
        return false;
    for (size_t i = 0; i < ARRAY_SIZE(loopback); i++)
        if (strlen(loopback[i]) == n && strncasecmp(host, loopback[i], n) == 0)
            return true;
    for (size_t i = 0; i < c->listen.n_hosts; i++)
        if (strlen(c->listen.hosts[i]) == n && strncasecmp(host, c->listen.hosts[i], n) == 0)
            return true;
    return false;
}
