/* A request's life, each way it can go, between made-up workers; and thousands of random lives at the end. */
#include <stdio.h>
#include <string.h>
#include "world.h"

#define OUTCOME "SELECT outcome FROM outcome WHERE request_id = ?"
#define ATTEMPTS "SELECT group_concat(tier || ':' || result || coalesce(':' || error, ''), ' ') FROM" \
                 " (SELECT * FROM attempt WHERE request_id = ? ORDER BY seq)"
#define STAGES "SELECT group_concat(stage || ':' || route, ' ') FROM" \
               " (SELECT * FROM decision WHERE request_id = ? ORDER BY seq)"

static struct world w;
static struct client c;

static void expect_text(const char *sql, const char *expected)
{
    cleanup(freep) char *text = world_text(&w, sql, c.id);

    cr_expect_str_eq(text, expected, "%s", text);
}

/* Rows of a request that is over may still be on their way. */
static void settle(void)
{
    WAIT_FOR(&w, router_idle(w.router));
}

static void start(const struct ask_for *a)
{
    client_done(&c);
    c = (struct client) {.cancel_at = c.cancel_at, .pause_at = c.pause_at};
    cr_assert_eq(client_start(&c, &w, a), 0, "%s", c.message);
}

static void ask(const struct ask_for *a)
{
    start(a);
    WAIT_OVER(&w, &c);
    settle();
}

static void end(void)
{
    client_done(&c);
    world_done(&w);
}

static const struct ask_for stream = {.stream = true}, whole = {0};

/* ---- Local ------------------------------------------------------------------------------------------------------- */
Test(local, answer_whole)
{
    world_init(&w, NULL);
    ask(&(struct ask_for) {.logprobs = true});
    cr_expect_eq(c.n_end, 1);
    cr_expect_eq(c.n_delta, 1);
    cr_expect_str_eq((char *)c.text.data, "llllll");
    cr_expect_eq(c.n_logprobs, 6);
    cr_expect_eq(c.route, ROUTE_LOCAL);
    cr_expect_str_eq(c.reason, "confident");
    cr_expect_str_eq(c.model, "tern-nano");
    cr_expect_str_eq(c.finish, "stop");
    cr_expect_eq(c.result.tokens_in, 7);
    cr_expect_eq(c.result.tokens_out, 6);
    cr_expect(c.result.confidence > 0.6);
    expect_text(STAGES, "before:local stream:local end:local");
    expect_text(ATTEMPTS, "local:ok");
    expect_text(OUTCOME, "ok");
    end();
}

Test(local, answer_streamed)
{
    world_init(&w, NULL);
    w.engine_play.n_tokens = 40;
    ask(&stream);
    cr_expect_eq(c.text.len, 40);
    cr_expect_gt(c.n_delta, 5, "%u deltas", c.n_delta);
    expect_text(STAGES, "before:local stream:local");
    expect_text(OUTCOME, "ok");
    end();
}

Test(local, short_stream_is_judged_at_its_end)
{
    world_init(&w, NULL);
    w.engine_play.n_tokens = 2;
    ask(&stream);
    expect_text(STAGES, "before:local end:local");
    cr_expect_eq(c.text.len, 2);
    end();
}

/* Durable first: while nobody is told that rows are, nothing is released, however much was generated. */
Test(local, nothing_is_released_before_rows_are_durable)
{
    world_init(&w, NULL);
    world_spin(&w, 20);
    event_del(&w.mail);
    start(&(struct ask_for) {.stream = true, .label = "private"});
    world_spin(&w, 100);
    cr_expect_eq(w.engine.n_starts, 1, "generation does not wait");
    cr_expect_eq(c.n_begin + c.n_delta, 0);
    event_add(&w.mail, NULL);
    WAIT_OVER(&w, &c);
    cr_expect_eq(c.text.len, 6);
    end();
}

/* What is no answer: the local model alone does it, and it is on record like all else. */
Test(local, tasks)
{
    static const struct { enum chat_task task; const char *model, *mode; } asked[] = {
        {CHAT_EMBED, "local", NULL}, {CHAT_TOKENIZE, NULL, NULL}, {CHAT_DETOKENIZE, "auto", "cloud-only"},
    };
    struct client bad[3] = {0};

    world_init(&w, NULL);
    world_spin(&w, 20);
    for (size_t i = 0; i < ARRAY_SIZE(asked); i++) {
        struct client one = {0};

        cr_assert_eq(client_start(&one, &w, &(struct ask_for) {.task = asked[i].task, .model = asked[i].model,
                                                               .mode = asked[i].mode, .label = "public"}), 0);
        WAIT_OVER(&w, &one);
        cr_expect_eq(one.n_end, 1, "task %zu: %s", i, one.message);
        cr_expect_eq(one.route, ROUTE_LOCAL);
        WAIT_FOR(&w, world_count(&w, "SELECT count(*) FROM decisions_v WHERE id = ? AND outcome = 'ok'", one.id) == 1);
        if (asked[i].task == CHAT_EMBED)
            cr_expect(one.result.n_vectors == 2 && one.result.width == 3 && one.result.tokens_in == 9 &&
                      one.vectors[0] == 1 && one.vectors[4] == 1);
        cr_expect(asked[i].task != CHAT_TOKENIZE || (one.result.tokens && one.result.tokens_in == 4));
        cr_expect(asked[i].task != CHAT_DETOKENIZE || (one.text.len == 4 && memcmp(one.text.data, "word", 4) == 0));
        client_done(&one);
    }
    cr_expect_eq(w.egress.n_starts, 0);

    cr_expect_eq(client_start(&bad[0], &w, &(struct ask_for) {.task = CHAT_EMBED, .model = "cloud"}), 1);
    cr_expect_eq(bad[0].http_status, 400);
    client_done(&bad[0]);
    w.engine_play.refuse = "invalid_request";
    cr_assert_eq(client_start(&bad[1], &w, &(struct ask_for) {.task = CHAT_EMBED}), 0);
    WAIT_OVER(&w, &bad[1]);
    cr_expect(bad[1].n_fail == 1 && bad[1].http_status == 400, "%d %s", bad[1].http_status, bad[1].message);
    client_done(&bad[1]);

    /* More numbers told than are there: the engine is hung up on. */
    w.engine_play = (struct engine_play) {.error_at = 1};
    cr_assert_eq(client_start(&bad[2], &w, &(struct ask_for) {.task = CHAT_EMBED}), 0);
    WAIT_OVER(&w, &bad[2]);
    cr_expect_eq(bad[2].n_fail, 1);
    cr_expect_geq(w.n_downs[0] + w.n_downs[1], 1);
    client_done(&bad[2]);
    end();
}

