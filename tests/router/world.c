/* The made-up workers and clients of world.h. A worker answers one frame of each run in a turn of the loop, so that a
 * cancel or a death can come between any two. */
#include <openssl/evp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <event2/buffer.h>
#include "world.h"

#define USAGE "\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":4}"

/* ---- The auditor ------------------------------------------------------------------------------------------------- */
int64_t world_count(struct world *w, const char *sql, const char *id)
{
    sqlite3_stmt *s;
    int64_t n;

    cr_assert_eq(sqlite3_prepare_v2(w->db, sql, -1, &s, NULL), SQLITE_OK, "%s: %s", sql, sqlite3_errmsg(w->db));
    if (id)
        sqlite3_bind_text(s, 1, id, -1, SQLITE_STATIC);
    cr_assert_eq(sqlite3_step(s), SQLITE_ROW, "%s: %s", sql, sqlite3_errmsg(w->db));
    n = sqlite3_column_int64(s, 0);
    sqlite3_finalize(s);
    return n;
}

char *world_text(struct world *w, const char *sql, const char *id)
{
    const char *text = NULL;
    char *copy;
    sqlite3_stmt *s;

    cr_assert_eq(sqlite3_prepare_v2(w->db, sql, -1, &s, NULL), SQLITE_OK, "%s: %s", sql, sqlite3_errmsg(w->db));
    if (id)
        sqlite3_bind_text(s, 1, id, -1, SQLITE_STATIC);
    if (sqlite3_step(s) == SQLITE_ROW)
        text = (const char *)sqlite3_column_text(s, 0);
    copy = strdup(text ? text : "");
    sqlite3_finalize(s);
    return copy;
}

/* A body with this digest may leave: its rows are durable, its label may leave, and the decision said cloud. */
static void audit_body(struct world *w, const char *hex, size_t bytes)
{
    char *sql = sqlite3_mprintf(
        "SELECT count(*) FROM egress e JOIN request r ON r.id = e.request_id WHERE lower(hex(e.body_digest)) = '%q'"
        " AND e.bytes = %lld AND e.label = r.label AND r.label IN ('public', 'internal')"
        " AND 'cloud' = (SELECT route FROM decision d WHERE d.request_id = r.id ORDER BY seq DESC LIMIT 1)",
        hex, (long long)bytes);

    cr_assert_gt(world_count(w, sql, NULL), 0, "a body left whose rows are not in the database");
    sqlite3_free(sql);
}

uint64_t world_random(struct world *w, uint64_t below)
{
    w->seed ^= w->seed << 13;
    w->seed ^= w->seed >> 7;
    w->seed ^= w->seed << 17;
    return w->seed % below;
}

/* ---- A worker ---------------------------------------------------------------------------------------------------- */
static void fake_send(struct fake *f, uint32_t type, uint64_t id, const void *data, size_t len)
{
    uint8_t header[FRAME_HEADER_BYTES];

    frame_header(header, type, id, (uint32_t)len);
    bufferevent_write(f->bev, header, sizeof(header));
    bufferevent_write(f->bev, data, len);
}

static void fake_send_text(struct fake *f, uint32_t type, uint64_t id, const char *text)
{
    fake_send(f, type, id, text, strlen(text));
}

static void fake_close(struct fake *f)
{
    if (!f->bev)
        return;
    bufferevent_free(f->bev);
    f->bev = NULL;
    frame_reader_done(&f->in);
    event_del(&f->tick);
    f->n_runs = 0;
}

static void fake_die(struct fake *f)
{
    bufferevent_flush(f->bev, EV_WRITE, BEV_FLUSH);
    /* What was said before goes out first, as it would from a process. */
    struct evbuffer *out = bufferevent_get_output(f->bev);

    evbuffer_unfreeze(out, 1);
    evbuffer_write(out, bufferevent_getfd(f->bev));
    fake_close(f);
}

static void fake_tick(struct fake *f)
{
    event_add(&f->tick, &(struct timeval) {0});
}

static struct fake_run *run_add(struct fake *f, uint64_t id)
{
    unsigned n = 0;

    for (unsigned i = 0; i < f->n_runs; i++)
        if (!f->runs[i].over)
            f->runs[n++] = f->runs[i];
    f->n_runs = n;
    cr_assert_lt(n, ARRAY_SIZE(f->runs));
    f->runs[n] = (struct fake_run) {.id = id};
    f->n_runs++;
    f->n_starts++;
    fake_tick(f);
    return &f->runs[n];
}

