/* The router: a request's life from a parsed chat_request to its last record, over two tiers behind one shape.
 *
 * One loop, no waiting. The life is the step table in request.c. Every answer byte is released only when all rows appended
 * for the request so far are durable; every cloud body leaves only when its `egress` row is durable. Whatever happens, each
 * request ends with exactly one sink->end or sink->fail, and with an `outcome` row (unless the process dies). */
#pragma once

#include <event2/event.h>
#include "base/chat.h"
#include "policy/privacy.h"
#include "router/egress.h"
#include "store/store.h"

/* Configuration as one request sees it: constant, reference-counted; a request keeps the one it began with. */
struct router_config {
    unsigned refs;
    struct policy_config policy;
    char policy_digest[POLICY_DIGEST_BYTES];
    struct detector *detector;             /* owned; NULL: nothing is looked for */
    struct egress_config cloud;            /* cloud.endpoints[i].policy equals policy.endpoints[i] */
    bool offline;                          /* [policy] offline: no cloud at all, whatever else is set */
    bool audit_or_refuse;                  /* store fault: refuse with 503; false: answer locally without a record */
    unsigned sessions;                     /* local requests decoded side by side */
    unsigned queue, queue_client;          /* local requests that may wait for a session; and of one client */
    uint64_t deadline_usec;                /* a request's whole time */
    double default_temperature;            /* local, where the client gave none; NAN leaves it to the engine */
};
struct router_config *router_config_new(void);          /* defaults, refs = 1; NULL: no memory */
struct router_config *router_config_ref(struct router_config *c);
void router_config_unref(struct router_config *c);

struct router;
struct router_hooks {
    void (*worker_down)(void *arg, bool engine);        /* a worker's socket closed: start another and attach it */
    void (*spent)(void *arg, const char *key, uint64_t tokens, int64_t microusd);   /* a key's request is over */
    void *arg;
};
/* Borrows base and store. Takes a reference on config. */
int router_new(struct router **ret, struct event_base *base, struct store *store, struct router_config *config,
               const struct router_hooks *hooks);
void router_free(struct router *r);                      /* no requests may be left; see router_idle() */
void router_set_config(struct router *r, struct router_config *config);   /* new requests use it; tells egress to reload */
/* A new worker's socket (made non-blocking, owned from now on). Requests wait for ENGINE_READY. */
int router_attach_engine(struct router *r, int fd);
int router_attach_egress(struct router *r, int fd);
void router_drain(struct router *r);                     /* refuse new requests (503); running ones go on */
bool router_idle(const struct router *r);                /* no request in flight */

/* For readiness, the watchdog and people. */
bool router_engine_ready(const struct router *r);
bool router_egress_ready(const struct router *r);
uint64_t router_engine_beat_usec(const struct router *r);   /* monotonic time of the last PONG or token; pings go out every second */
uint64_t router_egress_beat_usec(const struct router *r);
const char *router_engine_failure(const struct router *r);  /* last ENGINE_FAILED text, or NULL */
/* {"engine":{"ready":…,READY's members,"running":n,"waiting":n},"egress":{"ready":…},"endpoints":[{"name","model","host","region",
 * "labels":[…],"breaker":"closed"}],"policy":{"mode","default_label","digest",…},"offline":…,"in_flight":n} – new reference. */
json_t *router_status(const struct router *r);

/* Counters since start, for /metrics. */
struct router_metrics {
    uint64_t requests, outcomes_ok, outcomes_degraded, outcomes_refused, outcomes_error, outcomes_cancelled, outcomes_truncated;
    uint64_t route_local, route_cloud, escalated, tokens_in_local, tokens_out_local, tokens_in_cloud, tokens_out_cloud;
    uint64_t bytes_left, cost_microusd, cloud_attempts, cloud_failures, engine_restarts, egress_restarts;
    uint64_t reasons[REASON_COUNT];                      /* of final decisions */
    uint64_t latency_count[2], latency_sum_usec[2], latency_bucket[2][12];   /* [0] local, [1] cloud; upper bounds below */
    uint64_t first_token_count[2], first_token_sum_usec[2], first_token_bucket[2][12];
};
extern const uint64_t router_latency_bounds_usec[12];   /* 5 ms … 120 s, the last is "more" */
const struct router_metrics *router_metrics(const struct router *r);

/* ---- One request --------------------------------------------------------------------------------------------------- */
struct request;

