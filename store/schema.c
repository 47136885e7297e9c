/* The database: how a connection is set up, and the schema as a list of migrations.
 *
 * Every record, of whatever table, has a number n: 1, 2, 3, … without a gap over all tables together, in the order of
 * the appends. It is the rowid, so it costs nothing to keep, and the writer finds where to go on at the ends of five
 * B-trees. The later hash chain goes by n.
 *
 * Triggers refuse UPDATE, DELETE and the hidden delete of INSERT OR REPLACE on the record tables, and a number below
 * one that its table has. Somebody who may write the file can drop a trigger: they guard against mistakes, the chain
 * against intent. `meta` is the only table whose rows change.
 *
 * PRAGMA user_version counts the migrations a database has had. A migration that has shipped is never edited. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "store/internal.h"

#define APPLICATION_ID 0x7465726e                  /* "tern" */
#define DEFAULT_BUSY_TIMEOUT_MSEC 5000

#define APPEND_ONLY(table, same_key)                                                                                  \
    "CREATE TRIGGER " table "_no_update BEFORE UPDATE ON " table " BEGIN"                                             \
    "  SELECT RAISE(ABORT, 'audit records are only ever added'); END;"                                                \
    "CREATE TRIGGER " table "_no_delete BEFORE DELETE ON " table " BEGIN"                                             \
    "  SELECT RAISE(ABORT, 'audit records are only ever added'); END;"                                                \
    "CREATE TRIGGER " table "_no_replace BEFORE INSERT ON " table                                                     \
    " WHEN EXISTS (SELECT 1 FROM " table " WHERE n >= NEW.n)"                                                         \
    "   OR EXISTS (SELECT 1 FROM " table " WHERE " same_key ") BEGIN"                                                 \
    "  SELECT RAISE(ABORT, 'audit records are only ever added'); END;"

/* RFC 3339 in UTC, with microseconds. */
#define TIME_TEXT(usec) \
    "strftime('%Y-%m-%dT%H:%M:%S', " usec " / 1000000, 'unixepoch') || printf('.%06dZ', " usec " % 1000000)"

