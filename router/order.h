/* What egress checks before anything leaves. */
#pragma once

#include "base/id.h"
#include "router/egress.h"

struct order {
    const struct cloud_endpoint *endpoint;   /* in the configuration */
    int64_t deadline_msec;
    const uint8_t *body;                     /* in the payload */
    size_t body_len;
    char request_id[ID_BYTES];               /* "" when the order names none */
};

/* Hold EGRESS_START's payload against our own configuration: the endpoint exists and has a URL we would connect to,
 * takes this label, and the body is the one whose digest was recorded. 0, or -EPERM with *err saying what is not so. */
int order_check(struct order *ret, const struct egress_config *config, const uint8_t *payload, size_t len,
                struct err *err);

/* The endpoint's key, as its file holds it now, as its dialect's header line; "" where it has none. The caller wipes
 * it. A failure's *err names the file and not a byte of what is in it. */
#define ORDER_AUTHORIZATION_BYTES 4160
int order_authorization(char ret[ORDER_AUTHORIZATION_BYTES], const struct cloud_endpoint *endpoint, struct err *err);
