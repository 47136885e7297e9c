/* tern's own paths: health, models, and what ternctl asks. Questions to the store are answered on its reader thread
 * and come back through the mailbox; the client may have left by then, so a struct asking stands between the two. */
#include <errno.h>
#include <event2/buffer.h>
#include <event2/keyvalq_struct.h>
#include <inttypes.h>
#include <string.h>
#include "base/clock.h"
#include "daemon/http.h"

/* ---- Health ------------------------------------------------------------------------------------------------------ */

static json_t *health(const struct daemon *d)
{
    return json_pack("{s:s, s:s, s:{s:b}, s:{s:b}, s:{s:b}}", "status", d->draining ? "draining" : "ok",
                     "message", d->status, "engine", "ready", router_engine_ready(d->router),
                     "egress", "ready", router_egress_ready(d->router), "store", "healthy", store_healthy(d->store));
}

void api_health(struct exchange *x)
{
    exchange_reply_json(x, 200, health(x->daemon));
}

void api_ready(struct exchange *x)
{
    const struct daemon *d = x->daemon;
    const char *failure = router_engine_failure(d->router), *why = NULL;
    json_t *body = health(d);

    if (d->draining)
        why = "shutting down: no new requests are taken";
    else if (!store_healthy(d->store))
        why = store_fault(d->store) ? store_fault(d->store) : "the audit store cannot be written";
    else if (!router_engine_ready(d->router))
        why = failure ? failure : "the engine is starting";
    json_object_set_new(body, "ready", json_boolean(!why));
    if (why) {
        json_object_set_new(body, "status", json_string("not ready"));
        json_object_set_new(body, "why", json_string(why));
    }
    exchange_reply_json(x, why ? 503 : 200, body);
}

/* ---- Models ------------------------------------------------------------------------------------------------------ */

/* "auto", the local model once it is known, each endpoint: in OpenAI's shape, with what Anthropic's has besides. */
static json_t *models(const struct daemon *d)
{
    cleanup(json_decrefp) json_t *status = router_status(d->router);
    const json_t *local = json_object_get(json_object_get(status, "engine"), "model"), *e;
    json_int_t created = (json_int_t)((clock_wall_usec() - (clock_usec() - d->started_usec)) / USEC_PER_SEC);
    json_t *names = json_pack("[s]", "auto"), *list = json_array(), *name;
    char created_at[CLOCK_RFC3339_BYTES];
    size_t i;

    clock_rfc3339(created_at, (uint64_t)created * USEC_PER_SEC);

    if (json_is_string(local))
        json_array_append(names, (json_t *)local);
    json_array_foreach(json_object_get(status, "endpoints"), i, e)
        json_array_append(names, json_object_get(e, "name"));
    json_array_foreach(names, i, name)
        json_array_append_new(list, json_pack("{s:O, s:s, s:I, s:s, s:s, s:O, s:s}", "id", name, "object", "model",
                                              "created", created, "owned_by", "tern", "type", "model",
                                              "display_name", name, "created_at", created_at));
    json_decref(names);
    return list;
}

void api_models(struct exchange *x)
{
    json_t *list = models(x->daemon);
    json_t *first = json_object_get(json_array_get(list, 0), "id"),
           *last = json_object_get(json_array_get(list, json_array_size(list) - 1), "id");

    exchange_reply_json(x, 200, json_pack("{s:s, s:o, s:b, s:O, s:O}", "object", "list", "data", list, "has_more", 0,
                                          "first_id", first, "last_id", last));
}

void api_model(struct exchange *x)
{
    static const struct request_error unknown = {
        .http_status = 404, .type = "invalid_request_error", .param = "model", .code = "model_not_found",
        .message = "there is no such model here; GET /v1/models lists them",
    };
    cleanup(freep) char *name = evhttp_uridecode(x->head->target + strlen(x->path->path), 0, NULL);
    cleanup(json_decrefp) json_t *list = models(x->daemon);
    json_t *m;
    size_t i;

    json_array_foreach(list, i, m)
        if (name && strcmp(json_string_value(json_object_get(m, "id")), name) == 0) {
            exchange_reply_json(x, 200, json_incref(m));
            return;
        }
    exchange_reply_error(x, &unknown);
}

/* ---- Status ------------------------------------------------------------------------------------------------------ */

void api_status(struct exchange *x)
{
    const struct daemon *d = x->daemon;
    cleanup(json_decrefp) json_t *workers = supervisor_status(d->supervisor);
    const char *failure = router_engine_failure(d->router), *role;
    json_t *body = router_status(d->router), *worker;

    json_object_foreach(workers, role, worker)
        json_object_update_missing(json_object_get(body, role), worker);
    if (!router_engine_ready(d->router))
        json_object_set_new(json_object_get(body, "engine"), "failure", json_string(failure ? failure : "starting"));
    json_object_set_new(body, "store", json_pack("{s:s, s:b, s:i}", "path", d->config->store.path, "healthy",
                                                 store_healthy(d->store), "in_flight", (int)store_in_flight(d->store)));
    json_object_set_new(body, "uptime_sec", json_integer((json_int_t)(clock_usec() - d->started_usec) / 1000000));
    json_object_set_new(body, "version", json_string(TERN_VERSION));
    exchange_reply_json(x, 200, body);
}

