/* Held to a schema, whatever the model says parses and is valid: made-up schemas, the shipped model at temperature 1. */
#include <errno.h>
#include <math.h>
#include <time.h>

#include "engine/mask.h"
#include "tests/engine/nano.h"
#include "tests/engine/schemas.h"

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Every token, one by one, against the set. Returns how many differ. */
static size_t compare(struct mask *m, const uint64_t *set, const struct lexicon *l)
{
    size_t wrong = 0;

    for (size_t i = 0; i < l->n; i++) {
        size_t len;
        const char *s = tokenizer_piece(l->tokenizer, (int32_t)i, &len);
        bool allowed = tokenizer_is_end(l->tokenizer, (int32_t)i) ? mask_may_end(m) : len && mask_reads(m, s, len);
        wrong += allowed != (bool)(set[i / 64] >> i % 64 & 1);
    }
    return wrong;
}

struct run {
    struct nano nano;
    struct lexicon *lexicon;
    size_t n_schemas, refused, finished, cut, invalid, tokens, compared, n_slow;
    double mask_sec, model_sec, slowest;
    FILE *out;
};

/* One answer by the schema. */
static void answer(struct run *r, const json_t *schema, uint64_t seed, size_t budget)
{
    struct chat_params params = { .temperature = 1, .top_p = NAN, .min_p = NAN, .frequency_penalty = NAN,
                                  .presence_penalty = NAN, .repeat_penalty = NAN, .top_k = -1, .seed = (int64_t)seed };
    cleanup(grammar_freep) struct grammar *g = NULL;
    cleanup(mask_freep) struct mask *m = NULL;
    cleanup(tokens_done) struct tokens ids = { 0 };
    cleanup(json_decrefp) json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", "json please");
    cleanup(json_decrefp) json_t *got = NULL;
    cleanup(buf_done) struct buf text;
    struct sampler *sampler;
    struct err err = { "" };
    bool payable;
    int x = schema_compile(&g, schema, r->lexicon, &err);

    r->n_schemas++;
    if (x < 0) {
        cr_expect_eq(x, -EINVAL);
        cr_expect(*err.msg);
        r->refused++;
        return;
    }
    payable = g->nodes[g->root].price <= budget;
    buf_init(&text, 1 << 20);
    cr_assert_eq(mask_new(&m, g, r->lexicon), 0);
    cr_assert_eq(sampler_new(&sampler, &params, r->nano.model->n_vocab), 0);
    cr_assert_eq(template_render(r->nano.model->template, r->nano.model->tokenizer, messages, &ids, &err), 0);
    session_reset(r->nano.session, 0);
    nano_feed(&r->nano, ids.ids, ids.len);
    while (budget && !mask_whole(m)) {
        struct engine_token t = { 0 };
        double start = now(), end;
        const uint64_t *set = mask_allowed(m, budget);
        const char *piece;
        size_t len;
        int32_t id;

        end = now();
        r->mask_sec += end - start;
        r->slowest = fmax(r->slowest, end - start);
        cr_assert(set, "nothing may follow %s", text.len ? (char *)text.data : "");
        if (r->tokens % 37 == 0 && budget > 100) {
            r->compared++;
            cr_expect_eq(compare(m, set, r->lexicon), 0);
        }
        sampler_pick(sampler, r->nano.logits, set, &t);
        id = (int32_t)t.id;
        cr_assert(set[id / 64] >> id % 64 & 1);
        if (tokenizer_is_end(r->nano.model->tokenizer, id))
            break;
        piece = tokenizer_piece(r->nano.model->tokenizer, id, &len);
        cr_assert_eq(buf_append(&text, piece, len), 0);
        cr_assert_eq(mask_accept(m, piece, len), 0);
        budget--;
        r->tokens++;
        start = now();
        if (budget && !mask_whole(m))
            nano_feed(&r->nano, &id, 1);
        r->model_sec += now() - start;
    }
    sampler_free(sampler);
    if (!mask_may_end(m)) {
        r->cut++;
        cr_expect(!payable, "cut off though it could be paid: %s", (char *)text.data);
        return;
    }
    r->finished++;
    got = json_parse(text.data, text.len, &err);
    if (!got)                         /* an object of any keys may have one of them twice */
        got = json_loadb((char *)text.data, text.len, JSON_DECODE_ANY, NULL);
    if (!got || !schema_holds(schema, schema, got)) {
        cleanup(freep) char *s = json_dumps(schema, JSON_COMPACT);
        r->invalid++;
        cr_expect_fail("%s\nis not valid by\n%s", (char *)text.data, s);
    }
    if (r->out) {
        cleanup(json_decrefp) json_t *line = json_pack("{s:O, s:s%}", "schema", schema, "text", text.data, text.len);
        json_dumpf(line, r->out, JSON_COMPACT);
        fputc('\n', r->out);
    }
}

/* $TERN_SCHEMAS: how many; $TERN_SCHEMAS_OUT: a file for what was answered, for other validators. */
Test(mask, made_up_schemas, .timeout = 3000)
{
    const char *count = getenv("TERN_SCHEMAS"), *path = getenv("TERN_SCHEMAS_OUT");
    size_t n = count ? strtoul(count, NULL, 10) : 100;
    struct run r = { .out = path ? fopen(path, "w") : NULL };

    nano_init(&r.nano);
    cr_assert_eq(lexicon_new(&r.lexicon, r.nano.model->tokenizer), 0);
    for (size_t i = 0; i < n; i++) {
        cleanup(json_decrefp) json_t *schema = schema_make(i);
        answer(&r, schema, i, count ? 20 + i * 7919 % 380 : 20 + i * 7919 % 100);
    }
    printf("%zu schemas: %zu refused, %zu finished, %zu cut off, %zu invalid; %zu tokens, mask %.1f us a token (%.1f %% of "
           "the model's %.2f ms), slowest %.2f ms; %zu sets compared\n", r.n_schemas, r.refused, r.finished, r.cut, r.invalid,
           r.tokens, r.mask_sec / (double)r.tokens * 1e6, 100 * r.mask_sec / r.model_sec,
           r.model_sec / (double)r.tokens * 1e3, r.slowest * 1e3, r.compared);
    cr_expect_eq(r.invalid, 0);
    cr_expect_gt(r.finished * 10, n * 8);
    if (r.out)
        fclose(r.out);
    lexicon_free(r.lexicon);
    nano_done(&r.nano);
}