static struct fake_run *run_find(struct fake *f, uint64_t id)
{
    for (unsigned i = 0; i < f->n_runs; i++)
        if (f->runs[i].id == id && !f->runs[i].over)
            return &f->runs[i];
    return NULL;
}

/* ---- The engine -------------------------------------------------------------------------------------------------- */
static void engine_end(struct fake *f, struct fake_run *run, enum engine_finish finish)
{
    struct engine_end end = {.finish = finish, .n_prompt = 7, .n_tokens = run->step, .decode_usec = 1000};

    fake_send(f, ENGINE_END, run->id, &end, sizeof(end));
    run->over = true;
}

static void engine_token(struct fake *f, struct fake_run *run)
{
    cleanup(buf_done) struct buf b = {.max = 4096};
    const struct engine_play *p = &run->engine;
    bool last = run->step + 1 == p->n_tokens;
    float logprob = (float)(last && p->last_logprob ? p->last_logprob : p->logprob);
    struct engine_token t = {.id = 1, .logprob = logprob, .margin = -1 / logprob, .entropy = -logprob, .piece = "l",
                             .piece_len = 1, .text = "l", .text_len = 1, .n_top = 1};

    if (p->call)
        t.channel = run->step ? ANSWER_TOOL_ARGUMENTS : ANSWER_TOOL_NAME;

    t.top[0] = (struct engine_alternative) {.id = 1, .logprob = t.logprob, .piece = "\xf0\x9f", .piece_len = 2};
    cr_assert_eq(engine_token_encode(&b, &t), 0);
    fake_send(f, ENGINE_TOKEN, run->id, b.data, b.len);
    run->step++;
}

/* Returns false when the worker died. */
static bool engine_step(struct fake *f, struct fake_run *run)
{
    const struct engine_play *p = &run->engine;

    if (p->die_at && run->step + 1 >= p->die_at) {
        fake_die(f);
        return false;
    }
    if (p->refuse) {
        char text[128];

        snprintf(text, sizeof(text), "{\"code\":\"%s\",\"message\":\"the engine says no\"}", p->refuse);
        fake_send_text(f, ENGINE_REFUSED, run->id, text);
        run->over = true;
    } else if (p->stall_at && run->step + 1 >= p->stall_at) {
        return true;
    } else if (p->error_at && run->step + 1 >= p->error_at) {
        engine_end(f, run, FINISH_ERROR);
    } else if (run->step == p->n_tokens) {
        engine_end(f, run, p->call ? FINISH_TOOL_CALLS : FINISH_STOP);
    } else {
        if (run->step == 0)
            fake_send(f, ENGINE_PROMPT, run->id, &(struct engine_prompt) {.n_tokens = 7}, sizeof(struct engine_prompt));
        engine_token(f, run);
    }
    return true;
}

/* Two vectors of three numbers, four ids, a word; refused or spoilt when the play says so. */
static void engine_task(struct fake *f, const struct frame *frame)
{
    struct { struct engine_embedding head; float x[6]; } e = {{2, 3, 9, 0}, {1, 0, 0, 0, 1, 0}};
    static const int32_t ids[] = {1, 2, 3, 4};
    const char *refuse = f->world->engine_play.refuse;

    f->n_starts++;
    e.head.width += f->world->engine_play.error_at;
    if (refuse)
        fake_send_text(f, ENGINE_REFUSED, frame->id, "{\"code\":\"invalid_request\",\"message\":\"no\"}");
    else if (frame->type == ENGINE_EMBED)
        fake_send(f, ENGINE_EMBEDDING, frame->id, &e, sizeof(e));
    else if (frame->type == ENGINE_TOKENIZE)
        fake_send(f, ENGINE_TOKENS, frame->id, ids, sizeof(ids));
    else
        fake_send_text(f, ENGINE_TEXT, frame->id, "word");
}

static void engine_frame(struct fake *f, const struct frame *frame)
{
    struct world *w = f->world;
    struct fake_run *run;

    switch (frame->type) {
    case ENGINE_START:
        if (w->choose)
            w->choose(w);
        run_add(f, frame->id)->engine = w->engine_play;
        break;
    case ENGINE_EMBED:
    case ENGINE_TOKENIZE:
    case ENGINE_DETOKENIZE:
        engine_task(f, frame);
        break;
    case ENGINE_CANCEL:
        f->n_cancels++;
        run = run_find(f, frame->id);
        if (run)
            engine_end(f, run, FINISH_CANCELLED);
        break;
    case ENGINE_PING:
        fake_send(f, ENGINE_PONG, frame->id, NULL, 0);
        break;
    }
}

