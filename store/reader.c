/* The reader thread: answers questions on its own read-only connection, each in one snapshot and within a time limit,
 * so that no question holds up the writer or the loop.
 *
 * Rows become JSON objects by column name. A name may end in ":bool" or ":json" to say what its value is; blobs are
 * hex.
 *
 * Filters: time, key and label are searched newest first along an index of `request`, a reason along one of
 * `decision`, an outcome along one of `outcome`. A unary plus keeps SQLite from starting with an index that would
 * make it collect and sort every match before the newest can be told. */
#include <errno.h>
#include <math.h>
#include <string.h>
#include <time.h>
#include "base/buf.h"
#include "base/clock.h"
#include "store/internal.h"

#define CPU_LIMIT_USEC (2 * USEC_PER_SEC)          /* what a question may take of this thread … */
#define WALL_LIMIT_USEC (10 * USEC_PER_SEC)        /* … and of the asker's patience: the engine may have every core */
#define PROGRESS_STEPS 10000                       /* virtual machine steps between looks at the clocks */
#define MAX_ROWS 1000
#define MAX_WAITING 64
#define PERCENTILE_ROWS 100000                     /* the newest */

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
    uint64_t cpu_until_usec, wall_until_usec;      /* of the question being answered */
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

/* ---- Rows to JSON ------------------------------------------------------------------------------------------------ */
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
    case SQLITE_FLOAT:   return isfinite(sqlite3_column_double(stmt, i)) ? json_real(sqlite3_column_double(stmt, i))
                                                                         : json_null();
    case SQLITE_BLOB:    return hex(sqlite3_column_blob(stmt, i), sqlite3_column_bytes(stmt, i));
    case SQLITE_TEXT: {
        const char *text = (const char *)sqlite3_column_text(stmt, i);

        return text ? text_json(text, (size_t)sqlite3_column_bytes(stmt, i), strcmp(as, "json") == 0) : NULL;
    }
    default:             return json_null();
    }
}

/* NULL: no memory. */
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

/* ---- Running SQL ------------------------------------------------------------------------------------------------- */
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

static int prepare(sqlite3 *db, const char *sql, const struct store_query *q, sqlite3_stmt **ret)
{
    int code = sqlite3_prepare_v2(db, sql, -1, ret, NULL);

    if (code == SQLITE_OK)
        bind_query(*ret, q);
    return code;
}

static void finalizep(sqlite3_stmt **stmt)
{
    sqlite3_finalize(*stmt);
}

/* All rows as an array. An SQLite code. */
static int read_rows(sqlite3_stmt *stmt, json_t **ret)
{
    cleanup(json_decrefp) json_t *rows = json_array();
    int code;

    while ((code = sqlite3_step(stmt)) == SQLITE_ROW)
        if (json_array_append_new(rows, row_json(stmt)) < 0)
            return SQLITE_NOMEM;
    if (code != SQLITE_DONE)
        return code;
    *ret = TAKE(rows);
    return SQLITE_OK;
}

/* The rows of `sql` as a member of `into`; `one`: the first row itself, or null. */
static int read_member(sqlite3 *db, const char *sql, const struct store_query *q, json_t *into, const char *key,
                       bool one)
{
    cleanup(finalizep) sqlite3_stmt *stmt = NULL;
    cleanup(json_decrefp) json_t *rows = NULL;
    json_t *first;
    int code = prepare(db, sql, q, &stmt);

    if (code == SQLITE_OK)
        code = read_rows(stmt, &rows);
    if (code != SQLITE_OK)
        return code;
    first = json_array_get(rows, 0);
    if (json_object_set(into, key, !one ? rows : first ? first : json_null()) < 0)
        return SQLITE_NOMEM;
    return SQLITE_OK;
}

/* ---- Filters ----------------------------------------------------------------------------------------------------- */

/* Prepare `select`, over one row a request (r, its last decision d, its outcome o) that passes the filters, newest
 * first, then `after`. */