static const char *const migrations[] = {
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID;"

    "CREATE TABLE request ("
    "  n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, time_usec INTEGER NOT NULL,"
    "  dialect TEXT, key TEXT, peer TEXT, mode TEXT, model_asked TEXT, label TEXT, label_source TEXT,"
    "  policy_digest TEXT, model_digest TEXT, n_messages INTEGER NOT NULL, content_bytes INTEGER NOT NULL,"
    "  prompt_digest BLOB NOT NULL CHECK (length(prompt_digest) = 32), stream INTEGER NOT NULL) STRICT;"
    "CREATE INDEX request_time ON request (time_usec);"
    "CREATE INDEX request_key ON request (key, time_usec);"
    "CREATE INDEX request_label ON request (label, time_usec);"
    APPEND_ONLY("request", "id = NEW.id")

    "CREATE TABLE decision ("
    "  n INTEGER PRIMARY KEY, request_id TEXT NOT NULL REFERENCES request (id), time_usec INTEGER NOT NULL,"
    "  seq INTEGER NOT NULL, stage TEXT, route TEXT, endpoint TEXT, model TEXT, reason TEXT,"
    "  features TEXT, candidates TEXT,"
    "  score REAL, threshold REAL, degraded INTEGER NOT NULL, UNIQUE (request_id, seq)) STRICT;"
    "CREATE INDEX decision_reason ON decision (reason, time_usec);"
    APPEND_ONLY("decision", "request_id = NEW.request_id AND seq = NEW.seq")

    "CREATE TABLE attempt ("
    "  n INTEGER PRIMARY KEY, request_id TEXT NOT NULL REFERENCES request (id), time_usec INTEGER NOT NULL,"
    "  seq INTEGER NOT NULL, tier TEXT, endpoint TEXT, model TEXT, result TEXT, error TEXT, http_status INTEGER,"
    "  started_usec INTEGER NOT NULL, first_byte_usec INTEGER, ended_usec INTEGER NOT NULL,"
    "  tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, UNIQUE (request_id, seq)) STRICT;"
    APPEND_ONLY("attempt", "request_id = NEW.request_id AND seq = NEW.seq")

    /* Written before its attempt is, and not unique within it: a body that left is never refused its row. */
    "CREATE TABLE egress ("
    "  n INTEGER PRIMARY KEY, request_id TEXT NOT NULL REFERENCES request (id), time_usec INTEGER NOT NULL,"
    "  seq INTEGER NOT NULL, endpoint TEXT, host TEXT, region TEXT, label TEXT, bytes INTEGER NOT NULL,"
    "  body_digest BLOB NOT NULL CHECK (length(body_digest) = 32), redactions INTEGER NOT NULL) STRICT;"
    "CREATE INDEX egress_request ON egress (request_id, seq);"
    APPEND_ONLY("egress", "n = NEW.n")

    "CREATE TABLE outcome ("
    "  n INTEGER PRIMARY KEY, request_id TEXT NOT NULL UNIQUE REFERENCES request (id), time_usec INTEGER NOT NULL,"
    "  outcome TEXT, route TEXT, endpoint TEXT, model TEXT, finish TEXT, error TEXT, http_status INTEGER,"
    "  tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, cost_microusd INTEGER NOT NULL,"
    "  first_token_usec INTEGER, latency_usec INTEGER NOT NULL, confidence REAL) STRICT;"
    "CREATE INDEX outcome_outcome ON outcome (outcome, time_usec);"
    APPEND_ONLY("outcome", "request_id = NEW.request_id")

    "CREATE VIEW decisions_v (id, time, key, label, route, reason, model, score, threshold, tokens_in, tokens_out,"
    "    cost_microusd, bytes_left, latency_ms, outcome) AS"
    "  SELECT r.id, " TIME_TEXT("r.time_usec") ", r.key, r.label, coalesce(o.route, d.route), d.reason,"
    "    coalesce(o.model, d.model), d.score, d.threshold, o.tokens_in, o.tokens_out, o.cost_microusd,"
    "    (SELECT coalesce(sum(bytes), 0) FROM egress WHERE request_id = r.id), o.latency_usec / 1000.0,"
    "    coalesce(o.outcome, 'lost')"
    "  FROM request r LEFT JOIN outcome o ON o.request_id = r.id"
    "  LEFT JOIN decision d ON d.request_id = r.id"
    "    AND d.seq = (SELECT max(seq) FROM decision WHERE request_id = r.id);"

    /* Bytes that left for an attempt that a crash cut off still show, as a lost attempt. */
    "CREATE VIEW attempts_v (id, seq, time, tier, endpoint, model, result, error, http_status, first_byte_ms,"
    "    duration_ms, tokens_in, tokens_out, bytes_left, host) AS"
    "  SELECT request_id, seq, " TIME_TEXT("started_usec") ", tier, endpoint, model, result, error, http_status,"
    "    (first_byte_usec - started_usec) / 1000.0, (ended_usec - started_usec) / 1000.0, tokens_in, tokens_out,"
    "    (SELECT coalesce(sum(bytes), 0) FROM egress e WHERE e.request_id = a.request_id AND e.seq = a.seq),"
    "    (SELECT max(host) FROM egress e WHERE e.request_id = a.request_id AND e.seq = a.seq)"
    "  FROM attempt a"
    "  UNION ALL"
    "  SELECT request_id, seq, " TIME_TEXT("min(time_usec)") ", 'cloud', endpoint, NULL, 'lost', NULL, NULL, NULL,"
    "    NULL, NULL, NULL, sum(bytes), host"
    "  FROM egress e"
    "  WHERE NOT EXISTS (SELECT 1 FROM attempt a WHERE a.request_id = e.request_id AND a.seq = e.seq)"
    "  GROUP BY request_id, seq;",
};

int db_exec(sqlite3 *db, const char *sql)
{
    return sqlite3_exec(db, sql, NULL, NULL, NULL);
}

int db_read_int(sqlite3 *db, const char *sql, int64_t *ret)
{
    sqlite3_stmt *stmt;
    int code = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL);

    if (code != SQLITE_OK)
        return code;
    if (sqlite3_step(stmt) == SQLITE_ROW)
        *ret = sqlite3_column_int64(stmt, 0);
    return sqlite3_finalize(stmt);
}

bool db_moved(sqlite3 *db)
{
    int moved = 0;

    return sqlite3_file_control(db, "main", SQLITE_FCNTL_HAS_MOVED, &moved) == SQLITE_OK && moved;
}

void db_closep(sqlite3 **db)
{
    sqlite3_close(*db);
    *db = NULL;
}