Test(local, line_is_in_order_and_bounded)
{
    struct client all[6] = {0};

    world_init(&w, NULL);
    w.config->queue = 3;
    w.config->sessions = 2;
    w.engine_play.stall_at = 1;
    world_spin(&w, 20);
    for (int i = 0; i < 6; i++)
        cr_assert_eq(client_start(&all[i], &w, &(struct ask_for) {.label = "private"}), 0);
    WAIT_OVER(&w, &all[5]);
    cr_expect_str_eq(all[5].code, "engine_busy");
    cr_expect_eq(all[5].http_status, 503);
    cr_expect(all[5].retry_after_sec >= 1 && all[5].retry_after_sec <= 60);
    WAIT_FOR(&w, w.engine.n_starts == 2);
    cr_expect_eq(w.router->local.line.n_waiting, 3);

    /* One leaves while it waits, one while it runs: the next in line moves up when the session is free. */
    request_cancel(all[2].request);
    all[2].request = NULL;
    w.engine_play.stall_at = 0;
    request_cancel(all[0].request);
    all[0].request = NULL;
    WAIT_OVER(&w, &all[3]);
    WAIT_OVER(&w, &all[4]);
    cr_expect_eq(w.engine.n_cancels, 1);
    request_cancel(all[1].request);
    all[1].request = NULL;
    settle();
    for (int i = 0; i < 6; i++)
        client_done(&all[i]);
    end();
}

Test(local, engine_busy_goes_to_the_cloud_where_that_is_allowed)
{
    struct client other = {0};

    world_init(&w, NULL);
    w.config->queue = 0;
    w.config->sessions = 1;
    w.engine_play.stall_at = 1;
    world_spin(&w, 20);
    cr_assert_eq(client_start(&other, &w, &(struct ask_for) {.label = "private"}), 0);
    world_spin(&w, 20);
    start(&stream);
    WAIT_OVER(&w, &c);
    request_cancel(other.request);
    settle();
    cr_expect_eq(c.route, ROUTE_CLOUD);
    expect_text(STAGES, "before:local local-failed:cloud");
    expect_text(ATTEMPTS, "cloud:ok");
    client_done(&other);
    end();
}

Test(local, too_long_for_the_context)
{
    world_init(&w, NULL);
    w.engine_play.refuse = ENGINE_E_CONTEXT;
    ask(&(struct ask_for) {.label = "private"});
    cr_expect_eq(c.http_status, 400);
    cr_expect_str_eq(c.code, "context_length_exceeded");
    cr_expect_str_eq(c.message, "the engine says no");
    expect_text(OUTCOME, "refused");
    ask(&stream);
    cr_expect_eq(c.route, ROUTE_CLOUD);
    cr_expect_str_eq(c.reason, "does-not-fit");
    end();
}

/* ---- The engine's deaths ----------------------------------------------------------------------------------------- */
static unsigned deaths;
static void die_first(struct world *world)
{
    world->engine_play.die_at = world->engine.n_starts < deaths ? 3 : 0;
}

Test(engine, death_before_a_byte_is_mended_by_the_next_engine)
{
    world_init(&w, NULL);
    w.choose = die_first;
    deaths = 1;
    ask(&(struct ask_for) {.label = "private"});
    cr_expect_eq(c.n_end, 1);
    cr_expect_eq(c.text.len, 6);
    cr_expect_eq(w.n_downs[true], 1);
    cr_expect_eq(router_metrics(w.router)->engine_restarts, 1);
    expect_text(STAGES, "before:local local-failed:none before:local");
    expect_text(ATTEMPTS, "local:failed:engine-lost local:ok");
    end();
}

Test(engine, a_second_death_ends_it)
{
    world_init(&w, NULL);
    w.choose = die_first;
    deaths = 9;
    ask(&(struct ask_for) {.label = "private"});
    cr_expect_eq(c.http_status, 500);
    cr_expect_str_eq(c.code, "engine_lost");
    cr_expect_eq(w.n_downs[true], 2);
    expect_text(OUTCOME, "error");
    end();
}

