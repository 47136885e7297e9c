/* Records: one table a kind that says which member of struct store_record goes into which column. From it come the
 * copy that crosses to the writer, the INSERT, and the values bound. A new column is a row here and a migration. */
#include <string.h>
#include "base/buf.h"
#include "store/internal.h"

enum field_type {
    FIELD_TEXT,                    /* const char *; NULL stays NULL */
    FIELD_BOOL, FIELD_U32, FIELD_U64, FIELD_I64, FIELD_REAL,
    FIELD_INT_OR_NULL,             /* int; 0 means none */
    FIELD_U64_OR_NULL,
    FIELD_DIGEST,                  /* 32 bytes */
};

struct field {
    const char *column;
    enum field_type type;
    size_t offset;
};
#define FIELD_AS(kind, member, column, type) {column, FIELD_##type, offsetof(struct store_record, kind.member)}
#define FIELD(kind, member, type) FIELD_AS(kind, member, #member, type)

static const struct field request_fields[] = {
    FIELD(request, dialect, TEXT),
    FIELD(request, key, TEXT),
    FIELD(request, peer, TEXT),
    FIELD(request, mode, TEXT),
    FIELD(request, model_asked, TEXT),
    FIELD(request, label, TEXT),
    FIELD(request, label_source, TEXT),
    FIELD(request, policy_digest, TEXT),
    FIELD(request, model_digest, TEXT),
    FIELD(request, n_messages, U32),
    FIELD(request, content_bytes, U64),
    FIELD(request, prompt_digest, DIGEST),
    FIELD(request, stream, BOOL),
};

static const struct field decision_fields[] = {
    FIELD(decision, seq, U32),
    FIELD(decision, stage, TEXT),
    FIELD(decision, route, TEXT),
    FIELD(decision, endpoint, TEXT),
    FIELD(decision, model, TEXT),
    FIELD(decision, reason, TEXT),
    FIELD_AS(decision, features_json, "features", TEXT),
    FIELD_AS(decision, candidates_json, "candidates", TEXT),
    FIELD(decision, score, REAL),
    FIELD(decision, threshold, REAL),
    FIELD(decision, degraded, BOOL),
};

static const struct field attempt_fields[] = {
    FIELD(attempt, seq, U32),
    FIELD(attempt, tier, TEXT),
    FIELD(attempt, endpoint, TEXT),
    FIELD(attempt, model, TEXT),
    FIELD(attempt, result, TEXT),
    FIELD(attempt, error, TEXT),
    FIELD(attempt, http_status, INT_OR_NULL),
    FIELD(attempt, started_usec, U64),
    FIELD(attempt, first_byte_usec, U64_OR_NULL),
    FIELD(attempt, ended_usec, U64),
    FIELD(attempt, tokens_in, U32),
    FIELD(attempt, tokens_out, U32),
};

static const struct field egress_fields[] = {
    FIELD(egress, seq, U32),
    FIELD(egress, endpoint, TEXT),
    FIELD(egress, host, TEXT),
    FIELD(egress, region, TEXT),
    FIELD(egress, label, TEXT),
    FIELD(egress, bytes, U64),
    FIELD(egress, body_digest, DIGEST),
    FIELD(egress, redactions, U32),
};

static const struct field outcome_fields[] = {
    FIELD(outcome, outcome, TEXT),
    FIELD(outcome, route, TEXT),
    FIELD(outcome, endpoint, TEXT),
    FIELD(outcome, model, TEXT),
    FIELD(outcome, finish, TEXT),
    FIELD(outcome, error, TEXT),
    FIELD(outcome, http_status, INT_OR_NULL),
    FIELD(outcome, tokens_in, U32),
    FIELD(outcome, tokens_out, U32),
    FIELD(outcome, cost_microusd, I64),
    FIELD(outcome, first_token_usec, U64_OR_NULL),
    FIELD(outcome, latency_usec, U64),
    FIELD(outcome, confidence, REAL),
};

static const struct kind {
    const char *table, *id_column;
    const struct field *fields;
    size_t n_fields;
} kinds[STORE_N_KINDS] = {
    [STORE_REQUEST]  = {"request",  "id",         request_fields,  ARRAY_SIZE(request_fields)},
    [STORE_DECISION] = {"decision", "request_id", decision_fields, ARRAY_SIZE(decision_fields)},
    [STORE_ATTEMPT]  = {"attempt",  "request_id", attempt_fields,  ARRAY_SIZE(attempt_fields)},
    [STORE_EGRESS]   = {"egress",   "request_id", egress_fields,   ARRAY_SIZE(egress_fields)},
    [STORE_OUTCOME]  = {"outcome",  "request_id", outcome_fields,  ARRAY_SIZE(outcome_fields)},
};

