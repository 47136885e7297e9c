/* ternctl log and ternctl why: where queries went, and why one of them did. */
#include "ctl/ctl.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

enum { F_ROUTE, F_REASON, F_LABEL, F_OUTCOME, F_KEY, F_SINCE, F_UNTIL, F_LIMIT, F_COUNT };
static const char *const filters[F_COUNT] = { "route", "reason", "label", "outcome", "key", "since", "until", "limit" };

static int fetch_log(struct ctl *c, const char *const values[F_COUNT], json_t **ret)
{
    struct buf path;
    int r;

    buf_init(&path, 16384);
    buf_puts(&path, "/v1/tern/log");
    for (int i = 0; i < F_COUNT; i++)
        client_add_parameter(&path, filters[i], values[i]);
    r = client_get(c, (char *)path.data, ret);
    buf_done(&path);
    return r;
}

static int log_run(struct ctl *c, int argc, char **argv)
{
    static const char *const columns[] = { "time", "id", "label", "route", "reason", "model", "score", "tokens_out", "bytes_left",
                                           "latency_ms", "outcome", NULL };
    struct option options[F_COUNT + 1] = { 0 };
    const char *values[F_COUNT] = { [F_LIMIT] = "20" };
    cleanup(json_decrefp) json_t *answer = NULL;
    int opt, r;

    for (int i = 0; i < F_COUNT; i++)
        options[i] = (struct option){ filters[i], required_argument, NULL, 256 + i };
    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (opt < 256)
            return usage_error(&log_verb, "unknown option");
        values[opt - 256] = optarg;
    }
    if (optind < argc)
        return usage_error(&log_verb, "unexpected argument '%s'", argv[optind]);
    r = fetch_log(c, values, &answer);
    if (r != CTL_OK)
        return r;
    if (c->json)
        print_json(json_object_get(answer, "rows"));
    else
        print_table(c, json_object_get(answer, "rows"), columns);
    return CTL_OK;
}

const struct verb log_verb = {
    .name = "log", .arguments = "[FILTERS]", .summary = "List decisions, newest first",
    .help = "\n  --route local|cloud      --reason CODE     --label LABEL    --outcome OUTCOME    --key NAME\n"
            "  --since TIME, --until TIME   2026-11-22, 2026-11-22T08:00:00Z, or how long ago: 24h, 15m, 7d\n"
            "  --limit N                    rows, 20 if not given\n", .run = log_run,
};

static int why_run(struct ctl *c, int argc, char **argv)
{
    static const char *const decisions[] = { "seq", "stage", "route", "reason", "model", "score", "threshold", NULL };
    static const char *const attempts[] = { "seq", "tier", "endpoint", "model", "result", "error", "tokens_in", "tokens_out", NULL };
    const char *newest[F_COUNT] = { [F_LIMIT] = "1" };
    cleanup(json_decrefp) json_t *row = NULL, *list = NULL;
    const json_t *sentence;
    const char *id;
    struct buf path;
    size_t i;
    int r;

    if (argc != 2)
        return usage_error(&why_verb, "expected one decision's id, or 'last'");
    id = argv[1];
    if (!strcmp(id, "last")) {
        r = fetch_log(c, newest, &list);
        if (r != CTL_OK)
            return r;
        id = json_string_value(json_object_get(json_array_get(json_object_get(list, "rows"), 0), "id"));
        if (!id) {
            fputs("ternctl: no decision has been recorded yet\n", stderr);
            return CTL_REFUSED;
        }
    }
    buf_init(&path, 4096);
    /* Only identifier characters can be meant; anything else would change the path. */
    for (const char *p = id; *p; p++)
        if (!strchr("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_", *p))
            return usage_error(&why_verb, "'%s' is not a decision's id; `ternctl log` shows them", id);
    if (!strncmp(id, "chatcmpl-", 9))
        id += 9;
    buf_printf(&path, "/v1/tern/why/%s", id);
    r = client_get(c, (char *)path.data, &row);
    buf_done(&path);
    if (r != CTL_OK)
        return r;
    if (c->json) {
        print_json(row);
        return CTL_OK;
    }
    json_array_foreach(json_object_get(row, "sentences"), i, sentence)
        puts(json_string_value(sentence));
    puts("\nDecisions");
    print_table(c, json_object_get(row, "decisions"), decisions);
    if (json_array_size(json_object_get(row, "attempts"))) {
        puts("\nAttempts");
        print_table(c, json_object_get(row, "attempts"), attempts);
    }
    return CTL_OK;
}

const struct verb why_verb = {
    .name = "why", .arguments = "ID|last", .summary = "Tell in plain sentences why one request went where it went",
    .help = "\nID is what `ternctl log` shows, or an answer's x-tern-decision-id or chatcmpl- id.\n", .run = why_run,
};