Test(engine, death_before_a_byte_goes_to_the_cloud_where_that_is_allowed)
{
    world_init(&w, NULL);
    w.choose = die_first;
    deaths = 1;
    ask(&stream);
    cr_expect_eq(c.route, ROUTE_CLOUD);
    cr_expect_str_eq(c.reason, "local-failed");
    expect_text(ATTEMPTS, "local:failed:engine-lost cloud:ok");
    end();
}

Test(engine, death_after_a_byte_is_an_error_event)
{
    world_init(&w, NULL);
    w.engine_play = (struct engine_play) {.n_tokens = 500, .logprob = SURE, .die_at = 400};
    ask(&stream);
    cr_expect_eq(c.n_begin, 1);
    cr_expect_gt(c.text.len, 0);
    cr_expect_eq(c.n_end, 0);
    cr_expect_eq(c.n_fail, 1);
    cr_expect_str_eq(c.code, "engine_lost");
    expect_text(OUTCOME, "truncated");
    w.engine_play.die_at = 0;
    ask(&stream);
    cr_expect_eq(c.n_end, 1, "the next one is served");
    end();
}

static void engine_late(struct world *world)
{
    world->engine.mute = true;
}

Test(engine, requests_wait_for_one_that_is_starting)
{
    world_init(&w, engine_late);
    start(&(struct ask_for) {.label = "private", .model = "tern-nano"});
    world_spin(&w, 50);
    cr_expect_eq(c.n_end + c.n_fail, 0);
    w.engine.mute = false;
    shutdown(bufferevent_getfd(w.engine.bev), SHUT_RDWR);      /* it dies before it was ready, and the next one is */
    WAIT_OVER(&w, &c);
    cr_expect_eq(c.n_end, 1);
    expect_text("SELECT reason FROM decision WHERE request_id = ?", "model-asked-local");
    end();
}

Test(engine, one_that_cannot_run_is_down_at_once)
{
    uint8_t frame[FRAME_HEADER_BYTES];

    world_init(&w, engine_late);
    start(&(struct ask_for) {.label = "private"});
    world_spin(&w, 20);
    frame_header(frame, ENGINE_FAILED, 0, 8);
    bufferevent_write(w.engine.bev, frame, sizeof(frame));
    bufferevent_write(w.engine.bev, "no model", 8);
    WAIT_OVER(&w, &c);
    cr_expect_eq(c.http_status, 503);
    cr_expect_str_eq(c.code, "engine_down");
    cr_expect_str_eq(router_engine_failure(w.router), "no model");
    ask(&stream);
    cr_expect_eq(c.route, ROUTE_CLOUD);
    cr_expect_str_eq(c.reason, "local-down");
    end();
}

Test(engine, one_that_does_not_come_is_waited_for_ten_seconds)
{
    uint64_t began = clock_usec(), waited;

    world_init(&w, engine_late);
    ask(&(struct ask_for) {.label = "private"});
    waited = clock_usec() - began;
    cr_expect(waited > 9 * USEC_PER_SEC && waited < 15 * USEC_PER_SEC);
    cr_expect_str_eq(c.code, "engine_down");
    ask(&(struct ask_for) {.label = "private"});
    cr_expect_lt(clock_usec() - began, waited + 3 * USEC_PER_SEC, "later ones do not wait");
    cr_expect_eq(c.http_status, 503);
    end();
}

Test(engine, nonsense_is_hung_up_on)
{
    world_init(&w, NULL);
    world_spin(&w, 20);
    bufferevent_write(w.engine.bev, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 16);
    WAIT_FOR(&w, w.n_downs[true] == 1);
    ask(&stream);
    cr_expect_eq(c.n_end, 1);
    end();
}

/* ---- Cloud ------------------------------------------------------------------------------------------------------- */
Test(cloud, unsure_in_the_window)
{
    const char *sql = "SELECT bytes FROM egress WHERE request_id = ?";

    world_init(&w, NULL);
    w.engine_play = (struct engine_play) {.n_tokens = 500, .logprob = UNSURE};
    ask(&stream);
    cr_expect_eq(c.route, ROUTE_CLOUD);
    cr_expect_str_eq(c.reason, "unsure-stream");
    cr_expect_str_eq(c.model, "acme-large");
    cr_expect_str_eq((char *)c.text.data, "cccc");
    cr_expect_gt(c.n_delta, 1);
    cr_expect_eq(c.result.tokens_in, 10);
    cr_expect_eq(c.result.cost_microusd, 4, "10 * 0.15 + 4 * 0.6 micro-dollars, rounded up");
    cr_expect_eq(w.engine.n_cancels, 1);
    expect_text(STAGES, "before:local stream:cloud");
    expect_text(ATTEMPTS, "local:abandoned cloud:ok");
    expect_text(OUTCOME, "ok");
    cr_expect_gt(world_count(&w, sql, c.id), 0);
    cr_expect_eq(router_metrics(w.router)->bytes_left, world_count(&w, sql, c.id));
    cr_expect_eq(router_metrics(w.router)->escalated, 1);

    cr_expect_str_eq(json_string_value(json_object_get(w.last_body, "model")), "acme-large");
    cr_expect(json_is_true(json_object_get(w.last_body, "stream")));
    cr_expect(json_is_true(json_object_get(json_object_get(w.last_body, "stream_options"), "include_usage")));
    cr_expect_null(json_object_get(w.last_body, "top_k"));
    end();
}