static void entry_finish(struct job *j, bool deliver)
{
    struct entry *e = (struct entry *)j;

    if (deliver && e->done)
        e->done(e->arg, e->result);
    free(e);
}

struct entry *entry_new(const struct store_record *rec, store_done_fn *done, void *arg)
{
    const struct kind *k = &kinds[rec->kind];
    size_t n_bytes = 0;
    struct entry *e;
    char *to;

    for (size_t i = 0; i < k->n_fields; i++) {
        const char *const *s = (const void *)((const char *)rec + k->fields[i].offset);

        if (k->fields[i].type == FIELD_TEXT && *s)
            n_bytes += strlen(*s) + 1;
    }

    e = malloc(sizeof(*e) + n_bytes);
    if (!e)
        return NULL;
    *e = (struct entry) {.job.finish = entry_finish, .rec = *rec, .done = done, .arg = arg};
    e->rec.request_id[ID_BYTES - 1] = '\0';
    to = e->strings;
    for (size_t i = 0; i < k->n_fields; i++) {
        const char **s = (void *)((char *)&e->rec + k->fields[i].offset);

        if (k->fields[i].type == FIELD_TEXT && *s) {
            const char *from = *s;

            *s = to;
            to = stpcpy(to, from) + 1;
        }
    }
    return e;
}

int record_prepare(sqlite3 *db, enum store_kind kind, sqlite3_stmt **ret)
{
    const struct kind *k = &kinds[kind];
    cleanup(buf_done) struct buf sql;

    buf_init(&sql, 4096);
    if (buf_printf(&sql, "INSERT INTO %s (n, %s, time_usec", k->table, k->id_column) < 0)
        return SQLITE_NOMEM;
    for (size_t i = 0; i < k->n_fields; i++)
        if (buf_printf(&sql, ", %s", k->fields[i].column) < 0)
            return SQLITE_NOMEM;
    if (buf_puts(&sql, ") VALUES (?, ?, ?") < 0)
        return SQLITE_NOMEM;
    for (size_t i = 0; i < k->n_fields; i++)
        if (buf_puts(&sql, ", ?") < 0)
            return SQLITE_NOMEM;
    if (buf_puts(&sql, ")") < 0)
        return SQLITE_NOMEM;
    return sqlite3_prepare_v3(db, (const char *)sql.data, -1, SQLITE_PREPARE_PERSISTENT, ret, NULL);
}

static int bind_u64(sqlite3_stmt *stmt, int i, uint64_t v)
{
    return sqlite3_bind_int64(stmt, i, (int64_t)MIN(v, (uint64_t)INT64_MAX));
}

/* SQLite stores a NAN as NULL, and so does binding a NULL string. The record outlives the step. */
static int bind_field(sqlite3_stmt *stmt, int i, enum field_type type, const void *p)
{
    switch (type) {
    case FIELD_TEXT:        return sqlite3_bind_text(stmt, i, *(const char *const *)p, -1, SQLITE_STATIC);
    case FIELD_BOOL:        return sqlite3_bind_int(stmt, i, *(const bool *)p);
    case FIELD_U32:         return sqlite3_bind_int64(stmt, i, *(const uint32_t *)p);
    case FIELD_U64:         return bind_u64(stmt, i, *(const uint64_t *)p);
    case FIELD_I64:         return sqlite3_bind_int64(stmt, i, *(const int64_t *)p);
    case FIELD_REAL:        return sqlite3_bind_double(stmt, i, *(const double *)p);
    case FIELD_INT_OR_NULL: return *(const int *)p ? sqlite3_bind_int(stmt, i, *(const int *)p)
                                                   : sqlite3_bind_null(stmt, i);
    case FIELD_U64_OR_NULL: return *(const uint64_t *)p ? bind_u64(stmt, i, *(const uint64_t *)p)
                                                        : sqlite3_bind_null(stmt, i);
    case FIELD_DIGEST:      return sqlite3_bind_blob(stmt, i, p, 32, SQLITE_STATIC);
    }
    return SQLITE_MISUSE;
}

int record_insert(sqlite3_stmt *insert, const struct store_record *rec, int64_t n)
{
    const struct kind *k = &kinds[rec->kind];
    int code = sqlite3_bind_int64(insert, 1, n);

    if (code == SQLITE_OK)
        code = sqlite3_bind_text(insert, 2, rec->request_id, -1, SQLITE_STATIC);
    if (code == SQLITE_OK)
        code = bind_u64(insert, 3, rec->time_usec);
    for (size_t i = 0; code == SQLITE_OK && i < k->n_fields; i++)
        code = bind_field(insert, (int)i + 4, k->fields[i].type, (const char *)rec + k->fields[i].offset);
    if (code == SQLITE_OK)
        code = sqlite3_step(insert);
    sqlite3_reset(insert);
    sqlite3_clear_bindings(insert);
    return code;
}
