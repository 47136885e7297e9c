/* The store's promises: every kind comes back as it went in, in order, numbered without a gap; done means durable;
 * what is recorded cannot be changed; places are bounded; only one process opens the database, and only one that it
 * knows. */
#include <errno.h>
#include <sys/wait.h>
#include "tests/store/store_fixture.h"

#define ID_A "01ARZ3NDEKTSV4RRFFQ69G5FAV"
#define ID_B "01ARZ3NDEKTSV4RRFFQ69G5FAW"

static void check_string(const json_t *obj, const char *key, const char *want)
{
    const char *is = json_string_value(json_object_get(obj, key));

    cr_assert(is, "%s is missing", key);
    cr_assert_str_eq(is, want, "%s", key);
}

static void check_int(const json_t *obj, const char *key, json_int_t want)
{
    cr_assert(json_is_integer(json_object_get(obj, key)), "%s", key);
    cr_assert_eq(json_integer_value(json_object_get(obj, key)), want, "%s", key);
}

static void check_real(const json_t *obj, const char *key, double want)
{
    cr_assert(json_is_real(json_object_get(obj, key)), "%s", key);
    cr_assert_eq(json_real_value(json_object_get(obj, key)), want, "%s", key);
}

#define T0 1764000000123456ULL                     /* 2025-11-24T16:00:00.123456Z */

/* One request of every kind: local first, unsure, then the cloud. */
static void append_all_kinds(struct fixture *f)
{
    struct store_record r = request_record(ID_A);

    r.time_usec = T0;
    r.request.peer = "unix";
    r.request.mode = "auto";
    r.request.model_asked = "tern \xc3\xbc \"quoted\" '); DROP TABLE request; --";
    r.request.label_source = "header";
    r.request.policy_digest = "sha256:aa";
    r.request.model_digest = "sha256:bb";
    r.request.content_bytes = 1234;
    r.request.stream = true;
    for (int i = 0; i < 32; i++)
        r.request.prompt_digest[i] = (uint8_t)(i * 8 + 1);
    cr_assert_eq(store_append(f->store, &r, NULL, NULL), 0);

    r = decision_record(ID_A, 0, "local", "try-local");
    r.time_usec = T0 + 10;
    cr_assert_eq(store_append(f->store, &r, NULL, NULL), 0);

    r = decision_record(ID_A, 1, "cloud", "unsure-end");
    r.decision.stage = "end";
    r.decision.endpoint = "big";
    r.decision.model = "big-1";
    r.decision.features_json = "{\"words\":12,\"p_hard\":0.1}";
    r.decision.candidates_json = "[{\"route\":\"local\",\"rejected\":\"score\"}]";
    r.decision.score = 0.30000000000000004;
    r.decision.threshold = 0.5;
    r.decision.degraded = true;
    cr_assert_eq(store_append(f->store, &r, NULL, NULL), 0);

    r = (struct store_record) {.kind = STORE_EGRESS, .request_id = ID_A, .time_usec = T0 + 20, .egress = {
        .seq = 1, .endpoint = "big", .host = "api.example.com", .region = "eu", .label = "public", .bytes = 777,
        .redactions = 3, .body_digest = {[0] = 0xab, [31] = 0xcd}}};
    cr_assert_eq(store_append(f->store, &r, NULL, NULL), 0);

    r = (struct store_record) {.kind = STORE_ATTEMPT, .request_id = ID_A, .time_usec = T0 + 30, .attempt = {
        .seq = 1, .tier = "cloud", .endpoint = "big", .model = "big-1", .result = "ok", .http_status = 200,
        .started_usec = T0 + 1000, .first_byte_usec = T0 + 251000, .ended_usec = T0 + 1001500,
        .tokens_in = 40, .tokens_out = 50}};
    cr_assert_eq(store_append(f->store, &r, NULL, NULL), 0);

    r = outcome_record(ID_A, "cloud", "ok", 1002500);
    r.outcome.endpoint = "big";
    r.outcome.model = "big-1-upstream";
    r.outcome.finish = "stop";
    r.outcome.http_status = 200;
    r.outcome.tokens_in = 40;
    r.outcome.tokens_out = 50;
    r.outcome.cost_microusd = -5;
    r.outcome.first_token_usec = 260000;
    r.outcome.confidence = 0.25;
    cr_assert_eq(append_wait(f, &r), 0);
}

