/* The engine as ternd sees it: a process on a socketpair, with the model that ships. */
#include <criterion/criterion.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/chat.h"
#include "base/clock.h"
#include "base/log.h"
#include "tests/engine/process.h"
#include "tests/engine/read_file.h"

Test(worker, ready)
{
    struct engine_config cfg = config(3, 0);
    struct engine e = engine_start(&cfg);
    struct frame f;
    json_t *j;

    cr_assert(next_frame(&e, &f));
    cr_assert_eq(f.type, ENGINE_READY);
    j = json_loadb((const char *)f.data, f.len, 0, NULL);
    cr_assert(j);
    cr_expect_str_eq(json_string_value(json_object_get(j, "model")), "tern-nano");
    cr_expect_str_eq(json_string_value(json_object_get(j, "architecture")), "bitnet-b1.58");
    cr_expect_eq(strncmp(json_string_value(json_object_get(j, "digest")), "sha256:", 7), 0);
    cr_expect_eq(strlen(json_string_value(json_object_get(j, "digest"))), 7 + 64);
    cr_expect_eq(json_integer_value(json_object_get(j, "context")), 512);
    cr_expect_eq(json_integer_value(json_object_get(j, "vocab")), 2048);
    cr_expect_eq(json_integer_value(json_object_get(j, "sessions")), 3);
    cr_expect_eq(json_integer_value(json_object_get(j, "threads")), 1);
    cr_expect_gt(json_integer_value(json_object_get(j, "bytes")), 1000000);
    cr_expect(json_is_string(json_object_get(j, "kernels")) && json_is_integer(json_object_get(j, "load_usec")));
    json_decref(j);
    engine_stop(&e);
}

Test(worker, answers)
{
    struct engine_config cfg = config(1, 0);
    struct engine e = engine_start(&cfg);
    struct answer a;

    expect_ready(&e);
    a = ask(&e, "what is 12 + 7", ",\"logprobs\":true,\"top_logprobs\":3");
    cr_expect_str_eq(a.text, "19");
    cr_expect(a.end.finish == FINISH_STOP && a.end.n_tokens == a.n && a.end.n_prompt > 8 && a.n_prompts == 1);
    cr_expect(a.first.n_top == 3 && a.first.top[0].id == a.ids[0] && a.first.top[0].logprob == a.first.logprob);
    cr_expect(a.first.margin > 0 && a.first.entropy >= 0 && a.first.logprob <= 0);
    a = ask(&e, "what is 12 + 7", "");
    cr_expect_str_eq(a.text, "19");
    cr_expect_eq(a.first.n_top, 0);
    engine_stop(&e);
}

/* Answers and their confidence as the model's own evaluation has them, from an embedded copy. */
Test(worker, evaluation, .timeout = 120)
{
    struct engine_config cfg = config(1, 0);
    size_t size, n = 0, same = 0, line = 0;
    uint8_t *items = read_below("TERN_SHARED", "nano/evaluation.jsonl", &size);
    struct engine e;

    if (!items) {
        fprintf(stderr, "SKIPPED: no evaluation under $TERN_SHARED\n");
        cr_skip_test("no evaluation under $TERN_SHARED");
    }
    cfg.model_data = read_file(cfg.model_path, &cfg.model_bytes);
    cfg.model_path = NULL;
    cfg.kv = KV_F32;
    e = engine_start(&cfg);
    expect_ready(&e);
    for (char *s = strtok((char *)items, "\n"); s; s = strtok(NULL, "\n"), line++) {
        cleanup(json_decrefp) json_t *j = line % 31 ? NULL : json_loads(s, 0, NULL);
        struct answer a;
        double mean;

        if (!j)
            continue;
        a = ask(&e, json_string_value(json_object_get(j, "prompt")), "");
        n++;
        if (strcmp(a.text, json_string_value(json_object_get(j, "answer"))) != 0)
            continue;
        same++;
        mean = json_number_value(json_object_get(j, "mean_logprob"));
        cr_expect_float_eq(a.sum_logprob / (double)a.n, mean, 0.02, "line %zu", line);
    }
    cr_expect(n >= 200 && same * 100 >= n * 99, "%zu of %zu answers", same, n);
    engine_stop(&e);
    free(items);
    free((void *)(uintptr_t)cfg.model_data);
}