/* ---- Egress ------------------------------------------------------------------------------------------------------ */
static void cloud_end(struct fake *f, struct fake_run *run, const char *result, const char *error, int status,
                      int retry_after)
{
    cleanup(json_decrefp) json_t *j = json_pack("{s:s,s:s*,s:i,s:i}", "result", result, "error", error, "status",
                                                status, "retry_after_sec", retry_after);
    cleanup(freep) char *text = json_dumps(j, JSON_COMPACT);

    fake_send_text(f, EGRESS_END, run->id, text);
    run->over = true;
}

static void cloud_whole(struct fake *f, struct fake_run *run)
{
    fake_send_text(f, EGRESS_EVENT, run->id,
                   "{\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"cccc\"},"
                   "\"finish_reason\":\"stop\"}]," USAGE "}");
    cloud_end(f, run, "ok", NULL, 200, 0);
}

static void cloud_finish(struct fake *f, struct fake_run *run)
{
    fake_send_text(f, EGRESS_EVENT, run->id, "{\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}");
    if (!run->cloud.no_usage)
        fake_send_text(f, EGRESS_EVENT, run->id, "{\"choices\":[]," USAGE "}");
    fake_send_text(f, EGRESS_EVENT, run->id, "[DONE]");
    cloud_end(f, run, "ok", NULL, 200, 0);
}

static bool cloud_step(struct fake *f, struct fake_run *run)
{
    const struct cloud_play *p = &run->cloud;

    if (p->die_at && run->step + 1 >= p->die_at) {
        fake_die(f);
        return false;
    }
    if (p->result) {
        cloud_end(f, run, p->result, p->error, p->status, p->retry_after_sec);
        return true;
    }
    if (p->stall_at && run->step + 1 >= p->stall_at)
        return true;
    if (run->step == 0)
        fake_send(f, EGRESS_HEAD, run->id, &(uint32_t) {200}, 4);
    if (p->cut_at && run->step + 1 >= p->cut_at) {
        cloud_end(f, run, "failed", EGRESS_ERR_CUT, 200, 0);
    } else if (p->error_event_at && run->step + 1 >= p->error_event_at) {
        fake_send_text(f, EGRESS_EVENT, run->id, "{\"error\":{\"message\":\"secret words of the upstream\"}}");
        p = NULL;
    } else if (p->garbage_at && run->step + 1 >= p->garbage_at) {
        fake_send_text(f, EGRESS_EVENT, run->id, "{\"choices\":[{\"delta\":{\"content\":5}}]}");
    } else if (p->empty) {
        cloud_end(f, run, "ok", NULL, 200, 0);
    } else if (p->whole) {
        cloud_whole(f, run);
    } else if (p->said && !p->said[run->step]) {
        fake_send_text(f, EGRESS_EVENT, run->id, "[DONE]");
        cloud_end(f, run, "ok", NULL, 200, 0);
    } else if (p->said) {
        fake_send_text(f, EGRESS_EVENT, run->id, p->said[run->step]);
    } else if (run->step == p->n_chunks) {
        cloud_finish(f, run);
    } else {
        fake_send_text(f, EGRESS_EVENT, run->id,
                       "{\"choices\":[{\"index\":0,\"delta\":{\"content\":\"c\"},\"finish_reason\":null}]}");
    }
    run->step++;
    return true;
}