Test(store, every_kind_comes_back)
{
    struct fixture f;
    json_t *all, *part;

    fixture_init(&f);
    append_all_kinds(&f);
    all = ask_wait(&f, &(struct store_query) {.ask = STORE_WHY, .id = ID_A});

    part = json_object_get(all, "request");
    check_int(part, "n", 1);
    check_string(part, "id", ID_A);
    check_string(part, "time", "2025-11-24T16:00:00.123456Z");
    check_int(part, "time_usec", T0);
    check_string(part, "dialect", "openai");
    check_string(part, "key", "alice");
    check_string(part, "peer", "unix");
    check_string(part, "mode", "auto");
    check_string(part, "model_asked", "tern \xc3\xbc \"quoted\" '); DROP TABLE request; --");
    check_string(part, "label", "public");
    check_string(part, "label_source", "header");
    check_string(part, "policy_digest", "sha256:aa");
    check_string(part, "model_digest", "sha256:bb");
    check_int(part, "n_messages", 2);
    check_int(part, "content_bytes", 1234);
    check_string(part, "prompt_digest", "0109111921293139414951596169717981899199a1a9b1b9c1c9d1d9e1e9f1f9");
    cr_assert(json_is_true(json_object_get(part, "stream")));

    cr_assert_eq(json_array_size(json_object_get(all, "decisions")), 2);
    part = json_array_get(json_object_get(all, "decisions"), 0);
    check_int(part, "n", 2);
    check_int(part, "seq", 0);
    check_string(part, "route", "local");
    cr_assert(json_is_null(json_object_get(part, "score")));
    cr_assert(json_is_null(json_object_get(part, "features")));
    cr_assert(json_is_false(json_object_get(part, "degraded")));
    part = json_array_get(json_object_get(all, "decisions"), 1);
    check_int(part, "n", 3);
    check_int(part, "seq", 1);
    check_string(part, "stage", "end");
    check_string(part, "endpoint", "big");
    check_string(part, "model", "big-1");
    check_string(part, "reason", "unsure-end");
    check_real(part, "score", 0.30000000000000004);
    check_real(part, "threshold", 0.5);
    check_int(json_object_get(part, "features"), "words", 12);
    check_string(json_array_get(json_object_get(part, "candidates"), 0), "rejected", "score");
    cr_assert(json_is_true(json_object_get(part, "degraded")));

    cr_assert_eq(json_array_size(json_object_get(all, "egress")), 1);
    part = json_array_get(json_object_get(all, "egress"), 0);
    check_int(part, "n", 4);
    check_string(part, "host", "api.example.com");
    check_string(part, "region", "eu");
    check_int(part, "bytes", 777);
    check_int(part, "redactions", 3);
    check_string(part, "body_digest", "ab000000000000000000000000000000000000000000000000000000000000cd");

    cr_assert_eq(json_array_size(json_object_get(all, "attempts")), 1);
    part = json_array_get(json_object_get(all, "attempts"), 0);
    check_string(part, "tier", "cloud");
    check_string(part, "result", "ok");
    cr_assert(json_is_null(json_object_get(part, "error")));
    check_int(part, "http_status", 200);
    check_int(part, "n", 5);
    check_int(part, "started_usec", T0 + 1000);
    check_int(part, "first_byte_usec", T0 + 251000);
    check_int(part, "ended_usec", T0 + 1001500);
    check_int(part, "tokens_out", 50);

    part = json_object_get(all, "outcome");
    check_int(part, "n", 6);
    check_string(part, "outcome", "ok");
    check_string(part, "model", "big-1-upstream");
    check_string(part, "finish", "stop");
    check_int(part, "cost_microusd", -5);
    check_int(part, "first_token_usec", 260000);
    check_int(part, "latency_usec", 1002500);
    check_real(part, "confidence", 0.25);
    json_decref(all);

    all = ask_wait(&f, &(struct store_query) {.ask = STORE_WHY, .id = ID_B});
    cr_assert(json_is_null(all), "unknown");
    json_decref(all);

    /* What JSON cannot say, or what somebody else put in by hand, spoils no answer. */
    cr_assert_eq(sql_code(f.path, "INSERT INTO request SELECT 7, '" ID_B "', time_usec, dialect, CAST(x'ff' AS TEXT),"
                          " peer, mode, model_asked, label, label_source, policy_digest, model_digest, n_messages,"
                          " content_bytes, prompt_digest, stream FROM request;"
                          "INSERT INTO decision (n, request_id, seq, time_usec, features, score, degraded)"
                          " VALUES (8, '" ID_B "', 0, 0, '{', 9e999, 0)"), SQLITE_OK);
    all = ask_wait(&f, &(struct store_query) {.ask = STORE_WHY, .id = ID_B});
    check_string(json_object_get(all, "request"), "key", "(unreadable)");
    part = json_array_get(json_object_get(all, "decisions"), 0);
    check_string(part, "features", "(unreadable)");
    cr_assert(json_is_null(json_object_get(part, "score")));
    json_decref(all);
    cr_assert_eq(append_wait(&f, &(struct store_record[]) {request_record("01ARZ3NDEKTSV4RRFFQ69G5FAX")}[0]), 0);
    cr_assert_eq(sql_int(f.path, "SELECT max(n) FROM request"), 9);
    fixture_done(&f);
}

