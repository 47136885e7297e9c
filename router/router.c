/* The router's own: configurations, workers' links, what a model's name means, and numbers for /metrics and status. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <openssl/core_names.h>
#include "base/clock.h"
#include "router/internal.h"

#define DEFAULT_QUEUE 64
#define DEFAULT_DEADLINE_USEC (120 * USEC_PER_SEC)

struct router_config *router_config_new(void)
{
    struct router_config *c = calloc(1, sizeof(*c));

    if (!c)
        return NULL;
    c->refs = 1;
    policy_config_default(&c->policy);
    c->audit_or_refuse = true;
    c->sessions = 1;
    c->queue = c->queue_client = DEFAULT_QUEUE;
    c->deadline_usec = DEFAULT_DEADLINE_USEC;
    c->default_temperature = NAN;
    return c;
}

struct router_config *router_config_ref(struct router_config *c)
{
    c->refs++;
    return c;
}

void router_config_unref(struct router_config *c)
{
    if (!c || --c->refs)
        return;
    detector_free(c->detector);
    free(c);
}

/* HMAC-SHA256 under a key that nobody else has. */
static EVP_MAC_CTX *digest_new(void)
{
    EVP_MAC *mac = EVP_MAC_fetch(NULL, "HMAC", NULL);
    EVP_MAC_CTX *ctx = mac ? EVP_MAC_CTX_new(mac) : NULL;
    uint8_t key[32];
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char[]) {"SHA256"}, 0), OSSL_PARAM_construct_end(),
    };

    EVP_MAC_free(mac);
    random_bytes(key, sizeof(key));
    if (ctx && EVP_MAC_init(ctx, key, sizeof(key), params) != 1) {
        EVP_MAC_CTX_free(ctx);
        ctx = NULL;
    }
    explicit_bzero(key, sizeof(key));
    return ctx;
}

int router_new(struct router **ret, struct event_base *base, struct store *store, struct router_config *config,
               const struct router_hooks *hooks)
{
    struct router *r = calloc(1, sizeof(*r));

    if (!r)
        return -ENOMEM;
    r->base = base;
    r->store = store;
    r->config = router_config_ref(config);
    if (hooks)
        r->hooks = *hooks;
    r->next_id = 1;                 /* 0 is about the worker itself */
    r->digest = digest_new();
    if (!r->digest) {
        router_config_unref(r->config);
        free(r);
        return -ENOMEM;
    }
    TAILQ_INIT(&r->requests);
    local_init(r);
    cloud_init(r);
    cloud_set_config(r, config);
    *ret = r;
    return 0;
}

void router_free(struct router *r)
{
    if (!r)
        return;
    assert(router_idle(r));
    local_done(r);
    cloud_done(r);
    router_config_unref(r->config);
    EVP_MAC_CTX_free(r->digest);
    free(r);
}

void router_set_config(struct router *r, struct router_config *config)
{
    struct router_config *old = r->config;

    r->config = router_config_ref(config);
    router_config_unref(old);
    cloud_set_config(r, config);
}

int router_attach_engine(struct router *r, int fd)
{
    int result = link_attach(&r->local.link, fd);

    if (result == 0 && r->local.n_attached++)
        r->metrics.engine_restarts++;
    return result;
}

int router_attach_egress(struct router *r, int fd)
{
    int result = link_attach(&r->cloud.link, fd);

    if (result == 0 && r->cloud.n_attached++)
        r->metrics.egress_restarts++;
    if (result == 0)
        request_run_all(r);
    return result;
}

void router_drain(struct router *r)
{
    r->draining = true;
}

bool router_idle(const struct router *r)
{
    return r->in_flight == 0;
}

bool router_engine_ready(const struct router *r)
{
    return r->local.ready;
}

bool router_egress_ready(const struct router *r)
{
    return r->cloud.ready;
}

uint64_t router_engine_beat_usec(const struct router *r)
{
    return r->local.link.beat_usec;
}

uint64_t router_egress_beat_usec(const struct router *r)
{
    return r->cloud.link.beat_usec;
}

const char *router_engine_failure(const struct router *r)
{
    return r->local.failure;
}

/* ---- What a model's name means ----------------------------------------------------------------------------------- */
static bool is_one_of(const char *name, const char *const *words, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(name, words[i]) == 0)
            return true;
    return false;
}

static int endpoint_find(const struct policy_config *c, const char *name)
{
    for (size_t i = 0; i < c->n_endpoints; i++)
        if (strcmp(name, c->endpoints[i].name) == 0 || strcmp(name, c->endpoints[i].model) == 0)
            return (int)i;
    return -1;
}

static void unknown_fault(struct request *q, struct request_error *ret_fault)
{
    struct router *r = q->router;
    const struct policy_config *c = &q->config->policy;
    const char *local = local_model(r);
    size_t at = 0;

    at += (size_t)snprintf(r->words, sizeof(r->words), "model: no model has this name; known are auto, local%s%s",
                           local ? ", " : "", local ? local : "");
    for (size_t i = 0; i < c->n_endpoints && at < sizeof(r->words); i++)
        at += (size_t)snprintf(r->words + at, sizeof(r->words) - at, "%s, %s", i ? "" : ", cloud",
                               c->endpoints[i].name);
    *ret_fault = (struct request_error) {
        .http_status = 404, .type = "invalid_request_error", .code = "model_not_found", .message = r->words,
        .param = "model",
    };
}

