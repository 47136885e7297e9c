/* The egress worker: the only process that may open a network connection, and only to configured endpoints. It holds
 * cloud keys, no model, no database, and of the conversation only the bodies it is told to send. It reads its own copy of
 * the configuration and checks every order against it: a front that was taken over cannot send a private label, another
 * host, or another body than the one whose digest was recorded.
 *
 * One libcurl multi handle on one libevent loop. https only, unless the host is a loopback address; no redirects; no proxy
 * from the environment; TLS verified always. */
#pragma once

#include "base/frame.h"
#include "base/sse.h"
#include "policy/policy.h"
#include "router/upstream.h"

/* One [cloud NAME] section. */
struct cloud_endpoint {
    struct policy_endpoint policy;         /* name, model, region, labels, prices */
    char url[512];                         /* base, e.g. https://api.example.com/v1; the dialect's path is added */
    enum upstream_dialect dialect;
    char key_file[512];                    /* file with the API key; "" none. Read by egress only. A name without '/' is
                                              looked up in $CREDENTIALS_DIRECTORY */
    char ca_file[512];                     /* PEM to trust instead of the system's; "" the system's */
    unsigned connect_timeout_msec;         /* default 3000 */
    unsigned first_byte_timeout_msec;      /* to the first event, default 30000 */
    unsigned idle_timeout_msec;            /* between events, default 15000 */
};

struct egress_config {
    struct cloud_endpoint endpoints[POLICY_MAX_ENDPOINTS];
    size_t n_endpoints;
};

/* "host:port" of a base URL as written in the audit record, and whether the URL is one we would ever connect to (https, or
 * http to a loopback address or localhost; no user info, no query, no fragment). 0 or -EINVAL with *err. */
int endpoint_host(char *ret, size_t size, const char *url, struct err *err);

/* Run the worker on socket `fd` until the peer closes it. `load` reads the configuration afresh, at start and on
 * EGRESS_RELOAD, into *ret (0, or negative with *err: at start fatal, at reload the old one stays). Returns exit status. */
typedef int egress_load_fn(void *arg, struct egress_config *ret, struct err *err);
int egress_worker_main(int fd, egress_load_fn *load, void *arg);

enum egress_frame {
    /* to the worker */
    EGRESS_START = 1,   /* id: the attempt's number. Payload: u32 length of the JSON, JSON, body bytes.
                           JSON {"endpoint":name,"label":"internal","body_sha256":hex,"deadline_msec":n,"request_id":id};
                           the id goes out as X-Client-Request-Id */
    EGRESS_CANCEL,      /* close the connection upstream now; answered by EGRESS_END "cancelled" */
    EGRESS_PAUSE, EGRESS_RESUME,   /* back-pressure: stop and go on reading from upstream */
    EGRESS_RELOAD,      /* id 0 */
    EGRESS_PING,
    /* from the worker */
    EGRESS_READY = 101, /* id 0, after start and each reload: JSON {"endpoints":[names]} */
    EGRESS_FAILED,      /* id 0: text, why the configuration could not be loaded */
    EGRESS_HEAD,        /* response status line came: u32 HTTP status */
    EGRESS_EVENT,       /* one chunk in OpenAI's shape, whatever the endpoint's dialect (whole JSON text or "[DONE]"), at
                           most EGRESS_MAX_EVENT and what translating adds */
    EGRESS_END,         /* JSON {"result":"ok"|"failed"|"rejected"|"denied"|"cancelled","error":class|null,"status":n,
                           "retry_after_sec":n|null,"bytes_sent":n,"upstream_code":short token|null}. Nothing more for this id.
                           "ok" only after [DONE] or a clean end following a finish_reason. */
    EGRESS_PONG,
};
#define EGRESS_MAX_EVENT (1u << 20)

/* Error classes of EGRESS_END: */
#define EGRESS_ERR_REFUSED  "refused-by-egress"   /* label, endpoint or digest did not match egress's own configuration: nothing was sent */
#define EGRESS_ERR_CONNECT  "connect"             /* DNS, TCP; nothing was sent */
#define EGRESS_ERR_TLS      "tls"                 /* certificate: nothing was sent */
#define EGRESS_ERR_TIMEOUT  "timeout"
#define EGRESS_ERR_HTTP     "http"                /* status says no */
#define EGRESS_ERR_PROTOCOL "protocol"            /* not SSE, event too large, redirect */
#define EGRESS_ERR_CUT      "cut"                 /* ended before it was over */
#define EGRESS_ERR_KEY      "key"                 /* key file unreadable: nothing was sent */