/* Columns and values, as an auditor's own SQL sees them. */
Test(store, views)
{
    struct fixture f;
    char text[512];

    fixture_init(&f);
    append_all_kinds(&f);
    cr_assert_str_eq(sql_text(f.path, "SELECT group_concat(name) FROM pragma_table_info('decisions_v')", text),
                     "id,time,key,label,route,reason,model,score,threshold,tokens_in,tokens_out,cost_microusd,"
                     "bytes_left,latency_ms,outcome");
    cr_assert_str_eq(sql_text(f.path, "SELECT group_concat(name) FROM pragma_table_info('attempts_v')", text),
                     "id,seq,time,tier,endpoint,model,result,error,http_status,first_byte_ms,duration_ms,tokens_in,"
                     "tokens_out,bytes_left,host");
    cr_assert_str_eq(sql_text(f.path, "SELECT * FROM decisions_v", text),
                     ID_A " 2025-11-24T16:00:00.123456Z alice public cloud unsure-end big-1-upstream 0.3 0.5 40 50 -5 777"
                     " 1002.5 ok");

    cr_assert_str_eq(sql_text(f.path, "SELECT * FROM attempts_v", text),
                     ID_A " 1 2025-11-24T16:00:00.124456Z cloud big big-1 ok - 200 250.0 1000.5 40 50 777"
                     " api.example.com");

    /* Cut off by a crash: the request, its decision and the bytes that left. */
    cr_assert_eq(append_wait(&f, &(struct store_record[]) {request_record(ID_B)}[0]), 0);
    cr_assert_eq(append_wait(&f, &(struct store_record[]) {decision_record(ID_B, 0, "cloud", "too-hard")}[0]), 0);
    cr_assert_eq(append_wait(&f, &(struct store_record) {.kind = STORE_EGRESS, .request_id = ID_B, .egress = {
        .seq = 0, .endpoint = "big", .host = "api.example.com", .bytes = 99}}), 0);
    cr_assert_str_eq(sql_text(f.path, "SELECT outcome, route, bytes_left, latency_ms FROM decisions_v"
                              " WHERE id = '" ID_B "'", text), "lost cloud 99 -");
    cr_assert_str_eq(sql_text(f.path, "SELECT result, bytes_left, host, tier FROM attempts_v"
                              " WHERE id = '" ID_B "'", text), "lost 99 api.example.com cloud");
    cr_assert_eq(sql_int(f.path, "SELECT count(*) FROM decisions_v"), 2);
    fixture_done(&f);
}