static void cloud_start(struct fake *f, const struct frame *frame)
{
    struct world *w = f->world;
    cleanup(json_decrefp) json_t *order = NULL;
    const char *endpoint, *label, *digest;
    uint8_t md[32];
    char hex[65];
    uint32_t n;

    cr_assert_gt(frame->len, 4);
    memcpy(&n, frame->data, 4);
    cr_assert_leq(n, frame->len - 4);
    order = json_parse(frame->data + 4, n, NULL);
    cr_assert_eq(json_unpack(order, "{s:s,s:s,s:s,s:I}", "endpoint", &endpoint, "label", &label, "body_sha256", &digest,
                             "deadline_msec", &(json_int_t) {0}), 0);
    EVP_Digest(frame->data + 4 + n, frame->len - 4 - n, md, NULL, EVP_sha256(), NULL);
    for (int i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", md[i]);
    cr_assert_str_eq(hex, digest);
    cr_assert(strcmp(label, "public") == 0 || strcmp(label, "internal") == 0, "%s was sent", label);
    audit_body(w, hex, frame->len - 4 - n);

    json_decref(w->last_body);
    w->last_body = json_parse(frame->data + 4 + n, frame->len - 4 - n, NULL);
    cr_assert(w->last_body);
    if (w->choose)
        w->choose(w);
    run_add(f, frame->id)->cloud = w->cloud_play;
}

static void cloud_frame(struct fake *f, const struct frame *frame)
{
    struct fake_run *run;

    switch (frame->type) {
    case EGRESS_START:
        cloud_start(f, frame);
        break;
    case EGRESS_CANCEL:
        f->n_cancels++;
        run = run_find(f, frame->id);
        if (run)
            cloud_end(f, run, "cancelled", NULL, 0, 0);
        break;
    case EGRESS_PAUSE:
        f->n_pauses++;
        break;
    case EGRESS_RESUME:
        f->n_resumes++;
        break;
    case EGRESS_RELOAD:
        f->n_reloads++;
        fake_send_text(f, EGRESS_READY, 0, "{\"endpoints\":[]}");
        break;
    case EGRESS_PING:
        fake_send(f, EGRESS_PONG, frame->id, NULL, 0);
        break;
    }
}

/* ---- Workers' lives ---------------------------------------------------------------------------------------------- */
static void on_tick(evutil_socket_t fd, short what, void *arg)
{
    struct fake *f = arg;
    bool engine = f == &f->world->engine, busy = false;

    for (unsigned i = 0; i < f->n_runs; i++) {
        if (f->runs[i].over)
            continue;
        if (!(engine ? engine_step : cloud_step)(f, &f->runs[i]))
            return;
        busy |= !f->runs[i].over;
    }
    if (busy)
        event_add(&f->tick, &(struct timeval) {.tv_usec = 100});
}

static void on_readable(struct bufferevent *bev, void *arg)
{
    struct fake *f = arg;
    char chunk[65536];
    struct frame frame;
    size_t n;

    while ((n = bufferevent_read(bev, chunk, sizeof(chunk))) > 0) {
        cr_assert_eq(frame_reader_push(&f->in, chunk, n), 0);
        while (frame_reader_next(&f->in, &frame) == 1)
            (f == &f->world->engine ? engine_frame : cloud_frame)(f, &frame);
    }
}

static void on_hangup(struct bufferevent *bev, short what, void *arg)
{
    fake_close(arg);
}

static void fake_birth(evutil_socket_t fd, short what, void *arg)
{
    struct fake *f = arg;
    struct world *w = f->world;
    bool engine = f == &w->engine;
    int pair[2];

    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    evutil_make_socket_nonblocking(pair[1]);
    f->bev = bufferevent_socket_new(w->base, pair[1], BEV_OPT_CLOSE_ON_FREE);
    frame_reader_init(&f->in);
    bufferevent_setcb(f->bev, on_readable, NULL, on_hangup, f);
    bufferevent_enable(f->bev, EV_READ | EV_WRITE);
    cr_assert_eq((engine ? router_attach_engine : router_attach_egress)(w->router, pair[0]), 0);
    if (f->mute)
        return;
    if (engine)
        fake_send_text(f, ENGINE_READY, 0,
                       "{\"model\":\"tern-nano\",\"digest\":\"sha256:00\",\"context\":64,\"sessions\":8}");
    else
        fake_send_text(f, EGRESS_READY, 0, "{\"endpoints\":[]}");
}

static void fake_init(struct fake *f, struct world *w)
{
    f->world = w;
    f->birth_msec = 5;
    evtimer_assign(&f->tick, w->base, on_tick, f);
    evtimer_assign(&f->birth, w->base, fake_birth, f);
}

static void on_worker_down(void *arg, bool engine)
{
    struct world *w = arg;
    struct fake *f = engine ? &w->engine : &w->egress;

    w->n_downs[engine]++;
    event_add(&f->birth, &(struct timeval) {.tv_usec = (suseconds_t)f->birth_msec * 1000});
}

/* ---- The world --------------------------------------------------------------------------------------------------- */
static void on_mail(evutil_socket_t fd, short what, void *arg)
{
    mailbox_run(arg);
}

static void config_default(struct router_config *c)
{
    struct policy_endpoint *e = c->policy.endpoints;

    c->policy.hold_tokens = 4;
    c->policy.default_label = LABEL_PUBLIC;
    c->policy.n_endpoints = c->cloud.n_endpoints = 1;
    snprintf(e->name, sizeof(e->name), "acme");
    snprintf(e->model, sizeof(e->model), "acme-large");
    snprintf(e->region, sizeof(e->region), "eu");
    e->labels = 1u << LABEL_PUBLIC | 1u << LABEL_INTERNAL;
    e->price_in = 150000;
    e->price_out = 600000;
    c->cloud.endpoints[0].policy = *e;
    cr_assert(detector_of_policy(&c->detector, &c->policy, NULL) == 0);
    snprintf(c->cloud.endpoints[0].url, sizeof(c->cloud.endpoints[0].url), "https://api.acme.test/v1");
}

void world_init(struct world *w, void (*configure)(struct world *w))
{
    struct err err = {0};

    signal(SIGPIPE, SIG_IGN);                 /* as ternd does */
    *w = (struct world) {.max_requests = 64, .seed = 88172645463325252u};
    w->engine_play = (struct engine_play) {.n_tokens = 6, .logprob = SURE};
    w->cloud_play = (struct cloud_play) {.n_chunks = 4};
    snprintf(w->dir, sizeof(w->dir), "/tmp/tern-router-XXXXXX");
    cr_assert(mkdtemp(w->dir));
    snprintf(w->path, sizeof(w->path), "%s/audit.db", w->dir);
    w->base = event_base_new();
    w->config = router_config_new();
    config_default(w->config);
    fake_init(&w->engine, w);
    fake_init(&w->egress, w);
    if (configure)
        configure(w);
    policy_digest(w->config->policy_digest, &w->config->policy);

    cr_assert_eq(mailbox_init(&w->mailbox), 0);
    event_assign(&w->mail, w->base, w->mailbox.fd, EV_READ | EV_PERSIST, on_mail, &w->mailbox);
    event_add(&w->mail, NULL);
    cr_assert_eq(store_open(&w->store, &(struct store_config) {.path = w->path, .max_requests = w->max_requests,
                            .busy_timeout_msec = 1000}, &w->mailbox, &err), 0, "%s", err.msg);
    cr_assert_eq(sqlite3_open_v2(w->path, &w->db, SQLITE_OPEN_READONLY, NULL), SQLITE_OK);
    sqlite3_busy_timeout(w->db, 1000);
    cr_assert_eq(router_new(&w->router, w->base, w->store, w->config,
                            &(struct router_hooks) {.worker_down = on_worker_down, .arg = w}), 0);
    fake_birth(-1, 0, &w->engine);
    fake_birth(-1, 0, &w->egress);
}

void world_done(struct world *w)
{
    static const char *const names[] = {"", "-wal", "-shm", ".lock"};
    char name[128];

    WAIT_FOR(w, router_idle(w->router));
    cr_assert_eq(store_in_flight(w->store), 0);
    cr_assert_eq(w->router->local.line.n_waiting, 0);
    cr_assert(TAILQ_EMPTY(&w->router->cloud.calls));
    router_free(w->router);
    fake_close(&w->engine);
    fake_close(&w->egress);
    event_del(&w->engine.birth);
    event_del(&w->egress.birth);
    event_del(&w->mail);
    sqlite3_close(w->db);
    store_close(w->store);
    mailbox_done(&w->mailbox);
    cr_assert_eq(w->config->refs, 1, "%u requests keep the configuration", w->config->refs - 1);
    router_config_unref(w->config);
    json_decref(w->last_body);
    event_base_free(w->base);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        snprintf(name, sizeof(name), "%s%s", w->path, names[i]);
        unlink(name);
    }
    rmdir(w->dir);
}

