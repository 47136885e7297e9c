/* Prometheus' text format 0.0.4: every family with its HELP and TYPE, nothing that identifies a request. */
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/clock.h"
#include "daemon/http.h"

#define METRICS_MAX (1u << 20)

static void family(struct buf *b, const char *name, const char *type, const char *help)
{
    buf_printf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void single(struct buf *b, const char *name, const char *type, const char *help, double value)
{
    family(b, name, type, help);
    buf_printf(b, "%s %.17g\n", name, value);
}

/* A label's value with what the format escapes escaped. */
static void escaped(char out[160], const char *s)
{
    size_t n = 0;

    for (; s && *s && n < 156; s++) {
        if (*s == '\\' || *s == '"' || *s == '\n')
            out[n++] = '\\';
        out[n++] = *s == '\n' ? 'n' : *s;
    }
    out[n] = '\0';
}

static void requests(struct buf *b, const struct http_counts *c)
{
    static const char *const outcomes[] = {"ok", "degraded", "refused", "error", "cancelled", "truncated"};

    family(b, "tern_requests_total", "counter", "Requests that are over, by route and outcome.");
    for (int r = ROUTE_NONE; r <= ROUTE_CLOUD; r++)
        for (size_t o = 0; o < OUTCOME_COUNT; o++)
            if (r != ROUTE_NONE || (o != OUTCOME_OK && o != OUTCOME_DEGRADED && o != OUTCOME_TRUNCATED))
                buf_printf(b, "tern_requests_total{route=\"%s\",outcome=\"%s\"} %" PRIu64 "\n",
                           route_name((enum route)r), outcomes[o], c->requests[r][o]);
    family(b, "tern_http_responses_total", "counter", "Answers by the class of their status.");
    for (int i = 2; i < 6; i++)
        buf_printf(b, "tern_http_responses_total{class=\"%dxx\"} %" PRIu64 "\n", i, c->answers[i]);
    single(b, "tern_http_connections_total", "counter", "Connections accepted.", (double)c->connections);
    single(b, "tern_http_connections", "gauge", "Connections open.", c->open);
}

static void decisions(struct buf *b, const struct router_metrics *m)
{
    family(b, "tern_decisions_total", "counter", "Final decisions by reason.");
    for (int i = REASON_NONE + 1; i < REASON_REJ_LABEL; i++)
        buf_printf(b, "tern_decisions_total{reason=\"%s\"} %" PRIu64 "\n", reason_code((enum reason)i), m->reasons[i]);
    single(b, "tern_escalated_total", "counter", "Requests answered by a cloud after a local try.",
           (double)m->escalated);
    family(b, "tern_tokens_total", "counter", "Tokens by route and direction.");
    buf_printf(b, "tern_tokens_total{route=\"local\",direction=\"in\"} %" PRIu64 "\n", m->tokens_in_local);
    buf_printf(b, "tern_tokens_total{route=\"local\",direction=\"out\"} %" PRIu64 "\n", m->tokens_out_local);
    buf_printf(b, "tern_tokens_total{route=\"cloud\",direction=\"in\"} %" PRIu64 "\n", m->tokens_in_cloud);
    buf_printf(b, "tern_tokens_total{route=\"cloud\",direction=\"out\"} %" PRIu64 "\n", m->tokens_out_cloud);
    single(b, "tern_bytes_left_total", "counter", "Bytes of request bodies that left the device.",
           (double)m->bytes_left);
    single(b, "tern_cost_usd_total", "counter", "Cost of cloud answers in US dollars.", (double)m->cost_microusd / 1e6);
    single(b, "tern_cloud_attempts_total", "counter", "Calls to cloud endpoints.", (double)m->cloud_attempts);
    single(b, "tern_cloud_failures_total", "counter", "Calls to cloud endpoints that failed.",
           (double)m->cloud_failures);
}

static void histogram(struct buf *b, const char *name, const char *help, const uint64_t count[2],
                      const uint64_t sum_usec[2], const uint64_t bucket[2][12])
{
    static const char *const routes[] = {"local", "cloud"};

    family(b, name, "histogram", help);
    for (size_t r = 0; r < 2; r++) {
        uint64_t below = 0;

        for (size_t i = 0; i < 11; i++) {
            below += bucket[r][i];
            buf_printf(b, "%s_bucket{route=\"%s\",le=\"%g\"} %" PRIu64 "\n", name, routes[r],
                       (double)router_latency_bounds_usec[i] / USEC_PER_SEC, below);
        }
        buf_printf(b, "%s_bucket{route=\"%s\",le=\"+Inf\"} %" PRIu64 "\n", name, routes[r], count[r]);
        buf_printf(b, "%s_sum{route=\"%s\"} %.6f\n", name, routes[r], (double)sum_usec[r] / USEC_PER_SEC);
        buf_printf(b, "%s_count{route=\"%s\"} %" PRIu64 "\n", name, routes[r], count[r]);
    }
}

static void workers(struct buf *b, const struct daemon *d)
{
    static const char *const states[] = {"closed", "open", "half-open", "latched"};
    cleanup(json_decrefp) json_t *status = router_status(d->router);
    const json_t *e, *engine = json_object_get(status, "engine");
    char name[160];
    size_t i;

    family(b, "tern_worker_ready", "gauge", "1 when the worker can take work.");
    buf_printf(b, "tern_worker_ready{worker=\"engine\"} %d\n", router_engine_ready(d->router));
    buf_printf(b, "tern_worker_ready{worker=\"egress\"} %d\n", router_egress_ready(d->router));
    family(b, "tern_worker_restarts_total", "counter", "Times the worker was started again.");
    buf_printf(b, "tern_worker_restarts_total{worker=\"engine\"} %u\n",
               supervisor_restarts(d->supervisor, SPAWN_ENGINE));
    buf_printf(b, "tern_worker_restarts_total{worker=\"egress\"} %u\n",
               supervisor_restarts(d->supervisor, SPAWN_EGRESS));
    single(b, "tern_engine_running", "gauge", "Local answers being generated.",
           (double)json_integer_value(json_object_get(engine, "running")));
    single(b, "tern_engine_waiting", "gauge", "Local requests waiting for a session.",
           (double)json_integer_value(json_object_get(engine, "waiting")));
    single(b, "tern_requests_in_flight", "gauge", "Requests that are not over.",
           (double)json_integer_value(json_object_get(status, "in_flight")));
    family(b, "tern_breaker_state", "gauge", "1 for the state that the breaker of an endpoint is in.");
    json_array_foreach(json_object_get(status, "endpoints"), i, e)
        for (size_t s = 0; s < ARRAY_SIZE(states); s++) {
            const char *is = json_string_value(json_object_get(e, "breaker"));

            escaped(name, json_string_value(json_object_get(e, "name")));
            buf_printf(b, "tern_breaker_state{endpoint=\"%s\",state=\"%s\"} %d\n", name, states[s],
                       is && strcmp(is, states[s]) == 0);
        }
    single(b, "tern_store_healthy", "gauge", "1 while the audit store can be written.", store_healthy(d->store));
    single(b, "tern_store_in_flight", "gauge", "Places taken in the audit queue.", store_in_flight(d->store));
}

/* What the kernel tells of this process, where it does: a process that may not be dumped cannot always read it. */
static void process(struct buf *b, const struct daemon *d)
{
    char text[128] = "";
    long pages = 0, n = 0;
    int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    DIR *dir = opendir("/proc/self/fd");

    if (fd >= 0 && read(fd, text, sizeof(text) - 1) > 0 && sscanf(text, "%*d %ld", &pages) == 1)
        single(b, "process_resident_memory_bytes", "gauge", "Resident memory of the front.",
               (double)pages * (double)sysconf(_SC_PAGESIZE));
    if (fd >= 0)
        close(fd);
    while (dir && readdir(dir))
        n++;
    if (dir) {
        n -= 3;                            /* ".", "..", and the one that reads them */
        single(b, "process_open_fds", "gauge", "Open file descriptors of the front.", (double)n);
        closedir(dir);
    }
    single(b, "process_start_time_seconds", "gauge", "Start time since the epoch.",
           (double)(clock_wall_usec() - (clock_usec() - d->started_usec)) / USEC_PER_SEC);
    family(b, "tern_build_info", "gauge", "Version of ternd.");
    buf_printf(b, "tern_build_info{version=\"%s\"} 1\n", TERN_VERSION);
}

void metrics_show(struct exchange *x)
{
    const struct router_metrics *m = router_metrics(x->daemon->router);
    cleanup(buf_done) struct buf b = {.max = METRICS_MAX};

    requests(&b, x->counts);
    decisions(&b, m);
    histogram(&b, "tern_latency_seconds", "Time to the end of an answer.", m->latency_count, m->latency_sum_usec,
              m->latency_bucket);
    histogram(&b, "tern_first_token_seconds", "Time to the first token of an answer.", m->first_token_count,
              m->first_token_sum_usec, m->first_token_bucket);
    workers(&b, x->daemon);
    process(&b, x->daemon);
    exchange_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", b.data, b.len);
}