Test(cloud, unsure_at_the_end)
{
    world_init(&w, NULL);
    w.engine_play = (struct engine_play) {.n_tokens = 3, .logprob = UNSURE};
    ask(&whole);
    cr_expect_str_eq(c.reason, "unsure-end");
    cr_expect_str_eq((char *)c.text.data, "cccc");
    expect_text(ATTEMPTS, "local:ok cloud:ok");
    end();
}

Test(cloud, whole_completion_and_missing_usage)
{
    world_init(&w, NULL);
    w.cloud_play.whole = true;
    ask(&(struct ask_for) {.model = "acme"});
    cr_expect_str_eq((char *)c.text.data, "cccc");
    cr_expect_str_eq(c.reason, "model-asked-cloud");
    w.cloud_play = (struct cloud_play) {.n_chunks = 5, .no_usage = true};
    ask(&(struct ask_for) {.model = "cloud", .content = "123456789"});
    cr_expect_str_eq(c.reason, "cloud-only-mode");
    cr_expect_eq(c.result.tokens_in, 3);
    cr_expect_eq(c.result.tokens_out, 2);
    end();
}

/* No START before the row: the callbacks of the store are held back, and egress must hear nothing. */
Test(cloud, nothing_is_sent_before_the_egress_row_is_durable)
{
    world_init(&w, NULL);
    world_spin(&w, 20);
    event_del(&w.mail);
    start(&(struct ask_for) {.model = "acme", .stream = true});
    world_spin(&w, 100);
    cr_expect_eq(w.egress.n_starts, 0);
    event_add(&w.mail, NULL);
    WAIT_OVER(&w, &c);
    cr_expect_eq(w.egress.n_starts, 1);
    end();
}

Test(cloud, whole_local_answer_is_kept_for_when_it_fails)
{
    world_init(&w, NULL);
    w.engine_play = (struct engine_play) {.n_tokens = 3, .logprob = UNSURE};
    w.cloud_play = (struct cloud_play) {.result = "failed", .error = EGRESS_ERR_TLS};
    ask(&stream);
    cr_expect_eq(c.route, ROUTE_LOCAL);
    cr_expect(c.degraded);
    cr_expect_str_eq((char *)c.text.data, "lll");
    cr_expect_eq(w.engine.n_starts, 1);
    expect_text(STAGES, "before:local end:cloud cloud-failed:local");
    expect_text(ATTEMPTS, "local:ok cloud:failed:tls");
    expect_text(OUTCOME, "degraded");
    end();
}

Test(cloud, abandoned_local_answer_is_made_again_when_it_fails)
{
    world_init(&w, NULL);
    w.engine_play = (struct engine_play) {.n_tokens = 8, .logprob = UNSURE};
    w.cloud_play = (struct cloud_play) {.result = "failed", .error = EGRESS_ERR_TLS};
    ask(&whole);
    cr_expect(c.degraded);
    cr_expect_eq(c.text.len, 8);
    cr_expect_eq(w.engine.n_starts, 2);
    expect_text(ATTEMPTS, "local:abandoned cloud:failed:tls local:ok");
    end();
}

Test(cloud, fails_before_the_first_byte_is_tried_twice_and_each_has_its_row)
{
    world_init(&w, NULL);
    w.cloud_play = (struct cloud_play) {.result = "failed", .error = EGRESS_ERR_HTTP, .status = 503};
    ask(&(struct ask_for) {.model = "acme"});
    cr_expect_eq(c.http_status, 502);
    cr_expect_str_eq(c.type, "upstream_error");
    cr_expect_eq(w.egress.n_starts, 2);
    cr_expect_eq(world_count(&w, "SELECT count(*) FROM egress WHERE request_id = ?", c.id), 2);
    cr_expect_eq(world_count(&w, "SELECT count(DISTINCT seq) FROM egress WHERE request_id = ?", c.id), 2);
    expect_text(ATTEMPTS, "cloud:failed:http cloud:failed:http");
    expect_text(OUTCOME, "error");

    /* Retry-After beyond 30 s is not waited for. */
    w.cloud_play.retry_after_sec = 31;
    w.cloud_play.status = 429;
    ask(&(struct ask_for) {.model = "acme"});
    cr_expect_eq(w.egress.n_starts, 3);
    cr_expect_str_eq(c.code, "upstream_rate_limited");
    cr_expect_eq(c.retry_after_sec, 31);
    end();
}

Test(cloud, storm_is_not_amplified)
{
    world_init(&w, NULL);
    w.cloud_play = (struct cloud_play) {.result = "failed", .error = EGRESS_ERR_CONNECT};
    for (int i = 0; i < 20; i++)
        ask(&(struct ask_for) {.model = "acme", .stream = true});
    /* The breaker opens after five failures in a row. */
    cr_expect_leq(w.egress.n_starts, 8, "%u", w.egress.n_starts);
    cr_expect_eq(c.http_status, 503);
    cr_expect_str_eq(c.code, "cloud_unavailable");
    cr_expect_eq(cloud_breaker(w.router, "acme")->state, BREAKER_OPEN);

    router_set_config(w.router, w.config);
    world_spin(&w, 20);
    cr_expect_eq(w.egress.n_reloads, 1);
    cr_expect_eq(cloud_breaker(w.router, "acme")->state, BREAKER_OPEN, "a reload keeps what is known");
    end();
}

