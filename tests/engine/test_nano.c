/* The shipped model through the whole engine - template, tokenizer, forward, greedy choice - against the answers its
 * training recipe wrote down, item by item. Every hundred-and-somethingth of the evaluation's items. */
#include <criterion/criterion.h>
#include "base/json.h"
#include "tests/engine/nano.h"
#include "tests/engine/read_file.h"

#define N_ITEMS 60
#define MAX_ANSWER 64

static void answer(struct nano *n, const char *prompt, struct buf *out)
{
    cleanup(json_decrefp) json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", prompt);
    cleanup(tokens_done) struct tokens ids = {0};
    struct err err = {0};

    cr_assert_eq(template_render(n->model->template, n->model->tokenizer, messages, &ids, &err), 0, "%s", err.msg);
    session_reset(n->session, 0);
    nano_feed(n, ids.ids, ids.len);
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
        nano_feed(n, &best, 1);
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
