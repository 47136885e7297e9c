/* What f16 and int8 keys and values do to greedy answers of trained models: nothing, but where the choice is a close call.
 *
 * An activation that lies at a rounding tie goes to the other integer for the least change before it, and what comes after
 * differs by a little (test_bitllama2.c); so of two tokens that are nearly equal the other may win. CLOSE_CALL bounds how
 * near the two best logits of the plain path were there; in all else, and so in most answers, the ids are the same. */
#include "base/json.h"
#include "tests/engine/bitllama2.h"
#include "tests/engine/nano.h"
#include "tests/engine/read_file.h"

#define MAX_NEW 48

static const double close_call[] = { [KV_F16] = 0.15, [KV_INT8] = 0.25, [KV_F32] = 0 };
static const char *const names[] = { [KV_F16] = "f16", [KV_INT8] = "int8", [KV_F32] = "f32" };

struct tally { int items, same[3]; double worst[3]; };

static size_t best_of(const float *logits, size_t n, double *ret_margin)
{
    size_t best = 0;
    float second = -INFINITY;

    for (size_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) {
            second = logits[best];
            best = i;
        } else {
            second = fmaxf(second, logits[i]);
        }
    *ret_margin = (double)(logits[best] - second);
    return best;
}

/* Greedy ids behind the prompt, and how clear each choice was. */
static size_t answer(struct nano *n, enum kv_type type, const int32_t *ids, size_t len, int32_t out[MAX_NEW],
                     double margins[MAX_NEW])
{
    size_t made = 0;

    session_free(n->session);
    kv_pool_free(n->kv);
    cr_assert_eq(kv_pool_new(&n->kv, n->model, type, 0, NULL), 0);
    cr_assert_eq(session_new(&n->session, n->kv, 0), 0);
    nano_feed(n, ids, len);
    while (made < MAX_NEW) {
        out[made] = (int32_t)best_of(n->logits, n->model->n_vocab, &margins[made]);
        made++;
        if (tokenizer_is_end(n->model->tokenizer, out[made - 1]))
            break;
        nano_feed(n, &out[made - 1], 1);
    }
    return made;
}

static void compare(struct nano *n, const int32_t *ids, size_t len, struct tally *t)
{
    int32_t want[MAX_NEW], got[MAX_NEW];
    double clear[MAX_NEW], ignored[MAX_NEW];
    size_t n_want = answer(n, KV_F32, ids, len, want, clear);

    t->items++;
    for (enum kv_type type = KV_F16; type < KV_F32; type++) {
        size_t n_got = answer(n, type, ids, len, got, ignored), at = 0;

        while (at < MIN(n_want, n_got) && got[at] == want[at])
            at++;
        if (at == n_want) {
            t->same[type]++;
            continue;
        }
        t->worst[type] = fmax(t->worst[type], clear[at]);
        cr_expect_lt(clear[at], close_call[type], "%s, item %d: token %zu was clear by %g", names[type], t->items, at, clear[at]);
    }
}

static void report(const struct tally *t, const char *name)
{
    for (enum kv_type type = KV_F16; type < KV_F32; type++)
        printf("%s, %s: %d of %d answers are the same; the others part where two tokens are %.2g apart at most\n", name,
               names[type], t->same[type], t->items, t->worst[type]);
}

Test(kv, shipped_model)
{
    size_t size, line = 0;
    cleanup(freep) uint8_t *text = read_below("TERN_SHARED", "nano/evaluation.jsonl", &size);
    struct tally t = {0};
    struct nano n;

    if (!text)
        cr_skip_test("the shared files have no nano/evaluation.jsonl");
    nano_init(&n);
    for (char *s = strtok((char *)text, "\n"); s; s = strtok(NULL, "\n"), line++) {
        cleanup(json_decrefp) json_t *item = line % 71 ? NULL : json_parse(s, strlen(s), NULL), *messages = NULL;
        cleanup(tokens_done) struct tokens ids = {0};
        struct err err = {0};

        if (!item)
            continue;
        messages = json_pack("[{s:s, s:O}]", "role", "user", "content", json_object_get(item, "prompt"));
        cr_assert_eq(template_render(n.model->template, n.model->tokenizer, messages, &ids, &err), 0, "%s", err.msg);
        compare(&n, ids.ids, ids.len, &t);
    }
    report(&t, "tern-nano");
    cr_expect_geq(t.items, 80);
    cr_expect_geq(t.same[KV_F16] * 100, t.items * 98);
    cr_expect_geq(t.same[KV_INT8] * 100, t.items * 95);
    nano_done(&n);
}

/* Few and long answers, of models that close in on nothing: they part somewhere more often than not. */
static void check_bitllama2(const char *name, const char *weights_name)
{
    size_t n_weights, n_tokens, n_golden, size, i;
    cleanup(freep) uint8_t *weights = read_below("TERN_SHARED", weights_name, &n_weights);
    cleanup(freep) uint8_t *tokens = read_below("TERN_SHARED", "data/bitllama2/tok512.bin", &n_tokens);
    cleanup(freep) uint8_t *text = read_below("TERN_SHARED", "data/bitllama2/golden.json", &n_golden), *file = NULL;
    cleanup(json_decrefp) json_t *golden = NULL;
    struct tally t = {0};
    struct err err = {0};
    json_t *prompt;
    struct nano n;

    if (!weights || !tokens || !text)
        cr_skip_test("the shared files have no data/bitllama2");
    nano_init(&n);
    model_free(n.model);
    forward_free(n.forward);
    free(n.logits);
    file = bitllama2_file(weights, tokens, &size);
    cr_assert_eq(model_open_memory(&n.model, file, size, NULL, &err), 0, "%s", err.msg);
    cr_assert_eq(forward_new(&n.forward, n.model, n.pool, BATCH, &err), 0);
    n.logits = malloc(n.model->n_vocab * sizeof(float));
    golden = json_parse(text, n_golden, NULL);
    json_array_foreach(json_object_get(golden, name), i, prompt) {
        const json_t *list = json_object_get(prompt, "prompt_ids");
        int32_t ids[64];

        cr_assert_leq(json_array_size(list), ARRAY_SIZE(ids));
        for (size_t k = 0; k < json_array_size(list); k++)
            ids[k] = (int32_t)json_integer_value(json_array_get(list, k));
        compare(&n, ids, json_array_size(list), &t);
    }
    report(&t, name);
    cr_expect_eq(t.items, 3);
    nano_done(&n);
}

Test(kv, bit1M)
{
    check_bitllama2("bit1M", "data/bitllama2/bit1M.msb.bin");
}

Test(kv, bit3M)
{
    check_bitllama2("bit3M", "data/bitllama2/bit3M.msb.bin");
}