/* Side by side or alone, whatever else runs: the same tokens and the same numbers. */
Test(worker, interleaved)
{
    static const char *const prompts[] = { "how would you say fly in italian", "what is 12 + 7", "capital of france" };
    struct engine_config cfg = config(4, 0);
    struct engine e = engine_start(&cfg);
    struct answer alone[4], together[4] = { 0 };
    char long_prompt[1200] = "";

    expect_ready(&e);
    while (strlen(long_prompt) < 1000)
        strcat(long_prompt, "the quick brown fox ");
    for (int i = 0; i < 4; i++)
        alone[i] = ask(&e, i == 3 ? long_prompt : prompts[i], i == 2 ? "" : LONG);
    cr_assert_gt(alone[0].n, 100);
    cr_assert_gt(alone[3].end.n_prompt, 150);

    start(&e, 1, prompts[0], LONG);
    while (together[0].n < 5)
        take(&e, together);
    start(&e, 4, long_prompt, LONG);
    start(&e, 2, prompts[1], LONG);
    while (!together[1].n)
        take(&e, together);
    start(&e, 3, prompts[2], "");
    finish(&e, together, 4);
    for (int i = 0; i < 4; i++) {
        cr_expect_str_eq(together[i].text, alone[i].text);
        cr_assert_eq(together[i].n, alone[i].n);
        cr_expect_eq(memcmp(together[i].ids, alone[i].ids, alone[i].n * sizeof(uint32_t)), 0);
        cr_expect_eq(memcmp(together[i].logprobs, alone[i].logprobs, alone[i].n * sizeof(float)), 0);
    }
    engine_stop(&e);
}

/* While one prompt is long, others keep generating: a token for each chunk. */
Test(worker, prefill_in_turn)
{
    struct engine_config cfg = config(2, 0);
    struct engine e = engine_start(&cfg);
    struct answer a[2] = { 0 };
    char long_prompt[1200] = "";
    size_t before, during;

    expect_ready(&e);
    while (strlen(long_prompt) < 1000)
        strcat(long_prompt, "the quick brown fox ");
    start(&e, 1, "tell me", LONG);
    while (a[0].n < 3)
        take(&e, a);
    start(&e, 2, long_prompt, ",\"max_tokens\":1");
    before = a[0].n;
    while (!a[1].n_prompts && !a[1].refused)
        take(&e, a);
    during = a[0].n - before;
    finish(&e, a, 2);
    cr_assert_gt(a[1].end.n_prompt, 150);
    cr_expect_geq(during, (size_t)a[1].end.n_prompt / 32, "%zu beside %u", during, a[1].end.n_prompt);
    engine_stop(&e);
}

Test(worker, cancel)
{
    struct engine_config cfg = config(2, 0);
    struct engine e = engine_start(&cfg);
    struct answer a[3] = { 0 };
    cleanup(buf_done) struct buf both = { .max = 1 << 16 };
    cleanup(freep) char *s = payload("how would you say fly in italian", LONG);
    size_t n;

    expect_ready(&e);
    /* Mid-answer: what was already on the socket, then one step at most. */
    send_frame(&e, ENGINE_START, 1, s);
    while (a[0].n < 20)
        take(&e, a);
    n = a[0].n;
    send_frame(&e, ENGINE_CANCEL, 1, NULL);
    finish(&e, a, 1);
    cr_expect_eq(a[0].end.finish, FINISH_CANCELLED);
    cr_expect_eq(a[0].end.n_tokens, a[0].n);
    cr_expect_leq(a[0].n - n, 20);

    /* In the same write as its request: before the first chunk. */
    cr_assert_eq(frame_append(&both, ENGINE_START, 2, s, strlen(s)), 0);
    cr_assert_eq(frame_append(&both, ENGINE_CANCEL, 2, NULL, 0), 0);
    cr_assert_eq(write(e.fd, both.data, both.len), (ssize_t)both.len);
    finish(&e, a, 2);
    cr_expect_eq(a[1].end.finish, FINISH_CANCELLED);
    cr_expect_eq(a[1].n_prompts, 0);

    /* Of something that is not running: nothing. The slot is as new. */
    send_frame(&e, ENGINE_CANCEL, 2, NULL);
    send_frame(&e, ENGINE_CANCEL, 77, NULL);
    start(&e, 3, "what is 12 + 7", "");
    finish(&e, a, 3);
    cr_expect_str_eq(a[2].text, "19");
    engine_stop(&e);
}

