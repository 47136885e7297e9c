/* ternctl status and ternctl stats: how the daemon is, and what it has done. */
#include "ctl/ctl.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

static const char *str(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));

    return s ? s : "-";
}

static long long num(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);

    return json_is_real(v) ? (long long)json_real_value(v) : (long long)json_integer_value(v);
}

static int status_run(struct ctl *c, int argc, char **argv)
{
    cleanup(json_decrefp) json_t *s = NULL;
    const json_t *engine, *egress, *store, *policy, *e;
    size_t i;
    int r;

    if (argc > 1)
        return usage_error(&status_verb, "unexpected argument '%s'", argv[1]);
    r = client_get(c, "/v1/tern/status", &s);
    if (r != CTL_OK)
        return r;
    if (c->json) {
        print_json(s);
        return CTL_OK;
    }
    engine = json_object_get(s, "engine");
    egress = json_object_get(s, "egress");
    store = json_object_get(s, "store");
    policy = json_object_get(s, "policy");
    printf("ternd %s, up %lld s, %lld requests in flight\n", str(s, "version"), num(s, "uptime_sec"), num(s, "in_flight"));
    if (json_is_true(json_object_get(engine, "ready")))
        printf("engine   %s (%s), %s kernels, %lld threads, context %lld; %lld running, %lld waiting\n", str(engine, "model"),
               str(engine, "architecture"), str(engine, "kernels"), num(engine, "threads"), num(engine, "context"),
               num(engine, "running"), num(engine, "waiting"));
    else
        printf("engine   not ready: %s\n", str(engine, "failure"));
    printf("egress   %s%s\n", json_is_true(json_object_get(egress, "ready")) ? "ready" : "not ready",
           json_is_true(json_object_get(s, "offline")) ? ", but offline mode is on: nothing leaves" : "");
    printf("store    %s, %s\n", str(store, "path"), json_is_true(json_object_get(store, "healthy")) ? "healthy" : "FAILING");
    printf("policy   mode %s, unlabelled requests are %s\n", str(policy, "mode"), str(policy, "default_label"));
    json_array_foreach(json_object_get(s, "endpoints"), i, e) {
        char *labels = json_dumps(json_object_get(e, "labels"), JSON_COMPACT);

        printf("cloud    %s: %s at %s, may receive %s, breaker %s\n", str(e, "name"), str(e, "model"), str(e, "host"),
               labels ? labels : "[]", str(e, "breaker"));
        free(labels);
    }
    if (!json_array_size(json_object_get(s, "endpoints")))
        puts("cloud    none configured: nothing leaves this device");
    return CTL_OK;
}

const struct verb status_verb = {
    .name = "status", .arguments = "", .summary = "Show the daemon, its engine, endpoints and policy", .help = "", .run = status_run,
};

static double share(const json_t *s, const char *key)
{
    long long all = num(s, "requests");

    return all ? 100.0 * (double)num(s, key) / (double)all : 0;
}

static int stats_run(struct ctl *c, int argc, char **argv)
{
    static const struct option options[] = { { "since", required_argument, NULL, 's' }, { 0 } };
    cleanup(json_decrefp) json_t *s = NULL;
    const json_t *latency, *v;
    const char *since = NULL, *key;
    struct buf path;
    int opt, r;

    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (opt != 's')
            return usage_error(&stats_verb, "unknown option");
        since = optarg;
    }
    if (optind < argc)
        return usage_error(&stats_verb, "unexpected argument '%s'", argv[optind]);
    buf_init(&path, 4096);
    buf_puts(&path, "/v1/tern/stats");
    client_add_parameter(&path, "since", since);
    r = client_get(c, (char *)path.data, &s);
    buf_done(&path);
    if (r != CTL_OK)
        return r;
    if (c->json) {
        print_json(s);
        return CTL_OK;
    }
    printf("requests   %lld%s%s\n", num(s, "requests"), since ? " since " : "", since ? since : "");
    printf("local      %lld (%.1f %%)\n", num(s, "local"), share(s, "local"));
    printf("cloud      %lld (%.1f %%), of these %lld escalated from a local try\n", num(s, "cloud"), share(s, "cloud"), num(s, "escalated"));
    printf("refused    %lld\ndegraded   %lld\n", num(s, "refused"), num(s, "degraded"));
    printf("tokens     %lld in, %lld out\n", num(s, "tokens_in"), num(s, "tokens_out"));
    printf("left       %lld bytes, cost %.6f USD\n", num(s, "bytes_left"), (double)num(s, "cost_microusd") / 1e6);
    json_object_foreach(json_object_get(s, "latency_ms"), key, latency)
        printf("latency    %-6s p50 %lld ms, p95 %lld ms\n", key, num(latency, "p50"), num(latency, "p95"));
    json_object_foreach(json_object_get(s, "reasons"), key, v)
        printf("reason     %-26s %lld\n", key, (long long)json_integer_value(v));
    return CTL_OK;
}

const struct verb stats_verb = {
    .name = "stats", .arguments = "[--since TIME]", .summary = "Sum up: shares, cost, latency, reasons",
    .help = "\n  --since TIME    2026-11-22, 2026-11-22T08:00:00Z, or how long ago: 24h, 15m, 7d\n", .run = stats_run,
};