/* What the dialect learns, in this order: begin, delta*, then end; or fail (before or after begin). Pointers are borrowed for the
 * call. After end or fail the request is gone; sinks must not touch it. None is called from inside request_start(). */
struct request_meta {
    const char *id;               /* decision id: 26 characters */
    enum route route;
    const char *reason;           /* reason code */
    const char *model;            /* that answers */
    const char *endpoint;         /* cloud endpoint's name or NULL */
    bool degraded;
    double confidence;            /* P(right) known so far, or NAN */
    uint32_t tokens_in;           /* of the prompt, as far as is known; 0: not yet */
    uint64_t created_sec;         /* wall clock */
};
struct request_delta {
    enum answer_channel channel;
    unsigned call;                          /* not of text: which call of the answer it belongs to, counted from 0 */
    const char *call_id;                    /* with the name alone, which comes whole and once: the call's id */
    const char *text; size_t text_len;      /* whole UTF-8 characters; may be empty when logprobs are carried */
    json_t *logprobs;                       /* array in OpenAI's shape [{token,logprob,bytes,top_logprobs}], only if asked, else NULL */
};
struct request_result {
    const char *finish;           /* "stop", "length", "content_filter", "tool_calls" */
    uint32_t tokens_in, tokens_out;
    uint32_t tokens_cached;       /* of tokens_in: not read again, as far as the tier told */
    const char *stop;             /* the stop string that ended it, or NULL: none, or the tier did not tell */
    uint64_t prefill_usec, decode_usec;   /* reading the prompt, and writing the answer; of a cloud, as seen from here */
    int64_t cost_microusd;
    double confidence;            /* NAN: none */
    /* Of tasks that are no answer (base/chat.h), lent like all else here; CHAT_DETOKENIZE's text comes as a delta. */
    const float *vectors;         /* CHAT_EMBED: (n_vectors, width), each of length 1 */
    uint32_t n_vectors, width;
    const int32_t *tokens;        /* CHAT_TOKENIZE: (tokens_in) ids */
};
struct request_error {
    int http_status;              /* 400, 404, 408, 429, 500, 502, 503, 504 */
    const char *type, *code;      /* "invalid_request_error", "context_length_exceeded", … */
    const char *message;          /* cause and remedy, no prompt text */
    const char *param;            /* or NULL */
    unsigned retry_after_sec;     /* 0: none */
};
struct request_sink {
    void (*begin)(void *arg, const struct request_meta *m);
    void (*delta)(void *arg, const struct request_delta *d);
    void (*end)(void *arg, const struct request_meta *m, const struct request_result *res);
    void (*fail)(void *arg, const struct request_meta *m, const struct request_error *e);   /* m->route may be ROUTE_NONE */
};

/* What an API key lets its requests do; all zero: everything. The device's own rules hold besides. */
enum { SCOPE_LOCAL = 1, SCOPE_CLOUD = 2, SCOPE_AUTO = 4 };
struct request_scope {
    bool has_max_label; enum label max_label;      /* requests with a higher label are refused */
    unsigned modes;                                /* set of SCOPE_…; 0: all */
    char endpoints[16][128]; size_t n_endpoints;   /* names of clouds; none: all */
};

struct request_options {
    const struct request_scope *scope;   /* or NULL; needed during the call only */
    const char *dialect;          /* "openai-chat", … static */
    const char *key;              /* API key's name or NULL; copied, as all strings here */
    const enum label *key_label;  /* label the key puts on its requests, or NULL */
    const char *peer;             /* "127.0.0.1", "unix:uid=1000" */
    const char *label;            /* x-tern-label header or NULL */
    const char *mode;             /* x-tern-mode header or NULL */
    bool batch;                   /* gives way to requests that are not */
    uint64_t deadline_usec;       /* time from now, 0: the configured one; never longer than it */
};

/* Start. Takes `chat` on success. 0; -ENOMEM; or 1 with *ret_error filled (strings last until the next call): draining, the
 * audit queue is full, model unknown, x-tern-mode invalid. id is written in every case. */
int request_start(struct request **ret, struct router *r, struct chat_request *chat, const struct request_options *o,
                  const struct request_sink *sink, void *arg, char ret_id[ID_BYTES], struct request_error *ret_error);
/* The client left: stop both tiers now, record, no further sink call. The request is gone. */
void request_cancel(struct request *q);
/* Back-pressure from the client's connection. Local answers are bounded and simply wait in memory. */
void request_pause(struct request *q);
void request_resume(struct request *q);
