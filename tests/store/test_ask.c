/* Questions: filters, order, limits, totals and percentiles against a brute-force count, and the time limit. */
#include "tests/store/store_fixture.h"

static const char *const labels[] = {"public", "internal", "private"};
static const char *const keys[] = {"alice", "bob"};
static const char *const outcomes[] = {"ok", "ok", "ok", "degraded", "refused", "truncated"};

#define N 600
#define T0 1764000000000000ULL

struct made {
    char id[ID_BYTES];
    const char *label, *key, *route, *reason, *outcome;
    uint64_t latency_usec;
    bool escalated;
};
static struct made made[N];

/* Requests a second apart. Of ten, two go from local to cloud, one straight to the cloud, and one in fifty is lost. */
static void make(struct fixture *f)
{
    unsigned want = 0;

    for (unsigned i = 0; i < N; i++) {
        struct made *m = &made[i];
        struct store_record r;
        uint64_t t = T0 + i * USEC_PER_SEC;

        id_new(m->id, t);
        m->label = labels[i % 3];
        m->key = keys[i % 2];
        m->escalated = i % 10 < 2;
        m->route = i % 10 < 3 ? "cloud" : "local";
        m->reason = m->escalated ? "unsure-end" : i % 10 == 2 ? "too-hard" : "confident";
        m->outcome = i % 50 == 49 ? "lost" : outcomes[(i / 10) % 6];
        m->latency_usec = (i * 7919 % N + 1) * 1000;

        r = request_record(m->id);
        r.time_usec = t;
        r.request.label = m->label;
        r.request.key = m->key;
        store_append(f->store, &r, on_done, f), want++;
        if (m->escalated) {
            r = decision_record(m->id, 0, "local", "try-local");
            r.time_usec = t + 1;
            store_append(f->store, &r, on_done, f), want++;
        }
        r = decision_record(m->id, m->escalated, m->route, m->reason);
        r.time_usec = t + 2;
        store_append(f->store, &r, on_done, f), want++;
        if (strcmp(m->route, "cloud") == 0) {
            r = (struct store_record) {.kind = STORE_EGRESS, .time_usec = t + 3, .egress = {
                .seq = 1, .host = "h", .bytes = 100 + i}};
            memcpy(r.request_id, m->id, ID_BYTES);
            store_append(f->store, &r, on_done, f), want++;
        }
        if (strcmp(m->outcome, "lost") == 0)
            continue;
        r = outcome_record(m->id, m->route, m->outcome, m->latency_usec);
        r.time_usec = t + 4;
        r.outcome.tokens_in = 10;
        r.outcome.tokens_out = i;
        r.outcome.cost_microusd = strcmp(m->route, "cloud") == 0 ? 3 : 0;
        store_append(f->store, &r, on_done, f), want++;
    }
    WAIT_FOR(f, f->n_done == want);
    cr_assert_eq(f->n_failed, 0);
}

static bool match(const struct made *m, const struct store_query *q)
{
    uint64_t t = T0 + (uint64_t)(m - made) * USEC_PER_SEC;

    return (!q->id || strcmp(q->id, m->id) == 0) && (!q->route || strcmp(q->route, m->route) == 0) &&
           (!q->reason || strcmp(q->reason, m->reason) == 0) && (!q->label || strcmp(q->label, m->label) == 0) &&
           (!q->outcome || strcmp(q->outcome, m->outcome) == 0) && (!q->key || strcmp(q->key, m->key) == 0) &&
           (!q->since_usec || t >= q->since_usec) && (!q->until_usec || t < q->until_usec);
}

static void check_log(struct fixture *f, struct store_query q)
{
    json_t *a = ask_wait(f, &q), *rows = json_object_get(a, "rows");
    size_t at = 0;

    for (int i = N - 1; i >= 0 && at < q.limit; i--) {
        if (!match(&made[i], &q))
            continue;
        cr_assert_str_eq(json_string_value(json_object_get(json_array_get(rows, at), "id")), made[i].id, "row %zu", at);
        cr_assert_str_eq(json_string_value(json_object_get(json_array_get(rows, at), "outcome")), made[i].outcome);
        cr_assert_str_eq(json_string_value(json_object_get(json_array_get(rows, at), "reason")), made[i].reason);
        at++;
    }
    cr_assert_eq(json_array_size(rows), at);
    json_decref(a);
}