Test(worker, ping)
{
    struct engine_config cfg = config(1, 0);
    struct engine e = engine_start(&cfg);
    struct answer a = { 0 };
    struct frame f;

    expect_ready(&e);
    send_frame(&e, ENGINE_PING, 4711, NULL);
    cr_assert(next_frame(&e, &f));
    cr_expect(f.type == ENGINE_PONG && f.id == 4711 && f.len == 0);
    start(&e, 1, "tell me", LONG);
    while (a.n < 3)
        take(&e, &a);
    send_frame(&e, ENGINE_PING, 1, NULL);
    for (int i = 0; take(&e, &a) != ENGINE_PONG; i++)
        cr_assert_lt(i, 40);
    engine_stop(&e);                  /* and gone in the middle of an answer */
}

Test(worker, limits)
{
    struct engine_config cfg = config(1, 0);
    struct engine e = engine_start(&cfg);
    struct answer a;

    expect_ready(&e);
    a = ask(&e, "tell me", AGAIN ",\"max_tokens\":3");
    cr_expect(a.end.finish == FINISH_LENGTH && a.n == 3 && a.end.n_tokens == 3);
    a = ask(&e, "tell me", AGAIN);
    cr_expect(a.end.finish == FINISH_LENGTH && a.n == 40, "%zu", a.n);
    engine_stop(&e);

    /* What the context leaves. */
    cfg = config(1, 48);
    e = engine_start(&cfg);
    expect_ready(&e);
    a = ask(&e, "tell me", LONG);
    cr_expect(a.end.finish == FINISH_LENGTH && a.n + a.end.n_prompt == 48, "%zu + %u", a.n, a.end.n_prompt);
    engine_stop(&e);
}

Test(worker, stop_strings)
{
    struct engine_config cfg = config(1, 0);
    struct engine e = engine_start(&cfg);
    struct answer whole, a;
    char more[64];

    expect_ready(&e);
    whole = ask(&e, "how would you say fly in italian", "");
    cr_assert_str_eq(whole.text, "Translating that.");
    a = ask(&e, "how would you say fly in italian", ",\"stop\":[\"never\",\"ting th\"]");
    cr_expect_str_eq(a.text, "Transla");
    cr_expect_eq(a.end.finish, FINISH_STOP);
    /* Held back to the end, then shown. */
    a = ask(&e, "how would you say fly in italian", ",\"stop\":\"that.?\"");
    cr_expect_str_eq(a.text, "Translating that.");
    cr_expect(a.n == whole.n && a.end.finish == FINISH_STOP);
    snprintf(more, sizeof(more), ",\"stop\":\"that.?\",\"max_tokens\":%zu", whole.n - 1);
    a = ask(&e, "how would you say fly in italian", more);
    cr_expect_str_eq(a.text, "Translating that.");
    cr_expect(a.n == whole.n - 1 && a.end.finish == FINISH_LENGTH);
    engine_stop(&e);
}