Test(cloud, denied_latches_until_reload)
{
    world_init(&w, NULL);
    w.cloud_play = (struct cloud_play) {.result = "denied", .error = EGRESS_ERR_HTTP, .status = 401};
    ask(&(struct ask_for) {.model = "acme"});
    cr_expect_str_eq(c.code, "upstream_denied");
    cr_expect_eq(cloud_breaker(w.router, "acme")->state, BREAKER_LATCHED);
    router_set_config(w.router, w.config);
    cr_expect_eq(cloud_breaker(w.router, "acme")->state, BREAKER_CLOSED);
    end();
}

Test(cloud, rejected_is_not_repeated)
{
    world_init(&w, NULL);
    w.cloud_play = (struct cloud_play) {.result = "rejected", .error = EGRESS_ERR_HTTP, .status = 400};
    ask(&(struct ask_for) {.model = "acme"});
    cr_expect_eq(c.http_status, 400);
    cr_expect_str_eq(c.code, "upstream_rejected");
    cr_expect_eq(w.egress.n_starts, 1);
    cr_expect_eq(cloud_breaker(w.router, "acme")->consecutive, 0);
    w.engine_play.logprob = UNSURE;
    ask(&stream);
    cr_expect(c.degraded, "the local answer stands in");
    end();
}

Test(cloud, cut_after_the_first_byte_is_an_error_event)
{
    static const struct cloud_play cuts[] = {
        {.n_chunks = 50, .cut_at = 20}, {.n_chunks = 50, .error_event_at = 20}, {.n_chunks = 50, .garbage_at = 20},
        {.n_chunks = 50, .die_at = 20},
    };

    world_init(&w, NULL);
    for (size_t i = 0; i < ARRAY_SIZE(cuts); i++) {
        w.cloud_play = cuts[i];
        ask(&(struct ask_for) {.model = "acme", .stream = true});
        cr_expect_eq(c.n_begin, 1);
        cr_expect_eq(c.n_end, 0);
        cr_expect_eq(c.n_fail, 1);
        cr_expect_str_eq(c.type, "upstream_error");
        cr_expect_str_eq(c.code, "upstream_cut");
        cr_expect_null(strstr(c.message, "secret"));
        expect_text(OUTCOME, "truncated");
        cr_expect_gt(world_count(&w, "SELECT cost_microusd FROM outcome WHERE request_id = ?", c.id), 0);
        world_spin(&w, 20);
    }
    cr_expect_eq(w.egress.n_starts, ARRAY_SIZE(cuts));
    cr_expect_eq(w.egress.n_cancels, 2, "after an error and after garbage the connection is of no use");
    end();
}

Test(cloud, cut_before_a_byte_is_released_falls_back)
{
    static const struct cloud_play cuts[] = {
        {.n_chunks = 50, .cut_at = 20}, {.error_event_at = 1}, {.empty = true}, {.die_at = 1},
    };

    world_init(&w, NULL);
    for (size_t i = 0; i < ARRAY_SIZE(cuts); i++) {
        w.engine_play = (struct engine_play) {.n_tokens = 3, .logprob = UNSURE};
        w.cloud_play = cuts[i];
        ask(&whole);
        cr_expect_eq(c.n_end, 1);
        cr_expect(c.degraded);
        cr_expect_str_eq((char *)c.text.data, "lll", "tiers are never spliced");
        world_spin(&w, 20);
    }
    end();
}

Test(cloud, next_endpoint)
{
    struct policy_endpoint *e;

    world_init(&w, NULL);
    e = &w.config->policy.endpoints[1];
    *e = w.config->policy.endpoints[0];
    snprintf(e->name, sizeof(e->name), "backup");
    w.config->cloud.endpoints[1] = w.config->cloud.endpoints[0];
    w.config->cloud.endpoints[1].policy = *e;
    w.config->policy.n_endpoints = w.config->cloud.n_endpoints = 2;
    router_set_config(w.router, w.config);
    w.cloud_play = (struct cloud_play) {.result = "failed", .error = EGRESS_ERR_KEY};
    ask(&(struct ask_for) {.mode = "cloud-only"});
    expect_text("SELECT group_concat(endpoint, ' ') FROM (SELECT * FROM attempt WHERE request_id = ? ORDER BY seq)",
                "acme backup");
    cr_expect_eq(c.http_status, 502);
    end();
}

Test(router, status_and_metrics)
{
    cleanup(json_decrefp) json_t *status = NULL;
    const char *model, *host, *breaker, *mode;
    const struct router_metrics *m;
    int ready, waiting, in_flight;

    world_init(&w, NULL);
    ask(&stream);
    status = router_status(w.router);
    cr_assert_eq(json_unpack(status, "{s:{s:b,s:s,s:i},s:[{s:s,s:s}],s:{s:s},s:i}", "engine", "ready", &ready, "model", &model,
                             "waiting", &waiting, "endpoints", "host", &host, "breaker", &breaker, "policy", "mode", &mode,
                             "in_flight", &in_flight), 0);
    cr_expect(ready && waiting == 0 && in_flight == 0);
    cr_expect_str_eq(model, "tern-nano");
    cr_expect_str_eq(host, "api.acme.test:443");
    cr_expect_str_eq(breaker, "closed");
    cr_expect_str_eq(mode, "auto");
    m = router_metrics(w.router);
    cr_expect(m->requests == 1 && m->outcomes_ok == 1 && m->route_local == 1 && m->tokens_out_local == 6);
    cr_expect(m->latency_count[0] == 1 && m->first_token_count[0] == 1 && m->reasons[REASON_CONFIDENT] == 1);
    cr_expect_lt(clock_usec() - router_engine_beat_usec(w.router), 5 * USEC_PER_SEC);
    end();
}

