/* API keys are random tokens of 256 bits. The SHA-256 of what a request carries is held against every configured one, so that the time it takes
 * tells nothing about any of them, and the configuration holds no key. Where no key is configured any is accepted and
 * ignored, since SDKs always send one. And who is at the other end of a connection, for the record. */
#include <arpa/inet.h>
#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include "daemon/http.h"

static int unauthorized(struct request_error *e, const char *message)
{
    *e = (struct request_error){
        .http_status = 401, .type = "authentication_error", .code = "invalid_api_key", .message = message};
    return -EACCES;
}

static const struct api_key *find(const struct config *c, const char *key)
{
    const struct api_key *found = NULL;
    uint8_t digest[32];

    if (EVP_Digest(key, strlen(key), digest, NULL, EVP_sha256(), NULL) != 1)
        return NULL;
    for (size_t i = 0; i < c->auth.n_keys; i++)
        found = CRYPTO_memcmp(digest, c->auth.keys[i].sha256, sizeof(digest)) == 0 ? &c->auth.keys[i] : found;
    return found;
}

int auth_check(const struct api_key **ret, const struct config *c, const struct head *h, struct request_error *e)
{
    const struct api_key *key;
    const char *sent = h->api_key;

    *ret = NULL;
    if (h->authorization && strncasecmp(h->authorization, "Bearer ", 7) == 0)
        sent = h->authorization + 7 + strspn(h->authorization + 7, " ");
    else if (h->authorization && !sent)
        sent = "";                         /* some other scheme: never a key of ours */
    if (c->auth.n_keys == 0 || !sent) {
        if (!c->auth.required)
            return 0;
        return unauthorized(e, "this server wants an API key: send Authorization: Bearer KEY or x-api-key: KEY");
    }
    key = find(c, sent);
    if (!key)
        return unauthorized(e, "the API key is not one of this server's; ternctl key list tells their names");
    *ret = key;
    return 0;
}

int auth_api(const struct api_key *key, unsigned api, struct request_error *e)
{
    if (!key || !key->apis || !api || key->apis & api)
        return 0;
    *e = (struct request_error){
        .http_status = 403, .type = "permission_error", .code = "api_not_allowed",
        .message = "this API key may not use this API; see apis of its [key NAME]"};
    return -EACCES;
}

bool auth_uid(int fd, const struct config *c)
{
    struct sockaddr_storage addr = {0};
    socklen_t len = sizeof(addr), cred_len = sizeof(struct ucred);
    struct ucred cred;
    char uid[16];

    if (getsockname(fd, (struct sockaddr *)&addr, &len) < 0)
        return false;
    if (addr.ss_family != AF_UNIX)
        return true;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &cred_len) < 0)
        return false;
    snprintf(uid, sizeof(uid), "%u", cred.uid);
    for (size_t i = 0; i < c->listen.n_unix_uids; i++)
        if (strcmp(c->listen.unix_uids[i], "*") == 0 || strcmp(c->listen.unix_uids[i], uid) == 0)
            return true;
    return cred.uid == 0 || cred.uid == geteuid();
}

void auth_peer(char out[PEER_BYTES], int fd)
{
    struct sockaddr_storage addr = {0};
    socklen_t len = sizeof(addr);
    struct ucred cred;
    socklen_t cred_len = sizeof(cred);

    snprintf(out, PEER_BYTES, "unknown");
    if (getpeername(fd, (struct sockaddr *)&addr, &len) < 0)
        return;
    if (addr.ss_family == AF_UNIX && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &cred_len) == 0)
        snprintf(out, PEER_BYTES, "unix:uid=%u", cred.uid);
    else if (addr.ss_family == AF_INET)
        inet_ntop(AF_INET, &((struct sockaddr_in *)&addr)->sin_addr, out, PEER_BYTES);
    else if (addr.ss_family == AF_INET6)
        inet_ntop(AF_INET6, &((struct sockaddr_in6 *)&addr)->sin6_addr, out, PEER_BYTES);
}