struct durable { struct fixture *f; char id[ID_BYTES]; };

static void check_durable(void *arg, int r)
{
    struct durable *d = arg;
    char sql[128];

    cr_assert_eq(r, 0);
    snprintf(sql, sizeof(sql), "SELECT count(*) FROM request WHERE id = '%s'", d->id);
    cr_assert_eq(sql_int(d->f->path, sql), 1, "done before the row could be read by another connection");
    d->f->n_done++;
}

Test(store, done_means_committed)
{
    struct fixture f;
    static struct durable d[200];

    fixture_init(&f);
    for (unsigned i = 0; i < ARRAY_SIZE(d); i++) {
        struct store_record r;

        d[i].f = &f;
        id_new(d[i].id, clock_wall_usec());
        r = request_record(d[i].id);
        cr_assert_eq(store_append(f.store, &r, check_durable, &d[i]), 0);
    }
    WAIT_FOR(&f, f.n_done == ARRAY_SIZE(d));
    cr_assert_eq(sql_int(f.path, "PRAGMA journal_mode = wal"), 0);
    fixture_done(&f);
}

#define N_MANY 20000

struct order { unsigned next; unsigned calls; };
static struct order order;

static void check_order(void *arg, int r)
{
    cr_assert_eq(r, 0);
    cr_assert_eq((uintptr_t)arg, order.next);
    order.next++;
}

/* Twenty thousand records of two kinds: done in order, rows in order, one number each over both tables, no gap. */
Test(store, order_and_numbers)
{
    struct fixture f;
    char id[ID_BYTES] = "";

    fixture_init(&f);
    order.next = 0;
    for (uintptr_t i = 0; i < N_MANY; i++) {
        struct store_record r;

        if (i % 2 == 0) {
            id_new(id, clock_wall_usec());
            r = request_record(id);
            r.request.content_bytes = i;
        } else {
            r = decision_record(id, 0, "local", "try-local");
        }
        cr_assert_eq(store_append(f.store, &r, check_order, (void *)i), 0);
    }
    WAIT_FOR(&f, order.next == N_MANY);
    cr_assert_eq(sql_int(f.path, "SELECT count(*) FROM request WHERE n <> content_bytes + 1"), 0);
    cr_assert_eq(sql_int(f.path, "SELECT count(*) FROM (SELECT n FROM request UNION SELECT n FROM decision)"), N_MANY);
    cr_assert_eq(sql_int(f.path, "SELECT max(n) FROM decision"), N_MANY);

    /* Numbering goes on after a restart. */
    fixture_close(&f);
    fixture_open(&f);
    id_new(id, clock_wall_usec());
    cr_assert_eq(append_wait(&f, &(struct store_record[]) {request_record(id)}[0]), 0);
    cr_assert_eq(sql_int(f.path, "SELECT max(n) FROM request"), N_MANY + 1);
    fixture_done(&f);
}

/* One bad record fails alone, takes no number, and the store stays healthy. */
Test(store, bad_record_fails_alone)
{
    struct fixture f;
    struct store_record good = request_record(ID_A), orphan = decision_record(ID_B, 0, "local", "try-local");
    struct store_record last = decision_record(ID_A, 1, "local", "try-local");

    fixture_init(&f);
    cr_assert_eq(store_append(f.store, &good, on_done, &f), 0);
    cr_assert_eq(store_append(f.store, &good, on_done, &f), 0);
    cr_assert_eq(store_append(f.store, &orphan, on_done, &f), 0);
    cr_assert_eq(store_append(f.store, &last, on_done, &f), 0);
    WAIT_FOR(&f, f.n_done == 4);
    cr_assert_eq(f.n_failed, 2);
    cr_assert(store_healthy(f.store));
    cr_assert_null(store_fault(f.store));
    cr_assert_eq(sql_int(f.path, "SELECT n FROM decision"), 2);
    fixture_done(&f);
}

