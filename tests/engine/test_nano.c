/* The shipped model through the whole engine - template, tokenizer, forward, greedy choice - against the answers its
 * training recipe wrote down, item by item. Every hundred-and-somethingth of the evaluation's items. */
#include <criterion/criterion.h>
#include "base/json.h"
#include "engine/internal.h"
#include "tests/engine/read_file.h"

#define N_ITEMS 60
#define MAX_ANSWER 64
#define BATCH 64

struct nano {
    struct model *model;
    struct pool *pool;
    struct kv_pool *kv;
    struct forward *forward;
    struct session *session;
    float *logits;
};

static void nano_init(struct nano *n)
{
    struct err err = {0};
    char path[4096];

    snprintf(path, sizeof(path), "%s/models/tern-nano.gguf", getenv("TERN_SOURCE") ?: ".");
    cr_assert_eq(model_open(&n->model, path, NULL, &err), 0, "%s", err.msg);
    cr_assert_eq(pool_new(&n->pool, 1), 0);
    cr_assert_eq(forward_new(&n->forward, n->model, n->pool, BATCH, &err), 0, "%s", err.msg);
    cr_assert_eq(kv_pool_new(&n->kv, n->model, KV_F32, 0, &err), 0, "%s", err.msg);
    cr_assert_eq(session_new(&n->session, n->kv, 0), 0);
    n->logits = malloc(n->model->n_vocab * sizeof(float));
}

static void nano_done(struct nano *n)
{
    free(n->logits);
    session_free(n->session);
    kv_pool_free(n->kv);
    forward_free(n->forward);
    pool_free(n->pool);
    model_free(n->model);
}

static void feed(struct nano *n, const int32_t *ids, size_t len)
{
    for (size_t i = 0; i < len;) {
        struct forward_row rows[BATCH];
        size_t b = 0;

        for (; b < BATCH && i < len; b++, i++)
            rows[b] = (struct forward_row){ .session = n->session, .token = ids[i],
                                            .logits = i + 1 == len ? n->logits : NULL };
        cr_assert_eq(forward_run(n->forward, rows, b), 0);
    }
}

static void answer(struct nano *n, const char *prompt, struct buf *out)
{
    cleanup(json_decrefp) json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", prompt);
    cleanup(tokens_done) struct tokens ids = {0};
    struct err err = {0};

    cr_assert_eq(template_render(n->model->template, n->model->tokenizer, messages, &ids, &err), 0, "%s", err.msg);
    session_reset(n->session, 0);
    feed(n, ids.ids, ids.len);
    for (int i = 0; i < MAX_ANSWER; i++) {
        int32_t best = 0;
        const char *piece;
        size_t len;

        for (size_t t = 1; t < n->model->n_vocab; t++)
            if (n->logits[t] > n->logits[best])
                best = (int32_t)t;
        if (tokenizer_is_end(n->model->tokenizer, best))
            return;
        piece = tokenizer_piece(n->model->tokenizer, best, &len);
        cr_assert_eq(buf_append(out, piece, len), 0);
        feed(n, &best, 1);
    }
}

static size_t count_lines(const char *text)
{
    size_t n = 0;

    for (; (text = strchr(text, '\n')); text++)
        n++;
    return n;
}

Test(nano, answers_as_its_recipe_wrote_down)
{
    size_t size, n_lines, step, asked = 0, same = 0;
    cleanup(freep) uint8_t *text = read_below("TERN_SHARED", "nano/evaluation.jsonl", &size);
    struct nano nano;
    char *line;

    if (!text)
        cr_skip_test("the shared files have no nano/evaluation.jsonl");
    nano_init(&nano);
    n_lines = count_lines((char *)text);
    step = n_lines / N_ITEMS;
    line = (char *)text;
    for (size_t i = 0; i < n_lines && asked < N_ITEMS; i++) {
        char *end = strchr(line, '\n');

        if (i % step == step / 2) {
            cleanup(json_decrefp) json_t *item = json_parse(line, (size_t)(end - line), NULL);
            const char *prompt = json_string_value(json_object_get(item, "prompt"));
            const char *want = json_string_value(json_object_get(item, "answer"));
            cleanup(buf_done) struct buf got;

            buf_init(&got, 1 << 16);
            answer(&nano, prompt, &got);
            asked++;
            if (!strcmp(got.len ? (char *)got.data : "", want))
                same++;
            else
                printf("\"%s\": \"%s\", written down \"%s\"\n", prompt, got.len ? (char *)got.data : "", want);
        }
        line = end + 1;
    }
    printf("%zu of %zu answers are the same\n", same, asked);
    cr_expect_eq(asked, N_ITEMS);
    cr_expect_geq(same * 100, asked * 99);
    nano_done(&nano);
}