void world_spin(struct world *w, unsigned msec)
{
    uint64_t until = clock_usec() + msec * USEC_PER_MSEC;

    while (clock_usec() < until) {
        event_base_loop(w->base, EVLOOP_NONBLOCK);
        usleep(200);
    }
}

/* ---- Clients ----------------------------------------------------------------------------------------------------- */
static void keep_meta(struct client *c, const struct request_meta *m)
{
    cr_assert_str_eq(m->id, c->id);
    c->route = m->route;
    c->degraded = m->degraded;
    snprintf(c->reason, sizeof(c->reason), "%s", m->reason);
    snprintf(c->model, sizeof(c->model), "%s", m->model);
}

static void check_alive(const struct client *c)
{
    cr_assert(c->request && !c->left && c->n_end + c->n_fail == 0, "a call after the end");
}

static void on_begin(void *arg, const struct request_meta *m)
{
    struct client *c = arg;

    check_alive(c);
    cr_assert_eq(c->n_begin++, 0);
    keep_meta(c, m);
}

/* What is released is in the database: the request and every decision of it. */
static void on_delta(void *arg, const struct request_delta *d)
{
    struct client *c = arg;
    struct request *q = c->request;

    check_alive(c);
    cr_assert_eq(c->n_begin, 1);
    c->n_delta++;
    if (q->place && !q->rows_lost) {
        cr_assert_eq(world_count(c->world, "SELECT count(*) FROM request WHERE id = ?", c->id), 1);
        cr_assert_eq(world_count(c->world, "SELECT count(*) FROM decision WHERE request_id = ?", c->id), q->n_decisions,
                     "a byte was released before the decision was durable");
    }
    if (d->channel == ANSWER_TOOL_NAME)
        buf_printf(&c->text, "[%.*s %s]", (int)d->text_len, d->text, strlen(d->call_id) == 29 ? "new" : d->call_id);
    else
        buf_append(&c->text, d->text, d->text_len);
    c->n_logprobs += json_array_size(d->logprobs);
    if (c->n_delta == c->pause_at)
        request_pause(q);
    if (c->n_delta == c->cancel_at) {
        c->left = true;
        c->request = NULL;
        request_cancel(q);
    }
}