static int prepare_filtered(sqlite3 *db, const char *select, const char *after, const struct store_query *q,
                            sqlite3_stmt **ret)
{
    bool lost = q->outcome && strcmp(q->outcome, "lost") == 0;
    bool by_request = q->key || q->label || q->since_usec || q->until_usec;
    bool by_reason = !by_request && q->reason;
    bool by_outcome = !by_request && !by_reason && q->outcome && !lost;
    const char *clauses[] = {
        select, " FROM request r",
        by_reason ? "" : " LEFT", " JOIN decision d ON d.request_id = r.id"
        " AND d.seq = (SELECT max(seq) FROM decision WHERE request_id = r.id)",
        by_outcome ? "" : " LEFT", " JOIN outcome o ON o.request_id = r.id WHERE true",
        q->key ? " AND r.key = :key" : "",
        q->label ? " AND r.label = :label" : "",
        q->since_usec ? " AND r.time_usec >= :since" : "",
        q->until_usec ? " AND r.time_usec < :until" : "",
        !q->reason ? "" : by_reason ? " AND d.reason = :reason" : " AND +d.reason = :reason",
        !q->outcome ? "" : lost ? " AND o.n IS NULL"
            : by_outcome ? " AND o.outcome = :outcome" : " AND +o.outcome = :outcome",
        q->route ? " AND coalesce(o.route, d.route) = :route" : "",
        " ORDER BY ", by_reason ? "d" : by_outcome ? "o" : "r", ".time_usec DESC", after,
    };
    cleanup(buf_done) struct buf sql;

    buf_init(&sql, 16384);
    for (size_t i = 0; i < ARRAY_SIZE(clauses); i++)
        if (buf_puts(&sql, clauses[i]) < 0)
            return SQLITE_NOMEM;
    return prepare(db, (const char *)sql.data, q, ret);
}

/* ---- The three questions ----------------------------------------------------------------------------------------- */
static int ask_log(sqlite3 *db, const struct store_query *q, json_t **ret)
{
    cleanup(finalizep) sqlite3_stmt *stmt = NULL;
    json_t *rows;
    int code = prepare_filtered(db, "SELECT v.* FROM (SELECT r.id AS hit",
                                " LIMIT :limit) CROSS JOIN decisions_v v ON v.id = hit ORDER BY v.time DESC, v.id DESC",
                                q, &stmt);

    if (code == SQLITE_OK)
        code = read_rows(stmt, &rows);
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
         "  model_digest, n_messages, content_bytes, prompt_digest, stream AS \"stream:bool\" FROM request"
         " WHERE id = :id"},
        {"decisions", false,
         "SELECT " NUMBER_AND_TIME "seq, stage, route, endpoint, model, reason, features AS \"features:json\","
         "  candidates AS \"candidates:json\", score, threshold, degraded AS \"degraded:bool\""
         " FROM decision" OF_REQUEST},
        {"attempts", false,
         "SELECT " NUMBER_AND_TIME "seq, tier, endpoint, model, result, error, http_status, started_usec,"
         "  first_byte_usec, ended_usec, tokens_in, tokens_out FROM attempt" OF_REQUEST},
        {"egress", false,
         "SELECT " NUMBER_AND_TIME "seq, endpoint, host, region, label, bytes, body_digest, redactions"
         " FROM egress" OF_REQUEST},
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

/* What STATS adds up while it walks the requests once. */
struct tally {
    json_int_t requests, local, cloud, refused, degraded, escalated, cost_microusd, bytes_left, tokens_in, tokens_out;
    struct latencies { int64_t *usec; size_t n; } local_latency, cloud_latency;
    json_t *reasons;
};

static void tally_done(struct tally *t)
{
    free(t->local_latency.usec);
    free(t->cloud_latency.usec);
    json_decref(t->reasons);
}

static bool column_is(sqlite3_stmt *stmt, int i, const char *value)
{
    const char *text = (const char *)sqlite3_column_text(stmt, i);

    return text && strcmp(text, value) == 0;
}

/* A row of ask_stats()'s SELECT. An escalated request began with the local tier and ended with the cloud. */
static int tally_add(struct tally *t, sqlite3_stmt *stmt)
{
    bool local = column_is(stmt, 0, "local"), cloud = column_is(stmt, 0, "cloud");
    const char *reason = (const char *)sqlite3_column_text(stmt, 2);
    struct latencies *l = local ? &t->local_latency : cloud ? &t->cloud_latency : NULL;

    t->requests++;
    t->local += local;
    t->cloud += cloud;
    t->refused += column_is(stmt, 1, "refused");
    t->degraded += column_is(stmt, 1, "degraded");
    t->escalated += cloud && column_is(stmt, 3, "local");
    t->cost_microusd += sqlite3_column_int64(stmt, 4);
    t->tokens_in += sqlite3_column_int64(stmt, 5);
    t->tokens_out += sqlite3_column_int64(stmt, 6);
    t->bytes_left += sqlite3_column_int64(stmt, 7);

    if (l && t->requests <= PERCENTILE_ROWS && sqlite3_column_type(stmt, 8) != SQLITE_NULL) {
        if (!l->usec)
            l->usec = malloc(PERCENTILE_ROWS * sizeof(l->usec[0]));
        if (!l->usec)
            return SQLITE_NOMEM;
        l->usec[l->n++] = sqlite3_column_int64(stmt, 8);
    }
    if (reason) {
        json_int_t n = json_integer_value(json_object_get(t->reasons, reason));

        if (json_object_set_new(t->reasons, reason, json_integer(n + 1)) < 0)
            return SQLITE_NOMEM;
    }
    return SQLITE_OK;
}

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

