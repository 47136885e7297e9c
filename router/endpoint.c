/* Which URLs a cloud endpoint may have. The check is stricter than the URL parsers that come later: a host that two
 * parsers could read differently (numbers in odd bases, user info, escapes) is refused, never interpreted. */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include "router/egress.h"

#define URL_CHARS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~+/:[]"

/* Letters, digits and hyphens between single dots; an address only as four plain decimal numbers. */
static int name_check(const char *host, bool *ret_loopback)
{
    struct in_addr v4;
    size_t n;

    if (inet_pton(AF_INET, host, &v4) == 1) {
        *ret_loopback = ntohl(v4.s_addr) >> 24 == 127;
        return 0;
    }
    *ret_loopback = strcmp(host, "localhost") == 0;
    for (;; host += n + 1) {
        n = strcspn(host, ".");
        if (n == 0 || n > 63 || strspn(host, "abcdefghijklmnopqrstuvwxyz0123456789-") < n)
            return -EINVAL;
        if (!host[n])
            return isdigit((unsigned char)*host) ? -EINVAL : 0;
    }
}

static int bracketed_check(const char *host, bool *ret_loopback)
{
    char text[INET6_ADDRSTRLEN];
    struct in6_addr v6;
    size_t n = strlen(host);

    if (n < 2 || n - 2 >= sizeof(text) || host[n - 1] != ']')
        return -EINVAL;
    memcpy(text, host + 1, n - 2);
    text[n - 2] = 0;
    if (inet_pton(AF_INET6, text, &v6) != 1)
        return -EINVAL;
    *ret_loopback = IN6_IS_ADDR_LOOPBACK(&v6);
    return 0;
}

/* Cut ":port" off; none: *port stays. */
static int port_cut(char *host, unsigned *port)
{
    char *colon = strrchr(host, ':');
    size_t digits;

    if (!colon || strchr(colon, ']'))
        return 0;
    digits = strspn(colon + 1, "0123456789");
    if (digits == 0 || digits > 5 || colon[1 + digits])
        return -EINVAL;
    *port = (unsigned)strtoul(colon + 1, NULL, 10);
    *colon = 0;
    return *port >= 1 && *port <= 65535 ? 0 : -EINVAL;
}

int endpoint_host(char *ret, size_t size, const char *url, struct err *err)
{
    bool https = strncasecmp(url, "https://", 8) == 0, loopback = false;
    unsigned port = https ? 443 : 80;
    char host[256];
    const char *rest;
    size_t n;

    if (!https && strncasecmp(url, "http://", 7) != 0)
        return err_set(err, -EINVAL, "url must begin with https://");
    rest = url + (https ? 8 : 7);
    if (rest[strspn(rest, URL_CHARS)])
        return err_set(err, -EINVAL, "url must have no user info, query, fragment or escapes");
    n = strcspn(rest, "/");
    if (n >= sizeof(host))
        return err_set(err, -EINVAL, "url has too long a host name");
    for (size_t i = 0; i < n; i++)
        host[i] = (char)tolower((unsigned char)rest[i]);
    host[n] = 0;

    if (port_cut(host, &port) < 0)
        return err_set(err, -EINVAL, "url must have a port from 1 to 65535, or none");
    if ((*host == '[' ? bracketed_check(host, &loopback) : name_check(host, &loopback)) < 0)
        return err_set(err, -EINVAL, "url must name its host as name, dotted IPv4 or bracketed IPv6 address");
    if (!https && !loopback)
        return err_set(err, -EINVAL, "url must begin with https://; http:// is for loopback addresses and localhost");

    n = (size_t)snprintf(NULL, 0, "%s:%u", host, port);
    if (n >= size)
        return err_set(err, -EINVAL, "url has too long a host name");
    snprintf(ret, size, "%s:%u", host, port);
    return 0;
}