static void on_end(void *arg, const struct request_meta *m, const struct request_result *r)
{
    struct client *c = arg;

    check_alive(c);
    cr_assert_eq(c->n_begin, 1);
    c->n_end++;
    keep_meta(c, m);
    c->result = *r;
    snprintf(c->finish, sizeof(c->finish), "%s", r->finish);
    c->result.finish = c->finish;
    if (r->n_vectors)
        memcpy(c->vectors, r->vectors, MIN(sizeof(c->vectors), r->n_vectors * r->width * sizeof(float)));
    c->request = NULL;
}

static void on_fail(void *arg, const struct request_meta *m, const struct request_error *e)
{
    struct client *c = arg;

    check_alive(c);
    c->n_fail++;
    keep_meta(c, m);
    c->http_status = e->http_status;
    c->retry_after_sec = e->retry_after_sec;
    snprintf(c->code, sizeof(c->code), "%s", e->code);
    snprintf(c->type, sizeof(c->type), "%s", e->type);
    snprintf(c->message, sizeof(c->message), "%s", e->message);
    c->request = NULL;
}

int client_start(struct client *c, struct world *w, const struct ask_for *a)
{
    static const struct request_sink sink = {on_begin, on_delta, on_end, on_fail};
    cleanup(json_decrefp) json_t *body = a->body ? json_loads(a->body, 0, NULL) : NULL;
    struct chat_request *chat = NULL;
    struct request_options o = {.dialect = "openai-chat", .key = "test", .peer = "127.0.0.1", .label = a->label,
                                .mode = a->mode, .deadline_usec = a->deadline_usec};
    struct request_error error = {0};
    int r;

    c->world = w;
    buf_init(&c->text, 1 << 20);
    if (body) {
        cr_assert_eq(chat_request_from_json(&chat, body, NULL), 0);
    } else if (a->task) {
        chat = chat_task_new(a->task, json_object());
        chat->model = a->model ? strdup(a->model) : NULL;
    } else {
        chat = chat_request_new();
        chat->messages = json_pack("[{s:s,s:s}]", "role", "user", "content", a->content ? a->content : "hello");
        chat->model = a->model ? strdup(a->model) : NULL;
        chat->stream = a->stream;
        chat->params.logprobs = a->logprobs;
        chat->params.top_k = 3;
    }
    r = request_start(&c->request, w->router, chat, &o, &sink, c, c->id, &error);
    cr_assert(id_valid(c->id));
    cr_assert_eq(c->n_begin + c->n_fail, 0, "the sink was called from inside request_start()");
    if (r == 0)
        return 0;
    chat_request_free(chat);
    c->http_status = error.http_status;
    c->retry_after_sec = error.retry_after_sec;
    snprintf(c->code, sizeof(c->code), "%s", error.code ? error.code : "");
    snprintf(c->message, sizeof(c->message), "%s", error.message ? error.message : "");
    return r;
}

void client_done(struct client *c)
{
    buf_done(&c->text);
}