Test(store, append_only)
{
    static const char *const tables[] = {"request", "decision", "attempt", "egress", "outcome"};
    struct fixture f;
    char sql[256], before[512], after[512];

    fixture_init(&f);
    append_all_kinds(&f);
    for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
        snprintf(sql, sizeof(sql), "SELECT group_concat(n || time_usec) FROM %s", tables[i]);
        sql_text(f.path, sql, before);
        snprintf(sql, sizeof(sql), "UPDATE %s SET time_usec = 0", tables[i]);
        cr_assert_eq(sql_code(f.path, sql), SQLITE_CONSTRAINT, "%s", sql);
        snprintf(sql, sizeof(sql), "DELETE FROM %s", tables[i]);
        cr_assert_eq(sql_code(f.path, sql), SQLITE_CONSTRAINT, "%s", sql);
        snprintf(sql, sizeof(sql), "INSERT OR REPLACE INTO %s SELECT * FROM %s", tables[i], tables[i]);
        cr_assert_eq(sql_code(f.path, sql), SQLITE_CONSTRAINT, "%s", sql);
        snprintf(sql, sizeof(sql), "CREATE TEMP TABLE t AS SELECT * FROM %s; UPDATE t SET n = n + 100;"
                 "INSERT OR REPLACE INTO %s SELECT * FROM t", tables[i], tables[i]);
        if (strcmp(tables[i], "egress") != 0)          /* has no key but its number */
            cr_assert_eq(sql_code(f.path, sql), SQLITE_CONSTRAINT, "%s", sql);
        snprintf(sql, sizeof(sql), "SELECT group_concat(n || time_usec) FROM %s", tables[i]);
        cr_assert_str_eq(sql_text(f.path, sql, after), before);
    }
    fixture_done(&f);
}

Test(store, places_are_bounded)
{
    struct fixture f;

    fixture_init(&f);
    for (int i = 0; i < 8; i++)
        cr_assert_eq(store_reserve(f.store), 0);
    cr_assert_eq(store_in_flight(f.store), 8);
    cr_assert_eq(store_reserve(f.store), STORE_E_FULL);
    store_release(f.store);
    cr_assert_eq(store_reserve(f.store), 0);
    cr_assert_eq(store_reserve(f.store), STORE_E_FULL);
    fixture_done(&f);
}

