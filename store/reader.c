/* The reader thread: answers questions on its own read-only connection, each in one snapshot and within a time limit, so
 * that no question holds up the writer or the loop.
 *
 * Rows become JSON objects by column name. A name may end in ":bool" or ":json" to say what its value is; blobs are hex.
 *
 * Filters: time, key and label are searched newest first along an index of `request`, a reason along one of `decision`,
 * an outcome along one of `outcome`. A unary plus keeps SQLite from starting with an index that would make it collect
 * and sort every match before the newest can be told. */
#include <errno.h>
#include <string.h>
#include "base/buf.h"
#include "base/clock.h"
#include "store/internal.h"

#define TIME_LIMIT_USEC (2 * USEC_PER_SEC)
#define PROGRESS_STEPS 1000                        /* virtual machine steps between looks at the clock */
#define MAX_ROWS 1000
#define MAX_WAITING 64
#define PERCENTILE_ROWS "100000"

struct question {
    struct job job;
    struct store_query q;
    store_answer_fn *done;
    void *arg;
    json_t *result;
    struct err err;
    char strings[];                                /* what q points to */
};

struct reader {
    struct store *s;
    sqlite3 *db;                                   /* opened at the first question, and after a fault */
    uint64_t deadline_usec;
};

static void question_finish(struct job *j, bool deliver)
{
    struct question *a = (struct question *)j;

    if (deliver)
        a->done(a->arg, a->result, a->result ? NULL : &a->err);
    else
        json_decref(a->result);
    free(a);
}

/* ---- Rows to JSON ---------------------------------------------------------------------------------------------------- */
static json_t *hex(const uint8_t *p, int n)
{
    static const char digits[] = "0123456789abcdef";
    char text[128];

    n = MIN(n, (int)sizeof(text) / 2);
    for (int i = 0; i < n; i++) {
        text[2 * i] = digits[p[i] >> 4];
        text[2 * i + 1] = digits[p[i] & 15];
    }
    return json_stringn(text, (size_t)n * 2);
}

static json_t *text_json(const char *text, size_t len, bool is_json)
{
    json_t *v = is_json ? json_parse(text, len, NULL) : json_stringn(text, len);

    return v ? v : json_string("(unreadable)");    /* written by another hand */
}

static json_t *column_json(sqlite3_stmt *stmt, int i, const char *as)
{
    switch (sqlite3_column_type(stmt, i)) {
    case SQLITE_INTEGER: return strcmp(as, "bool") == 0 ? json_boolean(sqlite3_column_int(stmt, i))
                                                        : json_integer(sqlite3_column_int64(stmt, i));
    case SQLITE_FLOAT:   return json_real(sqlite3_column_double(stmt, i));
    case SQLITE_BLOB:    return hex(sqlite3_column_blob(stmt, i), sqlite3_column_bytes(stmt, i));
    case SQLITE_TEXT: {
        const char *text = (const char *)sqlite3_column_text(stmt, i);

        return text ? text_json(text, (size_t)sqlite3_column_bytes(stmt, i), strcmp(as, "json") == 0) : NULL;
    }
    default:             return json_null();
    }
}

/* NULL: no memory, or a number that JSON has not. */
static json_t *row_json(sqlite3_stmt *stmt)
{
    cleanup(json_decrefp) json_t *row = json_object();

    for (int i = 0; i < sqlite3_column_count(stmt); i++) {
        const char *name = sqlite3_column_name(stmt, i);
        size_t len = strcspn(name, ":");
        char key[64];

        if (len >= sizeof(key))
            return NULL;
        memcpy(key, name, len);
        key[len] = '\0';
        if (json_object_set_new(row, key, column_json(stmt, i, name[len] ? name + len + 1 : "")) < 0)
            return NULL;
    }
    return TAKE(row);
}

/* ---- Running SQL ------------------------------------------------------------------------------------------------------ */
static void bind_text(sqlite3_stmt *stmt, const char *name, const char *value)
{
    sqlite3_bind_text(stmt, sqlite3_bind_parameter_index(stmt, name), value, -1, SQLITE_STATIC);
}

