/* TLS for clients: what the configuration's files make, kept in struct config and so replaced with it. */
#pragma once

#include <openssl/ssl.h>
#include "daemon/config.h"

/* Load listen.tls_cert, tls_key and tls_client_ca into c->tls, when listen.tls is set or `wanted`. Reads files: never on
 * the loop. TLS 1.2 and later, forward secrecy, HTTP/1.1 alone. 0 or negative with *err naming the option and the file. */
int tls_load(struct config *c, bool wanted, struct err *err);