int model_resolve(struct request *q, struct request_error *ret_fault)
{
    static const char *const automatic[] = {"", "auto", "tern"};
    const char *name = q->chat->model ? q->chat->model : "", *local = local_model(q->router);
    int endpoint = endpoint_find(&q->config->policy, name);
    bool task = q->chat->task != CHAT_ANSWER;

    if (task && (endpoint >= 0 || strcmp(name, "cloud") == 0)) {
        *ret_fault = (struct request_error) {
            .http_status = 400, .type = "invalid_request_error", .code = "unsupported_value", .param = "model",
            .message = "model: only the local model does this; expected auto, local or its name",
        };
        return 1;
    }
    if (task)
        q->in.mode = MODE_LOCAL_ONLY;
    if (is_one_of(name, automatic, ARRAY_SIZE(automatic))) {
        q->in.ask = ASK_AUTO;
    } else if (strcmp(name, "local") == 0 || (local && strcmp(name, local) == 0)) {
        q->in.ask = ASK_LOCAL;
    } else if (endpoint >= 0) {
        q->in.ask = ASK_CLOUD;
        q->in.ask_endpoint = (size_t)endpoint;
    } else if (strcmp(name, "cloud") == 0) {
        q->in.ask = ASK_AUTO;
        if (q->in.mode != MODE_LOCAL_ONLY)
            q->in.mode = MODE_CLOUD_ONLY;
    } else if (!local && local_up(q->router)) {
        return 2;
    } else {
        unknown_fault(q, ret_fault);
        return 1;
    }
    return 0;
}

/* ---- Numbers ----------------------------------------------------------------------------------------------------- */
const uint64_t router_latency_bounds_usec[12] = {
    5000, 20000, 50000, 100000, 250000, 500000, 1000000, 2500000, 5000000, 15000000, 120000000, UINT64_MAX,
};

static void observe(uint64_t usec, uint64_t *count, uint64_t *sum, uint64_t bucket[12])
{
    size_t i = 0;

    while (usec > router_latency_bounds_usec[i])
        i++;
    bucket[i]++;
    ++*count;
    *sum += usec;
}

static uint64_t *outcome_counter(struct router_metrics *m, const char *outcome)
{
    struct { const char *name; uint64_t *counter; } counters[] = {
        {"ok", &m->outcomes_ok}, {"degraded", &m->outcomes_degraded}, {"refused", &m->outcomes_refused},
        {"cancelled", &m->outcomes_cancelled}, {"truncated", &m->outcomes_truncated},
    };

    for (size_t i = 0; i < ARRAY_SIZE(counters); i++)
        if (strcmp(counters[i].name, outcome) == 0)
            return counters[i].counter;
    return &m->outcomes_error;
}

void metrics_request(struct router *r, const struct request *q, uint64_t latency_usec)
{
    struct router_metrics *m = &r->metrics;
    bool cloud = q->decision.route == ROUTE_CLOUD;

    ++*outcome_counter(m, q->outcome);
    m->reasons[q->decision.reason]++;
    m->cost_microusd += q->cost_microusd;
    if (strcmp(q->outcome, "ok") != 0 && strcmp(q->outcome, "degraded") != 0)
        return;
    ++*(cloud ? &m->route_cloud : &m->route_local);
    m->escalated += cloud && q->in.local_tried;
    observe(latency_usec, &m->latency_count[cloud], &m->latency_sum_usec[cloud], m->latency_bucket[cloud]);
    if (q->first_token_usec)
        observe(q->first_token_usec, &m->first_token_count[cloud], &m->first_token_sum_usec[cloud],
                m->first_token_bucket[cloud]);
}

const struct router_metrics *router_metrics(const struct router *r)
{
    return &r->metrics;
}

static json_t *engine_json(const struct router *r)
{
    const struct local *l = &r->local;
    json_t *j = l->info ? json_copy(l->info) : json_object();

    json_object_set_new(j, "ready", json_boolean(l->ready));
    json_object_set_new(j, "running", json_integer(l->n_runs));
    json_object_set_new(j, "waiting", json_integer(l->line.n_waiting));
    if (l->failure)
        json_object_set_new(j, "failure", json_string(l->failure));
    return j;
}

static json_t *labels_json(unsigned set)
{
    json_t *j = json_array();

    for (unsigned l = 0; l < LABEL_COUNT; l++)
        if (set & 1u << l)
            json_array_append_new(j, json_string(label_name((enum label)l)));
    return j;
}

static json_t *endpoints_json(const struct router *r)
{
    json_t *all = json_array();

    for (size_t i = 0; i < r->config->policy.n_endpoints; i++) {
        const struct cloud_endpoint *e = &r->config->cloud.endpoints[i];
        const struct breaker *b = cloud_breaker(r, e->policy.name);
        char host[sizeof(e->url)] = "";

        endpoint_host(host, sizeof(host), e->url, NULL);
        json_array_append_new(all, json_pack(
            "{s:s,s:s,s:s,s:s,s:o,s:s}", "name", e->policy.name, "model", e->policy.model, "host", host, "region",
            e->policy.region, "labels", labels_json(e->policy.labels), "breaker",
            breaker_state_name(b ? b->state : BREAKER_CLOSED)));
    }
    return all;
}

json_t *router_status(const struct router *r)
{
    const struct router_config *c = r->config;

    return json_pack("{s:o,s:{s:b},s:o,s:{s:s,s:s,s:s,s:i,s:f,s:f},s:b,s:i}",
                     "engine", engine_json(r), "egress", "ready", r->cloud.ready, "endpoints", endpoints_json(r),
                     "policy", "mode", mode_name(c->policy.mode), "default_label", label_name(c->policy.default_label),
                     "digest", c->policy_digest, "hold_tokens", (int)c->policy.hold_tokens,
                     "threshold", c->policy.threshold, "abort_threshold", c->policy.abort_threshold,
                     "offline", c->offline, "in_flight", (int)r->in_flight);
}