static json_int_t count_of(const json_t *a, const char *key)
{
    cr_assert(json_is_integer(json_object_get(a, key)), "%s", key);
    return json_integer_value(json_object_get(a, key));
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static void check_percentiles(const json_t *a, const char *route, const struct store_query *q)
{
    const json_t *is = json_object_get(json_object_get(a, "latency_ms"), route);
    uint64_t all[N];
    size_t n = 0;

    for (size_t i = 0; i < N; i++)
        if (match(&made[i], q) && strcmp(made[i].route, route) == 0 && strcmp(made[i].outcome, "lost") != 0)
            all[n++] = made[i].latency_usec;
    if (n == 0) {
        cr_assert(json_is_null(json_object_get(is, "p50")));
        return;
    }
    qsort(all, n, sizeof(all[0]), by_value);
    cr_assert_eq(json_real_value(json_object_get(is, "p50")), (double)all[(n * 50 + 99) / 100 - 1] / 1000);
    cr_assert_eq(json_real_value(json_object_get(is, "p95")), (double)all[(n * 95 + 99) / 100 - 1] / 1000);
}

static void check_stats(struct fixture *f, struct store_query q)
{
    json_t *a;
    json_int_t requests = 0, local = 0, cloud = 0, refused = 0, degraded = 0, escalated = 0, hard = 0;
    json_int_t cost = 0, bytes = 0, out = 0;

    q.ask = STORE_STATS;
    a = ask_wait(f, &q);
    for (int i = 0; i < N; i++) {
        const struct made *m = &made[i];
        bool is_cloud = strcmp(m->route, "cloud") == 0, lost = strcmp(m->outcome, "lost") == 0;

        if (!match(m, &q))
            continue;
        requests++;
        cloud += is_cloud;
        local += !is_cloud;
        refused += strcmp(m->outcome, "refused") == 0;
        degraded += strcmp(m->outcome, "degraded") == 0;
        escalated += m->escalated;
        cost += is_cloud && !lost ? 3 : 0;
        bytes += is_cloud ? 100 + i : 0;
        out += lost ? 0 : i;
        hard += strcmp(m->reason, "too-hard") == 0;
    }
    cr_assert_eq(count_of(a, "requests"), requests);
    cr_assert_eq(count_of(a, "local"), local);
    cr_assert_eq(count_of(a, "cloud"), cloud);
    cr_assert_eq(count_of(a, "refused"), refused);
    cr_assert_eq(count_of(a, "degraded"), degraded);
    cr_assert_eq(count_of(a, "escalated"), escalated);
    cr_assert_eq(count_of(a, "cost_microusd"), cost);
    cr_assert_eq(count_of(a, "bytes_left"), bytes);
    cr_assert_eq(count_of(a, "tokens_out"), out);
    cr_assert_eq(json_integer_value(json_object_get(json_object_get(a, "reasons"), "too-hard")), hard);
    check_percentiles(a, "local", &q);
    check_percentiles(a, "cloud", &q);
    json_decref(a);
}

Test(ask, filters_and_totals)
{
    static const struct store_query queries[] = {
        {.limit = 1000},
        {.limit = 7},
        {.limit = 1000, .label = "private"},
        {.limit = 5, .key = "bob"},
        {.limit = 1000, .route = "cloud"},
        {.limit = 11, .reason = "too-hard"},
        {.limit = 1000, .reason = "try-local"},       /* never a last decision */
        {.limit = 13, .outcome = "truncated"},
        {.limit = 1000, .outcome = "lost"},
        {.limit = 1000, .since_usec = T0 + 500 * USEC_PER_SEC},
        {.limit = 1000, .until_usec = T0 + 20 * USEC_PER_SEC},
        {.limit = 9, .since_usec = T0 + 100 * USEC_PER_SEC, .until_usec = T0 + 300 * USEC_PER_SEC,
         .reason = "confident"},
        {.limit = 1000, .label = "public", .key = "alice", .route = "local", .reason = "confident",
         .outcome = "degraded"},
        {.limit = 1000, .key = "nobody' OR 1=1 --"},
    };
    struct fixture f;
    json_t *empty;

    fixture_init(&f);
    empty = ask_wait(&f, &(struct store_query) {.ask = STORE_STATS});
    cr_assert_eq(count_of(empty, "requests"), 0);
    cr_assert_eq(count_of(empty, "cost_microusd"), 0);
    cr_assert(json_is_null(json_object_get(json_object_get(json_object_get(empty, "latency_ms"), "local"), "p50")));
    json_decref(empty);
    make(&f);
    for (size_t i = 0; i < ARRAY_SIZE(queries); i++) {
        check_log(&f, queries[i]);
        check_stats(&f, queries[i]);
    }
    fixture_done(&f);
}

Test(ask, limits_are_clamped)
{
    struct fixture f;
    json_t *a;

    fixture_init(&f);
    make(&f);
    a = ask_wait(&f, &(struct store_query) {.ask = STORE_LOG, .limit = 0});
    cr_assert_eq(json_array_size(json_object_get(a, "rows")), 1);
    json_decref(a);
    a = ask_wait(&f, &(struct store_query) {.ask = STORE_LOG, .limit = UINT32_MAX, .until_usec = UINT64_MAX});
    cr_assert_eq(json_array_size(json_object_get(a, "rows")), N);
    json_decref(a);
    fixture_done(&f);
}

/* A view that never ends stands for a question over too much: it is cut off, and the next one is answered. */
Test(ask, time_limit, .timeout = 60)
{
    struct fixture f;
    struct answer a = {0};
    uint64_t begin;
    json_t *ok;

    fixture_init(&f);
    make(&f);
    cr_assert_eq(sql_code(f.path, "DROP VIEW decisions_v; CREATE VIEW decisions_v AS"
                          " WITH RECURSIVE forever (id, time) AS (SELECT '', '' UNION ALL SELECT id, time FROM forever)"
                          " SELECT id, time FROM forever"), SQLITE_OK);
    begin = clock_usec();
    cr_assert_eq(store_query(f.store, &(struct store_query) {.ask = STORE_LOG, .limit = 1}, on_answer, &a), 0);
    WAIT_FOR(&f, a.done);
    cr_assert_null(a.result);
    cr_assert(strstr(a.err.msg, "shorter time"), "%s", a.err.msg);
    cr_assert_gt(clock_usec() - begin, USEC_PER_SEC);
    ok = ask_wait(&f, &(struct store_query) {.ask = STORE_STATS});
    cr_assert_eq(count_of(ok, "requests"), N);
    json_decref(ok);
    fixture_done(&f);
}