Test(worker, refused)
{
    struct engine_config cfg = config(1, 0);
    struct engine e = engine_start(&cfg);
    struct answer a[3] = { 0 };
    static const char *const invalid[] = {
        "", "nonsense", "{}", "{\"messages\":[]}", "{\"messages\":[{\"role\":\"king\",\"content\":\"x\"}]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"temperature\":9}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\"]}",
    };
    cleanup(freep) char *longest = malloc(2000001), *stop = malloc(3000);

    expect_ready(&e);
    for (size_t i = 0; i < ARRAY_SIZE(invalid); i++) {
        a[0] = (struct answer){ 0 };
        send_frame(&e, ENGINE_START, 1, invalid[i]);
        finish(&e, a, 1);
        cr_expect(a[0].refused && strcmp(a[0].code, ENGINE_E_INVALID) == 0 && *a[0].message, "case %zu", i);
    }
    memset(longest, 'q', 2000000);
    longest[2000000] = '\0';
    snprintf(stop, 3000, ",\"stop\":\"%.*s\"", 2000, longest);
    a[0] = ask(&e, "x", stop);
    cr_expect(a[0].refused && strcmp(a[0].code, ENGINE_E_INVALID) == 0);

    /* Too long by counting tokens, and by bytes alone. */
    longest[3000] = '\0';
    a[0] = ask(&e, longest, "");
    cr_expect_str_eq(a[0].code, ENGINE_E_CONTEXT);
    cr_expect(strstr(a[0].message, "512"), "%s", a[0].message);
    longest[3000] = 'q';
    a[0] = ask(&e, longest, "");
    cr_expect_str_eq(a[0].code, ENGINE_E_CONTEXT);
    cr_expect(strstr(a[0].message, "512"), "%s", a[0].message);

    /* All sessions taken, then free again; an id that is running. */
    a[0] = (struct answer){ 0 };
    start(&e, 1, "tell me", LONG);
    start(&e, 2, "tell me", LONG);
    finish(&e, a + 0, 0);
    while (!a[1].refused)
        take(&e, a);
    cr_expect_str_eq(a[1].code, ENGINE_E_BUSY);
    send_frame(&e, ENGINE_CANCEL, 1, NULL);
    finish(&e, a, 1);
    start(&e, 3, "what is 12 + 7", "");
    finish(&e, a, 3);
    cr_expect_str_eq(a[2].text, "19");
    engine_stop(&e);
}

/* A peer that breaks the protocol ends the engine; one that dies mid-answer ends it in peace. */
Test(worker, peer)
{
    struct engine_config cfg = config(1, 0);
    struct engine e = engine_start(&cfg);
    uint8_t header[FRAME_HEADER_BYTES];
    struct answer a = { 0 };
    struct frame f;

    expect_ready(&e);
    send_frame(&e, 99, 1, "of a type that is not");
    start(&e, 1, "what is 12 + 7", "");
    finish(&e, &a, 1);
    cr_expect_str_eq(a.text, "19");
    frame_header(header, ENGINE_START, 2, FRAME_MAX_PAYLOAD + 1);
    cr_assert_eq(write(e.fd, header, sizeof(header)), (ssize_t)sizeof(header));
    cr_expect(!next_frame(&e, &f));
    close(e.fd);
    cr_expect_eq(wait_exit(&e), 1);

    e = engine_start(&cfg);
    expect_ready(&e);
    start(&e, 1, "tell me", LONG);
    a = (struct answer){ 0 };
    while (a.n < 3)
        take(&e, &a);
    kill(e.pid, SIGTERM);
    cr_expect_eq(wait_exit(&e), -SIGTERM);
    close(e.fd);
}

Test(worker, no_model)
{
    struct engine_config cfg = config(1, 0);
    struct engine e;
    struct frame f;

    cfg.model_path = "/nonexistent.gguf";
    e = engine_start(&cfg);
    cr_assert(next_frame(&e, &f));
    cr_expect(f.type == ENGINE_FAILED && memmem(f.data, f.len, "nonexistent", 11));
    cr_expect_eq(wait_exit(&e), 2);
    close(e.fd);

    cfg.model_path = NULL;
    cfg.model_data = "GGUF, but not really";
    cfg.model_bytes = 20;
    e = engine_start(&cfg);
    cr_assert(next_frame(&e, &f));
    cr_expect(f.type == ENGINE_FAILED && f.len > 0);
    cr_expect_eq(wait_exit(&e), 2);
    close(e.fd);
}
