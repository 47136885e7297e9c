/* An order's checks, and the key it goes out with. Everything here happens before a socket is opened. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <openssl/evp.h>
#include "base/json.h"
#include "router/order.h"

#define MAX_KEY_BYTES 4096
#define MAX_DEADLINE_MSEC (24 * 3600 * 1000)
#define SHA256_BYTES 32
#define BLANK " \t\r\n"

static const struct cloud_endpoint *endpoint_find(const struct egress_config *config, const char *name)
{
    for (size_t i = 0; i < config->n_endpoints; i++)
        if (strcmp(config->endpoints[i].policy.name, name) == 0)
            return &config->endpoints[i];
    return NULL;
}

static bool digest_matches(const char *hex, const uint8_t *data, size_t len)
{
    uint8_t digest[SHA256_BYTES];
    char ours[2 * SHA256_BYTES + 1];

    if (EVP_Digest(data, len, digest, NULL, EVP_sha256(), NULL) != 1)
        return false;
    for (size_t i = 0; i < SHA256_BYTES; i++)
        snprintf(ours + 2 * i, 3, "%02x", digest[i]);
    return strcmp(hex, ours) == 0;
}

int order_check(struct order *ret, const struct egress_config *config, const uint8_t *payload, size_t len,
                struct err *err)
{
    cleanup(json_decrefp) json_t *j = NULL;
    const char *name, *label_text, *sha256, *id;
    struct order o;
    enum label label;
    char host[512];
    uint32_t n;

    if (len < sizeof(n))
        return err_set(err, -EPERM, "the order is cut short");
    memcpy(&n, payload, sizeof(n));
    if (n > len - sizeof(n))
        return err_set(err, -EPERM, "the order is cut short");
    o.body = payload + sizeof(n) + n;
    o.body_len = len - sizeof(n) - n;

    j = json_parse(payload + sizeof(n), n, NULL);
    if (json_read_string(j, "endpoint", &name, NULL) != 1 || json_read_string(j, "label", &label_text, NULL) != 1 ||
        json_read_string(j, "body_sha256", &sha256, NULL) != 1 ||
        json_read_int(j, "deadline_msec", 0, MAX_DEADLINE_MSEC, &o.deadline_msec, NULL) != 1)
        return err_set(err, -EPERM, "the order is incomplete");

    snprintf(o.request_id, sizeof(o.request_id), "%s",
             json_read_string(j, "request_id", &id, NULL) == 1 && id_valid(id) ? id : "");

    o.endpoint = endpoint_find(config, name);
    if (!o.endpoint)
        return err_set(err, -EPERM, "endpoint %.64s is not configured", name);
    if (label_from_string(&label, label_text) < 0 || !(o.endpoint->policy.labels & 1u << label))
        return err_set(err, -EPERM, "label %.16s may not go to endpoint %s", label_text, name);
    if (endpoint_host(host, sizeof(host), o.endpoint->url, err) < 0)
        return -EPERM;
    if (!digest_matches(sha256, o.body, o.body_len))
        return err_set(err, -EPERM, "the body for endpoint %s is not the one that was recorded", name);

    *ret = o;
    return 0;
}

static int key_open(int *ret, const char *key_file, struct err *err)
{
    const char *dir = strchr(key_file, '/') ? "" : getenv("CREDENTIALS_DIRECTORY");
    char path[1024];
    struct stat st;

    if (!dir)
        return err_set(err, -ENOENT, "key_file %s: no $CREDENTIALS_DIRECTORY to find it in", key_file);
    if ((size_t)snprintf(path, sizeof(path), "%s%s%s", dir, *dir ? "/" : "", key_file) >= sizeof(path))
        return err_set(err, -ENAMETOOLONG, "key_file %s: path too long", key_file);

    /* Not blocking, should it be a pipe. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_set(err, -errno, "key_file %s: %s", key_file, strerror(errno));
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return err_set(err, -EINVAL, "key_file %s: not a regular file", key_file);
    }
    *ret = fd;
    return 0;
}

/* One word of visible ASCII with blanks around it, so that it cannot bring another header along. */
static int key_take(char ret[ORDER_AUTHORIZATION_BYTES], const char *header, const char *key, size_t n)
{
    size_t at = strspn(key, BLANK), len = 0;

    while (key[at + len] > ' ' && key[at + len] < 0x7f)
        len++;
    if (len == 0 || at + len + strspn(key + at + len, BLANK) != n)
        return -EINVAL;
    snprintf(ret, ORDER_AUTHORIZATION_BYTES, "%s%.*s", header, (int)len, key + at);
    return 0;
}

int order_authorization(char ret[ORDER_AUTHORIZATION_BYTES], const struct cloud_endpoint *endpoint, struct err *err)
{
    const char *key_file = endpoint->key_file;
    cleanup(closep) int fd = -1;
    char key[MAX_KEY_BYTES + 1];
    ssize_t n;
    int r;

    if (!*key_file) {
        *ret = 0;
        return 0;
    }
    r = key_open(&fd, key_file, err);
    if (r < 0)
        return r;
    n = read(fd, key, MAX_KEY_BYTES);
    if (n < 0)
        return err_set(err, -errno, "key_file %s: %s", key_file, strerror(errno));
    key[n] = 0;
    r = key_take(ret, upstream_of(endpoint->dialect)->key_header, key, (size_t)n);
    explicit_bzero(key, sizeof(key));
    return r < 0 ? err_set(err, r, "key_file %s: expected one line with a key and nothing else", key_file) : 0;
}