/* ---- What must stay ---------------------------------------------------------------------------------------------- */
Test(privacy, configured_local_only_and_offline_win)
{
    static const struct ask_for asks[] = {
        {.mode = "cloud-only"}, {.model = "acme"}, {.model = "cloud"}, {.mode = "auto"},
    };

    world_init(&w, NULL);
    w.engine_play.logprob = UNSURE;
    w.config->policy.mode = MODE_LOCAL_ONLY;
    for (size_t i = 0; i < ARRAY_SIZE(asks); i++)
        ask(&asks[i]);
    cr_expect_eq(c.n_end, 1);
    ask(&(struct ask_for) {.model = "acme"});
    cr_expect_eq(c.http_status, 400, "a refusal for good is no 5xx");
    cr_expect_str_eq(c.code, "route_not_allowed");
    w.config->policy.mode = MODE_AUTO;
    w.config->offline = true;
    for (size_t i = 0; i < ARRAY_SIZE(asks); i++)
        ask(&asks[i]);
    cr_expect_eq(w.egress.n_starts, 0);
    end();
}

Test(privacy, private_stays)
{
    static const char *const labels[] = {"private", "secret", "Private ", "nonsense", ""};

    world_init(&w, NULL);
    w.engine_play.logprob = UNSURE;
    for (size_t i = 0; i < ARRAY_SIZE(labels); i++) {
        ask(&(struct ask_for) {.label = labels[i], .stream = i & 1});
        cr_expect_eq(c.route, ROUTE_LOCAL);
        ask(&(struct ask_for) {.label = labels[i], .mode = "cloud-only"});
        cr_expect_eq(c.http_status, 400);
    }
    cr_expect_eq(w.egress.n_starts, 0);
    end();
}

/* What is found in the content keeps a request that was labelled public, or not at all, on the device. */
Test(privacy, what_is_found_stays)
{
    static const char *const labels[] = {"public", "internal", NULL};
    static const char *const contents[] = {
        "write to jo@example.org", "my card is 4111 1111 1111 1111", "password: hunter2!", "what is the capital of france",
    };

    world_init(&w, NULL);
    w.engine_play.logprob = UNSURE;
    for (size_t i = 0; i < ARRAY_SIZE(labels); i++)
        for (size_t k = 0; k < ARRAY_SIZE(contents); k++) {
            bool stays = k < 3;

            ask(&(struct ask_for) {.label = labels[i], .content = contents[k]});
            cr_expect_eq(c.route, stays ? ROUTE_LOCAL : ROUTE_CLOUD, "%s: %s", labels[i], contents[k]);
        }
    cr_expect_eq(w.egress.n_starts, (int)ARRAY_SIZE(labels));
    cr_expect_eq(world_count(&w, "SELECT count(*) FROM request WHERE label = 'private' AND label_source = 'detector'", NULL),
                 9);
    cr_expect_eq(world_count(&w, "SELECT count(*) FROM decision WHERE features LIKE '%\"found\":[\"EMAIL\"]%'", NULL) > 0, 1);
    end();
}

/* ---- Clients ----------------------------------------------------------------------------------------------------- */
Test(client, leaves_while_local_and_while_cloud)
{
    world_init(&w, NULL);
    w.engine_play = (struct engine_play) {.n_tokens = 500, .logprob = SURE};
    c.cancel_at = 2;
    ask(&stream);
    WAIT_FOR(&w, w.engine.n_cancels == 1);
    cr_expect_eq(c.n_delta, 2);
    cr_expect_eq(c.n_end + c.n_fail, 0);
    expect_text(OUTCOME, "cancelled");
    expect_text(ATTEMPTS, "local:cancelled");

    w.cloud_play.n_chunks = 500;
    ask(&(struct ask_for) {.stream = true, .model = "acme"});
    WAIT_FOR(&w, w.egress.n_cancels == 1);
    expect_text(OUTCOME, "cancelled");
    expect_text(ATTEMPTS, "cloud:cancelled");
    end();
}

Test(client, leaves_at_any_moment)
{
    world_init(&w, NULL);
    w.engine_play = (struct engine_play) {.n_tokens = 6, .logprob = UNSURE};
    for (unsigned turns = 0; turns < 60; turns++) {
        start(&(struct ask_for) {.stream = turns & 1});
        for (unsigned i = 0; i < turns && c.request; i++)
            event_base_loop(w.base, EVLOOP_ONCE);
        if (c.request) {
            struct request *q = c.request;

            c.left = true;
            c.request = NULL;
            request_cancel(q);
        }
        settle();
        cr_expect_eq(world_count(&w, "SELECT count(*) FROM outcome WHERE request_id = ?", c.id), 1);
    }
    end();
}

Test(client, slow_reader_pauses_the_upstream)
{
    world_init(&w, NULL);
    w.cloud_play.n_chunks = 50;
    c.pause_at = 3;
    start(&(struct ask_for) {.stream = true, .model = "acme"});
    WAIT_FOR(&w, w.egress.n_pauses == 1);
    world_spin(&w, 100);
    cr_expect_eq(c.n_delta, 3);
    cr_expect_eq(c.n_end, 0, "the end waits behind the text");
    request_resume(c.request);
    WAIT_OVER(&w, &c);
    cr_expect_eq(c.text.len, 50);
    settle();
    end();
}