int db_fault(struct err *err, const char *path, int code, const char *words)
{
    static const struct { int code, number; const char *remedy; } faults[] = {
        {SQLITE_FULL,     ENOSPC,  "make room on its file system"},
        {SQLITE_READONLY, EROFS,   "make the file and its directory writable for this user"},
        {SQLITE_CANTOPEN, EACCES,  "make the file and its directory writable for this user"},
        {SQLITE_PERM,     EACCES,  "make the file and its directory writable for this user"},
        {SQLITE_BUSY,     EBUSY,   "close the program that keeps it locked"},
        {SQLITE_NOTADB,   EBADMSG, "this is not an audit database: set another [store] path, or move the file away"},
        {SQLITE_CORRUPT,  EBADMSG, "it is damaged: move it away, keep it for recovery, and start again"},
        {SQLITE_NOMEM,    ENOMEM,  "free some memory"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(faults); i++)
        if ((code & 0xff) == faults[i].code)
            return err_set(err, -faults[i].number, "%s: %s; %s", path, words, faults[i].remedy);
    return err_set(err, -EIO, "%s: %s; check the disk", path, words);
}

/* Only a database that is empty or ours, and not from a later tern, is touched. */
static int check_version(sqlite3 *db, const char *path, int64_t *ret_version, struct err *err)
{
    int64_t application = 0, version = 0, tables = 0;
    int code = db_read_int(db, "PRAGMA application_id", &application);

    if (code == SQLITE_OK)
        code = db_read_int(db, "PRAGMA user_version", &version);
    if (code == SQLITE_OK)
        code = db_read_int(db, "SELECT count(*) FROM sqlite_schema", &tables);
    if (code != SQLITE_OK)
        return db_fault(err, path, code, sqlite3_errmsg(db));
    if (tables && application != APPLICATION_ID)
        return err_set(err, -EINVAL, "%s: a database of another program; set another [store] path", path);
    if (version < 0 || version > (int64_t)ARRAY_SIZE(migrations))
        return err_set(err, -ENOTSUP, "%s: written by a newer tern (schema %" PRId64 ", this one knows %zu); install "
                       "that tern again, or set another [store] path", path, version, ARRAY_SIZE(migrations));
    *ret_version = version;
    return 0;
}

static int migrate(sqlite3 *db, int64_t version)
{
    int code = SQLITE_OK;

    for (; code == SQLITE_OK && version < (int64_t)ARRAY_SIZE(migrations); version++) {
        char number[96];

        snprintf(number, sizeof(number), "PRAGMA application_id = %d; PRAGMA user_version = %" PRId64 "; COMMIT",
                 APPLICATION_ID, version + 1);
        code = db_exec(db, "BEGIN IMMEDIATE");
        if (code == SQLITE_OK)
            code = db_exec(db, migrations[version]);
        if (code == SQLITE_OK)
            code = db_exec(db, number);
    }
    return code;
}

/* Only full synchronisation makes a commit durable across a power cut. Sorting spills into memory, not into files. The
 * log may fill 12 MiB before it is moved into the database, so that few commits pay for that; it keeps its size, since
 * writing over it takes the disk half as long as making it longer. */
static int set_up(sqlite3 *db, const struct store_config *c, enum db_mode mode)
{
    int code = db_exec(db, "PRAGMA trusted_schema = OFF; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY");

    if (code != SQLITE_OK || mode == DB_READ)
        return code;
    code = db_exec(db, c->sync_normal ? "PRAGMA synchronous = NORMAL" : "PRAGMA synchronous = FULL");
    if (code == SQLITE_OK)
        code = db_exec(db, "PRAGMA journal_mode = WAL; PRAGMA journal_size_limit = 16777216;"
                       "PRAGMA wal_autocheckpoint = 3000; PRAGMA cache_size = -16384");
    return code;
}

int db_open(sqlite3 **ret, const struct store_config *c, enum db_mode mode, struct err *err)
{
    static const int flags[] = {
        [DB_CREATE] = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE,
        [DB_WRITE] = SQLITE_OPEN_READWRITE,
        [DB_READ] = SQLITE_OPEN_READONLY,
    };
    cleanup(db_closep) sqlite3 *db = NULL;
    int64_t version = 0;
    int code, r;

    code = sqlite3_open_v2(c->path, &db, flags[mode] | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, NULL);
    if (code != SQLITE_OK)
        return db_fault(err, c->path, code, sqlite3_errstr(code));
    sqlite3_busy_timeout(db, c->busy_timeout_msec ? (int)MIN(c->busy_timeout_msec, 60000) : DEFAULT_BUSY_TIMEOUT_MSEC);

    r = check_version(db, c->path, &version, err);
    if (r < 0)
        return r;
    code = set_up(db, c, mode);
    if (code == SQLITE_OK && mode == DB_CREATE)
        code = migrate(db, version);
    if (code != SQLITE_OK)
        return db_fault(err, c->path, code, sqlite3_errmsg(db));

    *ret = TAKE(db);
    return 0;
}
