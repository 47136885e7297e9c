/* The server's side of TLS. Suites of TLS 1.2 are those with forward secrecy and authenticated encryption; no
 * renegotiation, no compression, no tickets or sessions, since the keys of those would have to be turned over. */
#include <errno.h>
#include <openssl/err.h>
#include <string.h>
#include <strings.h>
#include "daemon/tls.h"

static void ctx_freep(SSL_CTX **ctx) { SSL_CTX_free(*ctx); }

static int fault(struct err *err, const char *option, const char *path)
{
    const char *why = ERR_reason_error_string(ERR_peek_last_error());

    ERR_clear_error();
    return err_set(err, -EINVAL, "[listen] %s: %s: %s", option, path, why ? why : "cannot be used");
}

/* A bare name lies where the service manager put credentials. */
static const char *in_credentials(char out[1024], const char *path)
{
    const char *dir = getenv("CREDENTIALS_DIRECTORY");

    if (strchr(path, '/') || !dir)
        return path;
    snprintf(out, 1024, "%s/%s", dir, path);
    return out;
}

/* h2 is not spoken: a client that insists on it is told so in the handshake. */
static int select_protocol(SSL *ssl, const unsigned char **ret, unsigned char *ret_len, const unsigned char *in,
                           unsigned in_len, void *arg)
{
    static const unsigned char http11[] = "\x08http/1.1";

    return SSL_select_next_proto((unsigned char **)(uintptr_t)ret, ret_len, http11, sizeof(http11) - 1, in, in_len) ==
           OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_ALERT_FATAL;
}

static int set_up(SSL_CTX *ctx)
{
    SSL_CTX_set_options(ctx, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TICKET |
                        SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_num_tickets(ctx, 0);
    SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_alpn_select_cb(ctx, select_protocol, NULL);
    return SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION) == 1 &&
           SSL_CTX_set_cipher_list(ctx, "ECDHE+AESGCM:ECDHE+CHACHA20") == 1 &&
           SSL_CTX_set1_groups_list(ctx, "X25519:P-256:P-384") == 1 ? 0 : -EINVAL;
}

static int set_client_ca(SSL_CTX *ctx, const char *path)
{
    STACK_OF(X509_NAME) *names = SSL_load_client_CA_file(path);

    if (!names || SSL_CTX_load_verify_locations(ctx, path, NULL) != 1) {
        sk_X509_NAME_pop_free(names, X509_NAME_free);
        return -EINVAL;
    }
    SSL_CTX_set_client_CA_list(ctx, names);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    return 0;
}

int tls_load(struct config *c, bool wanted, struct err *err)
{
    cleanup(ctx_freep) SSL_CTX *ctx = NULL;
    const char *cert = c->listen.tls_cert, *key = c->listen.tls_key, *ca = c->listen.tls_client_ca;
    char path[1024];

    if (!*c->listen.tls && !wanted)
        return 0;
    if (!*cert || !*key)
        return err_set(err, -EINVAL, "[listen] tls: needs tls_cert and tls_key");
    ctx = SSL_CTX_new(TLS_server_method());
    if (!ctx || set_up(ctx) < 0)
        return err_set(err, -ENOMEM, "out of memory");
    if (SSL_CTX_use_certificate_chain_file(ctx, cert) != 1)
        return fault(err, "tls_cert", cert);
    key = in_credentials(path, key);
    if (SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM) != 1 || SSL_CTX_check_private_key(ctx) != 1)
        return fault(err, "tls_key", key);
    if (*ca && set_client_ca(ctx, ca) < 0)
        return fault(err, "tls_client_ca", ca);
    SSL_CTX_free(c->tls);
    c->tls = TAKE(ctx);
    return 0;
}