/* Clients that leave free their places while the writer is held up: what waits for it is bounded all the same. */
Test(store, queue_is_bounded_without_places)
{
    struct fixture f;
    sqlite3 *other;
    int r = 0, appended = 0;

    fixture_init(&f);
    cr_assert_eq(sqlite3_open(f.path, &other), SQLITE_OK);
    cr_assert_eq(sqlite3_exec(other, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    for (; appended < 10000; appended++) {
        char id[ID_BYTES];

        r = store_reserve(f.store);
        if (r)
            break;
        id_new(id, clock_wall_usec());
        cr_assert_eq(store_append(f.store, &(struct store_record[]) {request_record(id)}[0], on_done, &f), 0);
        store_release(f.store);
    }
    cr_assert(r == STORE_E_FULL || r == STORE_E_FAILED);
    cr_assert_lt(appended, 2000);
    sqlite3_close(other);
    fixture_done(&f);
}

/* Another process holds the database: refused, and told by whom. The lock goes with its holder. */
Test(store, second_opener_is_refused)
{
    struct fixture f, other;
    struct err err = {0};
    char pid[32], byte;
    int up[2], status;
    pid_t child;

    fixture_dir(&f);
    cr_assert_eq(pipe(up), 0);
    child = fork();
    if (child == 0) {
        fixture_open(&f);
        cr_assert_eq(write(up[1], "x", 1), 1);
        pause();
        _exit(0);
    }
    close(up[1]);
    cr_assert_eq(read(up[0], &byte, 1), 1);
    cr_assert_eq(fixture_try_open(&f, &err), -EBUSY);
    snprintf(pid, sizeof(pid), "process %d;", (int)child);
    cr_assert(strstr(err.msg, pid), "%s", err.msg);
    cr_assert(strstr(err.msg, f.path), "%s", err.msg);
    kill(child, SIGKILL);
    waitpid(child, &status, 0);

    fixture_open(&f);
    other = f;
    cr_assert_eq(fixture_try_open(&other, &err), -EBUSY, "the same process");
    close(up[0]);
    fixture_done(&f);
}

Test(store, unknown_databases_are_refused_untouched)
{
    struct fixture f;
    struct err err = {0};
    FILE *file;

    fixture_init(&f);
    fixture_close(&f);
    cr_assert_eq(sql_code(f.path, "PRAGMA user_version = 99"), SQLITE_OK);
    cr_assert_eq(fixture_try_open(&f, &err), -ENOTSUP);
    cr_assert(strstr(err.msg, "newer tern (schema 99"), "%s", err.msg);
    cr_assert_eq(sql_int(f.path, "PRAGMA user_version"), 99);
    unlink(f.path);

    file = fopen(f.path, "w");
    fclose(file);
    cr_assert_eq(sql_code(f.path, "CREATE TABLE photos (x)"), SQLITE_OK);
    cr_assert_eq(fixture_try_open(&f, &err), -EINVAL);
    cr_assert(strstr(err.msg, "another program"), "%s", err.msg);
    cr_assert_eq(sql_int(f.path, "SELECT count(*) FROM sqlite_schema"), 1);

    file = fopen(f.path, "w");
    fprintf(file, "%04096d", 7);
    fclose(file);
    cr_assert_eq(fixture_try_open(&f, &err), -EBADMSG);
    cr_assert(strstr(err.msg, "not an audit database"), "%s", err.msg);

    snprintf(f.path, sizeof(f.path), "%s/absent/audit.db", f.dir);
    cr_assert_eq(fixture_try_open(&f, &err), -ENOENT);
    cr_assert(strstr(err.msg, "absent/audit.db"), "%s", err.msg);
    snprintf(f.path, sizeof(f.path), "%s/audit.db", f.dir);
    fixture_done(&f);
}

Test(store, file_is_private)
{
    struct fixture f;
    struct stat st;
    mode_t mask = umask(0);

    fixture_init(&f);
    umask(mask);
    cr_assert_eq(stat(f.path, &st), 0);
    cr_assert_eq(st.st_mode & 0777, 0600);
    fixture_done(&f);
}

Test(store, the_writer_beats)
{
    struct fixture f;
    uint64_t beat;

    fixture_init(&f);
    beat = store_writer_beat_usec(f.store);
    cr_assert_leq(beat, clock_usec());
    WAIT_FOR(&f, store_writer_beat_usec(f.store) > beat + USEC_PER_SEC / 2);
    fixture_done(&f);
}

static void close_inside(void *arg, int r)
{
    struct fixture *f = arg;

    f->n_done++;
    fixture_close(f);
}

/* Closing commits what is queued, from anywhere on the loop, and calls nobody back afterwards. */
Test(store, close_commits_and_drops_callbacks)
{
    struct fixture f;
    struct answer a = {0};
    char id[ID_BYTES];

    fixture_init(&f);
    for (int i = 0; i < 3000; i++) {
        id_new(id, clock_wall_usec());
        cr_assert_eq(store_append(f.store, &(struct store_record[]) {request_record(id)}[0], on_done, &f), 0);
    }
    cr_assert_eq(store_query(f.store, &(struct store_query) {.ask = STORE_STATS}, on_answer, &a), 0);
    fixture_close(&f);
    mailbox_run(&f.mailbox);
    cr_assert_eq(f.n_done, 0);
    cr_assert_not(a.done);
    cr_assert_eq(sql_int(f.path, "SELECT count(*) FROM request"), 3000);

    fixture_open(&f);
    for (int i = 0; i < 3000; i++) {
        id_new(id, clock_wall_usec());
        cr_assert_eq(store_append(f.store, &(struct store_record[]) {request_record(id)}[0], close_inside, &f), 0);
    }
    WAIT_FOR(&f, !f.store);
    mailbox_run(&f.mailbox);
    cr_assert_eq(f.n_done, 1);
    cr_assert_eq(sql_int(f.path, "SELECT count(*) FROM request"), 6000);
    fixture_done(&f);
}