Test(client, deadline)
{
    world_init(&w, NULL);
    w.engine_play.stall_at = 1;
    ask(&(struct ask_for) {.deadline_usec = 50000});
    cr_expect_eq(c.http_status, 504);
    cr_expect_str_eq(c.code, "deadline_exceeded");
    WAIT_FOR(&w, w.engine.n_cancels == 1);
    expect_text(OUTCOME, "error");

    w.cloud_play.stall_at = 3;
    ask(&(struct ask_for) {.deadline_usec = 50000, .stream = true, .model = "acme"});
    WAIT_FOR(&w, w.egress.n_cancels == 1);
    cr_expect_eq(c.text.len, 2);
    cr_expect_eq(c.n_fail, 1);
    expect_text(OUTCOME, "truncated");
    end();
}

static int refused(const struct ask_for *a)
{
    client_done(&c);
    c = (struct client) {0};
    return client_start(&c, &w, a);
}

static void few_places(struct world *world)
{
    world->max_requests = 1;
}

Test(client, refused_at_once)
{
    world_init(&w, few_places);
    world_spin(&w, 20);
    cr_expect_eq(refused(&(struct ask_for) {.model = "gpt-9"}), 1);
    cr_expect_eq(c.http_status, 404);
    cr_expect_str_eq(c.code, "model_not_found");
    cr_expect(strstr(c.message, "tern-nano") && strstr(c.message, "acme"), "%s", c.message);
    cr_expect_eq(refused(&(struct ask_for) {.mode = "fastest"}), 1);
    cr_expect_str_eq(c.code, "invalid_mode");

    start(&whole);
    struct client second = {0};
    cr_expect_eq(client_start(&second, &w, &whole), 1);
    cr_expect_eq(second.http_status, 503);
    cr_expect_str_eq(second.code, "audit_queue_full");
    cr_expect_geq(second.retry_after_sec, 1);
    WAIT_OVER(&w, &c);
    settle();

    router_drain(w.router);
    cr_expect_eq(refused(&whole), 1);
    cr_expect_str_eq(c.code, "draining");
    client_done(&second);
    end();
}

Test(client, unknown_model_while_the_engine_starts)
{
    world_init(&w, engine_late);
    start(&(struct ask_for) {.model = "gpt-9"});
    w.engine.mute = false;
    shutdown(bufferevent_getfd(w.engine.bev), SHUT_RDWR);
    WAIT_OVER(&w, &c);
    cr_expect_eq(c.http_status, 404);
    settle();
    expect_text(OUTCOME, "refused");
    end();
}

/* ---- The record fails -------------------------------------------------------------------------------------------- */
static void database_away(bool away)
{
    char other[128];

    snprintf(other, sizeof(other), "%s.away", w.path);
    cr_assert_eq(away ? rename(w.path, other) : rename(other, w.path), 0);
}

Test(audit, no_record_no_answer)
{
    world_init(&w, NULL);
    ask(&whole);
    database_away(true);
    start(&(struct ask_for) {.stream = true, .model = "acme"});
    WAIT_OVER(&w, &c);
    cr_expect_eq(c.n_delta, 0);
    cr_expect_eq(c.http_status, 503);
    cr_expect_str_eq(c.code, "audit_unavailable");
    cr_expect_eq(c.retry_after_sec, 5);
    cr_expect_eq(refused(&whole), 1, "and the next one is told at once");
    cr_expect_eq(w.egress.n_starts, 0);
    database_away(false);
    WAIT_FOR(&w, store_healthy(w.store));
    ask(&whole);
    cr_expect_eq(c.n_end, 1, "it recovers");
    end();
}

Test(audit, no_record_no_cloud_but_local_where_that_is_configured)
{
    world_init(&w, NULL);
    w.config->audit_or_refuse = false;
    w.engine_play.logprob = UNSURE;
    ask(&stream);
    cr_expect_eq(w.egress.n_starts, 1);
    database_away(true);
    ask(&stream);
    cr_expect_eq(c.n_end, 1);
    cr_expect_eq(c.route, ROUTE_LOCAL);
    ask(&(struct ask_for) {.model = "acme"});
    cr_expect_eq(c.http_status, 503);
    cr_expect_eq(w.egress.n_starts, 1);
    database_away(false);
    WAIT_FOR(&w, store_healthy(w.store));

    /* The fault shows while the body waits for its row. */
    database_away(true);
    ask(&(struct ask_for) {.model = "acme"});
    cr_expect_str_eq(c.code, "cloud_unavailable");
    cr_expect_eq(w.egress.n_starts, 1);
    database_away(false);
    WAIT_FOR(&w, store_healthy(w.store));
    end();
}