static void bind_int(sqlite3_stmt *stmt, const char *name, uint64_t value)
{
    sqlite3_bind_int64(stmt, sqlite3_bind_parameter_index(stmt, name), (int64_t)MIN(value, (uint64_t)INT64_MAX));
}

/* A parameter that the statement lacks has index 0, which SQLite refuses without harm. */
static void bind_query(sqlite3_stmt *stmt, const struct store_query *q)
{
    bind_text(stmt, ":id", q->id);
    bind_text(stmt, ":route", q->route);
    bind_text(stmt, ":reason", q->reason);
    bind_text(stmt, ":label", q->label);
    bind_text(stmt, ":outcome", q->outcome);
    bind_text(stmt, ":key", q->key);
    bind_int(stmt, ":since", q->since_usec);
    bind_int(stmt, ":until", q->until_usec);
    bind_int(stmt, ":limit", MIN(MAX(q->limit, 1u), (unsigned)MAX_ROWS));
}

/* All rows of `sql` as an array. An SQLite code. */
static int read_rows(sqlite3 *db, const char *sql, const struct store_query *q, json_t **ret)
{
    cleanup(json_decrefp) json_t *rows = json_array();
    sqlite3_stmt *stmt;
    int code = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL);

    if (code != SQLITE_OK)
        return code;
    bind_query(stmt, q);
    while ((code = sqlite3_step(stmt)) == SQLITE_ROW) {
        if (json_array_append_new(rows, row_json(stmt)) < 0) {
            code = SQLITE_NOMEM;
            break;
        }
    }
    sqlite3_finalize(stmt);
    if (code != SQLITE_DONE)
        return code;
    *ret = TAKE(rows);
    return SQLITE_OK;
}

/* The same as a member of `into`; `one`: the first row itself, or null. */
static int read_member(sqlite3 *db, const char *sql, const struct store_query *q, json_t *into, const char *key, bool one)
{
    cleanup(json_decrefp) json_t *rows = NULL;
    int code = read_rows(db, sql, q, &rows);
    json_t *first;

    if (code != SQLITE_OK)
        return code;
    first = json_array_get(rows, 0);
    if (json_object_set(into, key, !one ? rows : first ? first : json_null()) < 0)
        return SQLITE_NOMEM;
    return SQLITE_OK;
}

/* ---- Filters ---------------------------------------------------------------------------------------------------------- */

/* Append "FROM ... WHERE ..." over one row a request: r, its last decision d, its outcome o. *ret_order: what to sort by,
 * descending, for the newest first. */
static int filter_sql(struct buf *sql, const struct store_query *q, const char **ret_order)
{
    bool lost = q->outcome && strcmp(q->outcome, "lost") == 0;
    bool by_request = q->key || q->label || q->since_usec || q->until_usec;
    bool by_reason = !by_request && q->reason;
    bool by_outcome = !by_request && !by_reason && q->outcome && !lost;
    int r;

    r = buf_printf(sql, " FROM request r %s JOIN decision d ON d.request_id = r.id"
                   "   AND d.seq = (SELECT max(seq) FROM decision WHERE request_id = r.id)"
                   " %s JOIN outcome o ON o.request_id = r.id WHERE true",
                   by_reason ? "" : "LEFT", by_outcome ? "" : "LEFT");
    if (r == 0 && q->key)
        r = buf_puts(sql, " AND r.key = :key");
    if (r == 0 && q->label)
        r = buf_puts(sql, " AND r.label = :label");
    if (r == 0 && q->since_usec)
        r = buf_puts(sql, " AND r.time_usec >= :since");
    if (r == 0 && q->until_usec)
        r = buf_puts(sql, " AND r.time_usec < :until");
    if (r == 0 && q->reason)
        r = buf_puts(sql, by_reason ? " AND d.reason = :reason" : " AND +d.reason = :reason");
    if (r == 0 && q->outcome)
        r = buf_puts(sql, lost ? " AND o.n IS NULL" : by_outcome ? " AND o.outcome = :outcome" : " AND +o.outcome = :outcome");
    if (r == 0 && q->route)
        r = buf_puts(sql, " AND coalesce(o.route, d.route) = :route");
    *ret_order = by_reason ? "d.time_usec" : by_outcome ? "o.time_usec" : "r.time_usec";
    return r;
}

