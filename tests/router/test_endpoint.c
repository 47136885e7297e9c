/* endpoint.c: the URLs that may be configured, and the many that may not. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include "router/egress.h"

static const struct { const char *url, *host; } allowed[] = {
    {"https://api.example.com/v1", "api.example.com:443"},
    {"https://API.Example.com", "api.example.com:443"},
    {"HTTPS://api.example.com:8443/a/b/", "api.example.com:8443"},
    {"https://10.0.0.7/v1", "10.0.0.7:443"},
    {"https://[2001:db8::1]/v1", "[2001:db8::1]:443"},
    {"https://xn--bcher-kva.example/v1", "xn--bcher-kva.example:443"},
    {"https://localhost", "localhost:443"},
    {"http://localhost:8080/v1", "localhost:8080"},
    {"http://LOCALHOST/v1", "localhost:80"},
    {"http://127.0.0.1:8080", "127.0.0.1:8080"},
    {"http://127.255.0.3/v1", "127.255.0.3:80"},
    {"http://[::1]:8080/v1", "[::1]:8080"},
    {"http://[0:0:0:0:0:0:0:1]/", "[0:0:0:0:0:0:0:1]:80"},
};

static const char *const refused[] = {
    "", "api.example.com", "//api.example.com", "ftp://127.0.0.1/", "file:///etc/passwd", "gopher://127.0.0.1/",
    "unix:///run/x", "https:/api.example.com", "https:api.example.com", " https://api.example.com", "https://",
    "https:///v1", "https://:443/", "https://?", "https://#",
    /* plain http beyond this machine, however it is dressed up */
    "http://api.example.com/v1", "http://10.0.0.1/", "http://0.0.0.0/", "http://[::]/", "http://[::ffff:127.0.0.1]/",
    "http://[fe80::1]/", "http://127.0.0.1.evil.com/", "http://localhost.evil.com/", "http://evil.com/127.0.0.1",
    "http://localhost./", "http://evil-localhost/", "http://1.1.1.1:127/", "http://128.0.0.1/",
    /* user info */
    "http://127.0.0.1@evil.com/", "http://127.0.0.1:80@evil.com/", "https://user:pass@api.example.com/",
    "http://evil.com#@127.0.0.1/", "http://evil.com?@127.0.0.1/", "http://127.0.0.1\\@evil.com/", "http://@127.0.0.1/",
    /* addresses that parsers read in different ways */
    "http://0x7f.1/", "http://0x7f000001/", "http://2130706433/", "http://127.1/", "http://127.0.1/",
    "http://0177.0.0.1/", "http://127.0.0.01/", "http://127.0.0.1./", "http://127.0.0.256/",
    "https://1.2.3/", "https://1.2.3.4.5/",
    "https://0x0a000001/", "https://foo.0x7f/", "http://[::1/", "http://::1/", "http://[::1]x/", "http://[::1%25lo]/",
    "http://[127.0.0.1]/", "http://[]/", "http://[::1]]/", "http://[[::1]]/",
    /* odd names and ports */
    "https://a..b/", "https://.a/", "https://a./", "https://a_b.example/", "https://b\xc3\xbc" "cher.example/",
    "https://api.example.com%2eevil.com/", "https://api.example.com\r\nHost: x/", "https://api example.com/",
    "https://api.example.com\t/", "https://api.example.com:/", "https://api.example.com:0/",
    "https://api.example.com:65536/", "https://api.example.com:443x/", "https://api.example.com:-1/",
    "https://api.example.com:+443/", "https://a:1:2/", "https://api.example.com:000443/",
    /* query, fragment, escapes */
    "https://api.example.com/v1?key=1", "https://api.example.com/v1#x", "https://api.example.com/%2e%2e/",
    "https://api.example.com/v1\\x", "https://api.example.com/v 1", "https://api.example.com/v1\n",
};

Test(endpoint, allowed)
{
    for (size_t i = 0; i < ARRAY_SIZE(allowed); i++) {
        struct err err = {0};
        char host[256];
        cr_assert_eq(endpoint_host(host, sizeof(host), allowed[i].url, &err), 0, "%s: %s", allowed[i].url, err.msg);
        cr_assert_str_eq(host, allowed[i].host);
    }
}

Test(endpoint, refused)
{
    for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
        struct err err = {0};
        char host[256] = "untouched";
        cr_assert_eq(endpoint_host(host, sizeof(host), refused[i], &err), -EINVAL, "%s was allowed", refused[i]);
        cr_assert_str_eq(host, "untouched");
        cr_assert_eq(strncmp(err.msg, "url ", 4), 0, "%s: %s", refused[i], err.msg);
    }
}

Test(endpoint, lengths)
{
    char url[600], host[32] = "untouched";

    cr_assert_eq(endpoint_host(host, 19, "https://api.example.com", NULL), -EINVAL);
    cr_assert_str_eq(host, "untouched");
    cr_assert_eq(endpoint_host(host, 20, "https://api.example.com", NULL), 0);
    cr_assert_str_eq(host, "api.example.com:443");

    strcpy(url, "https://");
    memset(url + 8, 'a', sizeof(url) - 9);
    url[sizeof(url) - 1] = 0;
    cr_assert_eq(endpoint_host(host, sizeof(host), url, NULL), -EINVAL);
}