/* ---- Random lives ------------------------------------------------------------------------------------------------ */
static void choose_any(struct world *world)
{
    static const char *const errors[] = {EGRESS_ERR_CONNECT, EGRESS_ERR_HTTP, EGRESS_ERR_TIMEOUT, EGRESS_ERR_TLS};
    struct engine_play *e = &world->engine_play;
    struct cloud_play *p = &world->cloud_play;

    *e = (struct engine_play) {.n_tokens = (unsigned)world_random(world, 12),
                               .logprob = world_random(world, 2) ? SURE : UNSURE};
    switch (world_random(world, 12)) {
    case 0: e->stall_at = world_random(world, 8) ? 0 : 1 + (unsigned)world_random(world, 8); break;
    case 1: e->error_at = 1 + (unsigned)world_random(world, 8); break;
    case 2: e->refuse = world_random(world, 2) ? ENGINE_E_CONTEXT : ENGINE_E_MEMORY; break;
    case 3: e->die_at = world_random(world, 8) ? 0 : 1 + (unsigned)world_random(world, 8); break;
    }
    *p = (struct cloud_play) {.n_chunks = (unsigned)world_random(world, 9), .no_usage = world_random(world, 2)};
    switch (world_random(world, 16)) {
    case 0: p->stall_at = 1 + (unsigned)world_random(world, 8); break;
    case 1: p->cut_at = 1 + (unsigned)world_random(world, 8); break;
    case 2: p->error_event_at = 1 + (unsigned)world_random(world, 8); break;
    case 3: p->garbage_at = 1 + (unsigned)world_random(world, 8); break;
    case 4: p->die_at = world_random(world, 8) ? 0 : 1 + (unsigned)world_random(world, 8); break;
    case 5: p->result = "failed"; p->error = errors[world_random(world, 4)]; p->status = 503; break;
    case 6: p->result = "rejected"; p->error = EGRESS_ERR_HTTP; p->status = 400; break;
    case 7: p->whole = true; break;
    case 8: p->empty = true; break;
    }
}

static void many_places(struct world *world)
{
    world->max_requests = 512;
}

#define LIVES 3000
#define AT_ONCE 24

Test(random, lives, .timeout = 300)
{
    static const char *const labels[] = {NULL, "public", "internal", "private", "secret", "junk"};
    static const char *const models[] = {NULL, "auto", "local", "cloud", "acme", "tern-nano"};
    static const char *const modes[] = {NULL, "auto", "local-only", "cloud-only", "prefer-local"};
    static struct client lives[AT_ONCE];
    unsigned n_started = 0, n_over = 0, n_refused = 0, n_told = 0, n_left = 0;

    world_init(&w, many_places);
    w.choose = choose_any;
    w.config->sessions = 8;
    w.config->queue = 12;
    WAIT_FOR(&w, router_engine_ready(w.router));
    while (n_over < LIVES) {
        for (size_t i = 0; i < AT_ONCE; i++) {
            struct client *l = &lives[i];

            if (l->request || n_started == LIVES)
                continue;
            client_done(l);
            *l = (struct client) {.cancel_at = world_random(&w, 6) ? 0 : 1 + (unsigned)world_random(&w, 4),
                                  .pause_at = world_random(&w, 6) ? 0 : 1 + (unsigned)world_random(&w, 4)};
            n_started++;
            if (client_start(l, &w, &(struct ask_for) {
                    .label = labels[world_random(&w, ARRAY_SIZE(labels))],
                    .model = models[world_random(&w, ARRAY_SIZE(models))],
                    .mode = modes[world_random(&w, ARRAY_SIZE(modes))], .stream = world_random(&w, 2),
                    .logprobs = world_random(&w, 4) == 0, .deadline_usec = 20000 + world_random(&w, 400000)}) != 0) {
                n_over++;
                n_refused++;
            }
        }
        event_base_loop(w.base, EVLOOP_ONCE);
        for (size_t i = 0; i < AT_ONCE; i++) {
            struct client *l = &lives[i];

            if (l->request && l->request->paused && world_random(&w, 4) == 0)
                request_resume(l->request);
            if (l->request && world_random(&w, 1000) == 0) {
                struct request *q = l->request;

                l->left = true;
                l->request = NULL;
                request_cancel(q);
            }
            if (!l->request && l->world) {
                cr_assert_eq(l->n_end + l->n_fail + l->left + (l->http_status && !l->n_fail), 1);
                n_told += l->n_end + l->n_fail;
                n_left += l->left;
                if (l->n_end + l->n_fail + l->left)
                    n_over++;
                l->world = NULL;
            }
        }
        if (world_random(&w, 500) == 0)
            router_set_config(w.router, w.config);
        if (world_random(&w, 50) == 0)        /* otherwise most lives would find it open */
            breaker_init(&w.router->cloud.endpoints[0].breaker);
    }
    settle();
    cr_expect_eq(world_count(&w, "SELECT count(*) FROM request", NULL), LIVES - n_refused);
    cr_expect_eq(world_count(&w, "SELECT count(*) FROM outcome", NULL), LIVES - n_refused);
    cr_expect_eq(world_count(&w, "SELECT count(*) FROM decisions_v WHERE outcome = 'lost'", NULL), 0);
    cr_expect_eq(world_count(&w, "SELECT count(*) FROM egress e JOIN request r ON r.id = e.request_id"
                                 " WHERE r.label NOT IN ('public', 'internal')", NULL), 0);
    cr_expect_leq(w.egress.n_starts, world_count(&w, "SELECT count(*) FROM egress", NULL));
    cr_expect_eq(world_count(&w, "SELECT count(*) FROM attempts_v WHERE result = 'lost'", NULL), 0);
    printf("%d lives: %u told, %u left, %u refused, %u runs, %u calls, engine lost %u times, egress %u\n", LIVES, n_told,
           n_left, n_refused, w.engine.n_starts, w.egress.n_starts, w.n_downs[true], w.n_downs[false]);
    for (size_t i = 0; i < AT_ONCE; i++)
        client_done(&lives[i]);
    end();
}