/* `before`, the filters, `after` with "%s" standing for the order; read as an array. */
static int read_filtered(sqlite3 *db, const char *before, const char *after, const struct store_query *q, json_t **ret)
{
    cleanup(buf_done) struct buf sql;
    const char *order;

    buf_init(&sql, 16384);
    if (buf_puts(&sql, before) < 0 || filter_sql(&sql, q, &order) < 0)
        return SQLITE_NOMEM;
    for (const char *mark; (mark = strstr(after, "%s")); after = mark + 2)
        if (buf_append(&sql, after, (size_t)(mark - after)) < 0 || buf_puts(&sql, order) < 0)
            return SQLITE_NOMEM;
    if (buf_puts(&sql, after) < 0)
        return SQLITE_NOMEM;
    return read_rows(db, (const char *)sql.data, q, ret);
}

/* ---- The three questions ------------------------------------------------------------------------------------------------ */
static int ask_log(sqlite3 *db, const struct store_query *q, json_t **ret)
{
    json_t *rows;
    int code = read_filtered(db, "SELECT v.* FROM (SELECT r.id AS hit",
                             " ORDER BY %s DESC LIMIT :limit) CROSS JOIN decisions_v v ON v.id = hit"
                             " ORDER BY v.time DESC, v.id DESC", q, &rows);

    if (code == SQLITE_OK)
        *ret = json_pack("{s:o}", "rows", rows);
    return code;
}

#define OF_REQUEST " WHERE request_id = :id ORDER BY n LIMIT 1000"
#define NUMBER_AND_TIME "n, strftime('%Y-%m-%dT%H:%M:%S', time_usec / 1000000, 'unixepoch')" \
                        " || printf('.%06dZ', time_usec % 1000000) AS time, time_usec, "

static int ask_why(sqlite3 *db, const struct store_query *q, json_t **ret)
{
    static const struct { const char *key; bool one; const char *sql; } parts[] = {
        {"request", true,
         "SELECT " NUMBER_AND_TIME "id, dialect, key, peer, mode, model_asked, label, label_source, policy_digest,"
         "  model_digest, n_messages, content_bytes, prompt_digest, stream AS \"stream:bool\" FROM request WHERE id = :id"},
        {"decisions", false,
         "SELECT " NUMBER_AND_TIME "seq, stage, route, endpoint, model, reason, features AS \"features:json\","
         "  candidates AS \"candidates:json\", score, threshold, degraded AS \"degraded:bool\" FROM decision" OF_REQUEST},
        {"attempts", false,
         "SELECT " NUMBER_AND_TIME "seq, tier, endpoint, model, result, error, http_status, started_usec, first_byte_usec,"
         "  ended_usec, tokens_in, tokens_out FROM attempt" OF_REQUEST},
        {"egress", false,
         "SELECT " NUMBER_AND_TIME "seq, endpoint, host, region, label, bytes, body_digest, redactions FROM egress" OF_REQUEST},
        {"outcome", true,
         "SELECT " NUMBER_AND_TIME "outcome, route, endpoint, model, finish, error, http_status, tokens_in, tokens_out,"
         "  cost_microusd, first_token_usec, latency_usec, confidence FROM outcome" OF_REQUEST},
    };
    cleanup(json_decrefp) json_t *all = json_object();

    for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
        int code = read_member(db, parts[i].sql, q, all, parts[i].key, parts[i].one);

        if (code != SQLITE_OK)
            return code;
    }
    *ret = json_is_null(json_object_get(all, "request")) ? json_null() : TAKE(all);
    return SQLITE_OK;
}

static void add_to(json_t *into, const char *key, json_int_t more)
{
    json_object_set_new(into, key, json_integer(json_integer_value(json_object_get(into, key)) + more));
}

/* One pass groups the requests by what is counted apart; the few groups are added up here. An escalated request began
 * with the local tier and ended with the cloud. */