/* Percentiles by nearest rank. */
static json_t *latencies_json(struct latencies *l)
{
    if (l->n == 0)
        return json_pack("{s:n,s:n}", "p50", "p95");
    qsort(l->usec, l->n, sizeof(l->usec[0]), by_value);
    return json_pack("{s:f,s:f}", "p50", (double)l->usec[(l->n * 50 + 99) / 100 - 1] / 1000,
                     "p95", (double)l->usec[(l->n * 95 + 99) / 100 - 1] / 1000);
}

static int ask_stats(sqlite3 *db, const struct store_query *q, json_t **ret)
{
    cleanup(finalizep) sqlite3_stmt *stmt = NULL;
    cleanup(tally_done) struct tally t = {.reasons = json_object()};
    int code = prepare_filtered(db,
        "SELECT coalesce(o.route, d.route), o.outcome, d.reason,"
        " CASE WHEN d.seq > 0 THEN (SELECT route FROM decision WHERE request_id = r.id AND seq = 0) END,"
        " o.cost_microusd, o.tokens_in, o.tokens_out, (SELECT sum(bytes) FROM egress WHERE request_id = r.id),"
        " o.latency_usec",
        "", q, &stmt);

    while (code == SQLITE_OK && (code = sqlite3_step(stmt)) == SQLITE_ROW)
        code = tally_add(&t, stmt);
    if (code != SQLITE_DONE)
        return code;
    *ret = json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:{s:o,s:o},s:O}",
                     "requests", t.requests, "local", t.local, "cloud", t.cloud, "refused", t.refused,
                     "degraded", t.degraded, "escalated", t.escalated, "cost_microusd", t.cost_microusd,
                     "bytes_left", t.bytes_left, "tokens_in", t.tokens_in, "tokens_out", t.tokens_out,
                     "latency_ms", "local", latencies_json(&t.local_latency), "cloud", latencies_json(&t.cloud_latency),
                     "reasons", t.reasons);
    return SQLITE_OK;
}

/* ---- The thread -------------------------------------------------------------------------------------------------- */
static uint64_t cpu_usec(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * USEC_PER_SEC + (uint64_t)t.tv_nsec / 1000;
}

/* Other than 0 interrupts the statement. */
static int progress(void *arg)
{
    struct reader *rd = arg;

    return atomic_load(&rd->s->stopping) || cpu_usec() > rd->cpu_until_usec || clock_usec() > rd->wall_until_usec;
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

    rd->cpu_until_usec = cpu_usec() + CPU_LIMIT_USEC;
    rd->wall_until_usec = clock_usec() + WALL_LIMIT_USEC;
    code = db_exec(rd->db, "BEGIN");
    if (code == SQLITE_OK)
        code = ask(rd->db, &a->q, &a->result);
    if (code == SQLITE_OK && !a->result)
        code = SQLITE_NOMEM;
    if (code == SQLITE_INTERRUPT)
        err_set(&a->err, -ETIME, "%s: the answer took too long; ask for a shorter time", path);
    else if (code != SQLITE_OK)
        db_fault(&a->err, path, code, sqlite3_errstr(code));

    rd->cpu_until_usec = rd->wall_until_usec = UINT64_MAX;
    if (db_exec(rd->db, "ROLLBACK") != SQLITE_OK || (code != SQLITE_OK && code != SQLITE_INTERRUPT))
        db_closep(&rd->db);
}

void *reader_main(void *store)
{
    struct reader rd = {.s = store};
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
    struct job_list job = {0};
    static const size_t strings[] = {
        offsetof(struct store_query, id), offsetof(struct store_query, route), offsetof(struct store_query, reason),
        offsetof(struct store_query, label), offsetof(struct store_query, outcome), offsetof(struct store_query, key),
    };
    size_t n_bytes = 0;
    struct question *a;
    char *p;

    if (queue_length(&s->queries) >= MAX_WAITING)
        return -EBUSY;
    for (size_t i = 0; i < ARRAY_SIZE(strings); i++) {
        const char *const *from = (const void *)((const char *)q + strings[i]);

        n_bytes += *from ? strlen(*from) + 1 : 0;
    }
    a = malloc(sizeof(*a) + n_bytes);
    if (!a)
        return -ENOMEM;
    *a = (struct question) {.job.finish = question_finish, .q = *q, .done = done, .arg = arg};

    p = a->strings;
    for (size_t i = 0; i < ARRAY_SIZE(strings); i++) {
        const char **to = (void *)((char *)&a->q + strings[i]);

        if (*to) {
            const char *from = *to;

            *to = p;
            p = stpcpy(p, from) + 1;
        }
    }
    job_list_add(&job, &a->job);
    queue_push(&s->queries, &job, false);
    return 0;
}