/* ---- Questions to the store -------------------------------------------------------------------------------------- */

struct asking {
    struct exchange *exchange;             /* NULL: the client left */
    enum store_ask ask;
};

static void asking_gone(struct exchange *x)
{
    ((struct asking *)x->arg)->exchange = NULL;
}

static void answered(void *arg, json_t *result, const struct err *err)
{
    static const struct request_error failed = {
        .http_status = 503, .type = "server_error", .code = "store_unavailable", .retry_after_sec = 5,
        .message = "the audit store could not answer; ternd's log says why",
    };
    static const struct request_error unknown = {
        .http_status = 404, .type = "invalid_request_error", .code = "not_found", .param = "id",
        .message = "no decision with this id is recorded",
    };
    struct asking *a = arg;
    struct exchange *x = a->exchange;

    if (x && !result) {
        exchange_reply_error(x, &failed);
    } else if (x && a->ask == STORE_WHY && !json_is_object(result)) {
        exchange_reply_error(x, &unknown);
    } else if (x) {
        if (a->ask == STORE_WHY)
            json_object_set_new(result, "sentences", policy_explain(result));
        exchange_reply_json(x, 200, json_incref(result));
    }
    json_decref(result);
    free(a);
}

static void ask(struct exchange *x, const struct store_query *q)
{
    static const struct request_error busy = {
        .http_status = 503, .type = "server_error", .code = "store_busy", .retry_after_sec = 1,
        .message = "too many questions wait for the audit store",
    };
    struct asking *a = calloc(1, sizeof(*a));

    if (!a || store_query(x->daemon->store, q, answered, a) < 0) {
        free(a);
        exchange_reply_error(x, &busy);
        return;
    }
    a->exchange = x;
    a->ask = q->ask;
    x->arg = a;
    x->cancel = asking_gone;
}

/* "24h" ago, or a date. */
static int read_time(const char *s, uint64_t *ret_usec)
{
    static const struct { char unit; uint64_t seconds; } units[] = {
        {'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}, {'w', 604800},
    };
    uint64_t now = clock_wall_usec();
    size_t n = strspn(s, "0123456789");

    if (n == 0 || n > 6 || strlen(s) != n + 1)
        return clock_from_rfc3339(ret_usec, s);
    for (size_t i = 0; i < ARRAY_SIZE(units); i++)
        if (s[n] == units[i].unit) {
            uint64_t ago = strtoull(s, NULL, 10) * units[i].seconds * USEC_PER_SEC;

            *ret_usec = now > ago ? now - ago : 1;
            return 0;
        }
    return -EINVAL;
}

static int read_limit(const char *s, unsigned *ret)
{
    if (!*s || strspn(s, "0123456789") != strlen(s) || strlen(s) > 4 || atoi(s) < 1 || atoi(s) > 1000)
        return -EINVAL;
    *ret = (unsigned)atoi(s);
    return 0;
}

/* Fill q's filters from the query; its strings live as long as `params`. NULL, or the parameter that is wrong. */
static const char *read_filters(struct store_query *q, const struct evkeyvalq *params)
{
    const struct { const char *name; const char **text; uint64_t *time; } filters[] = {
        {"route", &q->route, NULL},      {"reason", &q->reason, NULL},    {"label", &q->label, NULL},
        {"outcome", &q->outcome, NULL},  {"key", &q->key, NULL},          {"since", NULL, &q->since_usec},
        {"until", NULL, &q->until_usec}, {"limit", NULL, NULL},
    };
    const struct evkeyval *p;
    size_t i;

    for (p = params->tqh_first; p; p = p->next.tqe_next) {
        for (i = 0; i < ARRAY_SIZE(filters) && strcmp(p->key, filters[i].name) != 0; i++)
            ;
        if (i == ARRAY_SIZE(filters))
            return "query";
        if (filters[i].text)
            *filters[i].text = p->value;
        else if (filters[i].time ? read_time(p->value, filters[i].time) < 0 : read_limit(p->value, &q->limit) < 0)
            return filters[i].name;
    }
    return NULL;
}

static void ask_filtered(struct exchange *x, enum store_ask what)
{
    struct request_error e = {
        .http_status = 400, .type = "invalid_request_error", .code = "invalid_value",
        .message = "expected route, reason, label, outcome, key, since and until (2026-11-22T08:00:00Z or 24h), "
                   "limit (1 to 1000)",
    };
    struct store_query q = {.ask = what, .limit = 100};
    struct evkeyvalq params = {0};

    if (x->head->query && *x->head->query && evhttp_parse_query_str(x->head->query, &params) < 0)
        e.param = "query";
    else
        e.param = read_filters(&q, &params);
    if (e.param)
        exchange_reply_error(x, &e);
    else
        ask(x, &q);
    evhttp_clear_headers(&params);
}

void api_log(struct exchange *x)
{
    ask_filtered(x, STORE_LOG);
}

void api_stats(struct exchange *x)
{
    ask_filtered(x, STORE_STATS);
}

void api_why(struct exchange *x)
{
    struct store_query q = {.ask = STORE_WHY, .id = x->head->target + strlen(x->path->path)};

    if (strncmp(q.id, "chatcmpl-", 9) == 0)
        q.id += 9;
    ask(x, &q);
}