static int ask_totals(sqlite3 *db, const struct store_query *q, json_t *stats)
{
    static const char *const sums[] = {"requests", "cost_microusd", "bytes_left", "tokens_in", "tokens_out"};
    static const char *const counts[] = {"local", "cloud", "refused", "degraded", "escalated"};
    cleanup(json_decrefp) json_t *groups = NULL;
    json_t *reasons = json_object(), *g;
    size_t i;
    int code;

    for (i = 0; i < ARRAY_SIZE(sums); i++)
        add_to(stats, sums[i], 0);
    for (i = 0; i < ARRAY_SIZE(counts); i++)
        add_to(stats, counts[i], 0);
    if (json_object_set_new(stats, "reasons", reasons) < 0)
        return SQLITE_NOMEM;

    code = read_filtered(db,
        "SELECT coalesce(o.route, d.route) AS route, d.reason AS reason, o.outcome AS outcome,"
        "  (coalesce(o.route, d.route) = 'cloud' AND"
        "    (SELECT route FROM decision WHERE request_id = r.id AND seq = 0) = 'local') AS escalated,"
        "  count(*) AS requests, sum(o.cost_microusd) AS cost_microusd, sum(o.tokens_in) AS tokens_in,"
        "  sum(o.tokens_out) AS tokens_out,"
        "  sum((SELECT sum(bytes) FROM egress WHERE request_id = r.id)) AS bytes_left",
        " GROUP BY 1, 2, 3, 4", q, &groups);
    if (code != SQLITE_OK)
        return code;

    json_array_foreach(groups, i, g) {
        json_int_t n = json_integer_value(json_object_get(g, "requests"));
        const char *route = json_string_value(json_object_get(g, "route"));
        const char *outcome = json_string_value(json_object_get(g, "outcome"));
        const char *reason = json_string_value(json_object_get(g, "reason"));

        for (size_t k = 0; k < ARRAY_SIZE(sums); k++)
            add_to(stats, sums[k], json_integer_value(json_object_get(g, sums[k])));
        if (route && (strcmp(route, "local") == 0 || strcmp(route, "cloud") == 0))
            add_to(stats, route, n);
        if (outcome && (strcmp(outcome, "refused") == 0 || strcmp(outcome, "degraded") == 0))
            add_to(stats, outcome, n);
        if (json_integer_value(json_object_get(g, "escalated")))
            add_to(stats, "escalated", n);
        if (reason)
            add_to(reasons, reason, n);
    }
    return SQLITE_OK;
}

/* Nearest rank, over the newest requests that have a latency. */
static int ask_latency(sqlite3 *db, const struct store_query *q, json_t *stats)
{
    cleanup(json_decrefp) json_t *rows = NULL;
    json_t *latency = json_pack("{s:{s:n,s:n},s:{s:n,s:n}}", "local", "p50", "p95", "cloud", "p50", "p95"), *row;
    size_t i;
    int code;

    if (!latency || json_object_set_new(stats, "latency_ms", latency) < 0)
        return SQLITE_NOMEM;
    code = read_filtered(db,
        "WITH newest AS (SELECT coalesce(o.route, d.route) AS route, o.latency_usec AS usec",
        "    ORDER BY %s DESC LIMIT " PERCENTILE_ROWS "),"
        "  ranked AS (SELECT route, usec, row_number() OVER (PARTITION BY route ORDER BY usec) AS rank,"
        "    count(*) OVER (PARTITION BY route) AS n FROM newest WHERE usec IS NOT NULL AND route IN ('local', 'cloud'))"
        " SELECT route, max(usec) FILTER (WHERE rank = (n * 50 + 99) / 100) / 1000.0 AS p50,"
        "  max(usec) FILTER (WHERE rank = (n * 95 + 99) / 100) / 1000.0 AS p95 FROM ranked GROUP BY route", q, &rows);
    if (code != SQLITE_OK)
        return code;
    json_array_foreach(rows, i, row) {
        json_t *of = json_object_get(latency, json_string_value(json_object_get(row, "route")));

        json_object_del(row, "route");
        json_object_update(of, row);
    }
    return SQLITE_OK;
}

static int ask_stats(sqlite3 *db, const struct store_query *q, json_t **ret)
{
    cleanup(json_decrefp) json_t *stats = json_object();
    int code = ask_totals(db, q, stats);

    if (code == SQLITE_OK)
        code = ask_latency(db, q, stats);
    if (code == SQLITE_OK)
        *ret = TAKE(stats);
    return code;
}

/* ---- The thread --------------------------------------------------------------------------------------------------------- */
static int progress(void *arg)
{
    struct reader *rd = arg;

    return atomic_load(&rd->s->stopping) || clock_usec() > rd->deadline_usec;
}

static int ask(sqlite3 *db, const struct store_query *q, json_t **ret)
{
    switch (q->ask) {
    case STORE_LOG:   return ask_log(db, q, ret);
    case STORE_WHY:   return ask_why(db, q, ret);
    case STORE_STATS: return ask_stats(db, q, ret);
    }
    return SQLITE_MISUSE;
}

static void answer(struct reader *rd, struct question *a)
{
    const char *path = rd->s->c.path;
    int code;

    if (rd->db && db_moved(rd->db))
        db_closep(&rd->db);
    if (!rd->db) {
        if (db_open(&rd->db, &rd->s->c, DB_READ, &a->err) < 0)
            return;
        sqlite3_progress_handler(rd->db, PROGRESS_STEPS, progress, rd);
    }

    rd->deadline_usec = clock_usec() + TIME_LIMIT_USEC;
    code = db_exec(rd->db, "BEGIN");
    if (code == SQLITE_OK)
        code = ask(rd->db, &a->q, &a->result);
    if (code == SQLITE_OK && !a->result)
        code = SQLITE_NOMEM;
    if (code == SQLITE_INTERRUPT)
        err_set(&a->err, -ETIME, "%s: the answer took longer than %d s; ask for a shorter time", path,
                (int)(TIME_LIMIT_USEC / USEC_PER_SEC));
    else if (code != SQLITE_OK)
        db_fault(&a->err, path, code, sqlite3_errstr(code));

    rd->deadline_usec = UINT64_MAX;
    if (db_exec(rd->db, "ROLLBACK") != SQLITE_OK || (code != SQLITE_OK && code != SQLITE_INTERRUPT))
        db_closep(&rd->db);
}

void *reader_main(void *store)
{
    struct reader rd = {.s = store, .deadline_usec = UINT64_MAX};
    struct job_list taken;

    pthread_setname_np(pthread_self(), "reader");
    while (!atomic_load(&rd.s->stopping) && queue_take(&rd.s->queries, &taken, 1, UINT64_MAX)) {
        if (!taken.head)
            continue;
        answer(&rd, (struct question *)taken.head);
        outbox_post(rd.s->outbox, &taken);
    }
    db_closep(&rd.db);
    return NULL;
}

int store_query(struct store *s, const struct store_query *q, store_answer_fn *done, void *arg)
{
    const char *from[] = {q->id, q->route, q->reason, q->label, q->outcome, q->key};
    const char **to[ARRAY_SIZE(from)];
    size_t n_bytes = 0;
    struct question *a;
    char *p;

    if (queue_length(&s->queries) >= MAX_WAITING)
        return -EBUSY;
    for (size_t i = 0; i < ARRAY_SIZE(from); i++)
        n_bytes += from[i] ? strlen(from[i]) + 1 : 0;
    a = malloc(sizeof(*a) + n_bytes);
    if (!a)
        return -ENOMEM;
    *a = (struct question) {.job.finish = question_finish, .q = *q, .done = done, .arg = arg};

    memcpy(to, ((const char **[]) {&a->q.id, &a->q.route, &a->q.reason, &a->q.label, &a->q.outcome, &a->q.key}), sizeof(to));
    p = a->strings;
    for (size_t i = 0; i < ARRAY_SIZE(from); i++) {
        if (!from[i])
            continue;
        *to[i] = p;
        p = stpcpy(p, from[i]) + 1;
    }
    queue_push(&s->queries, &a->job);
    return 0;
}
