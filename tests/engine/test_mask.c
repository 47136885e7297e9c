/* Held to a schema, whatever the model says parses and is valid: made-up schemas, the shipped model at
 * temperature 1. */
#include <errno.h>
#include <math.h>
#include <time.h>

#include "engine/mask.h"
#include "tests/engine/nano.h"
#include "tests/engine/schemas.h"
#include "tests/engine/vocab.h"

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Every token, one by one, against the set. How many are missing may be up to a thousandth: of those of 64 characters
 * and more, where not so many may follow. */
static void compare(struct mask *m, const uint64_t *set, const struct lexicon *l)
{
    size_t wrong = 0, missing = 0;

    for (size_t i = 0; i < l->n; i++) {
        size_t len;
        const char *s = tokenizer_piece(l->tokenizer, (int32_t)i, &len);
        bool allowed = tokenizer_is_end(l->tokenizer, (int32_t)i) ? mask_may_end(m) : len && mask_reads(m, s, len);
        bool is_set = set[i / 64] >> i % 64 & 1;
        wrong += is_set && !allowed;
        missing += allowed && !is_set;
    }
    cr_expect_eq(wrong, 0);
    cr_expect(missing <= l->n / 1000 && (missing == 0 || l->longest >= LEXICON_CHARACTERS), "%zu missing", missing);
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
        if (r->tokens % 37 == 0) {
            r->compared++;
            compare(m, mask_allowed(m, 1 << 20), r->lexicon);
            set = mask_allowed(m, budget);
        }
        sampler_pick(sampler, r->nano.logits, set, &t);
        id = (int32_t)t.id;
        cr_assert(set[id / 64] >> id % 64 & 1);
        if (tokenizer_is_end(r->nano.model->tokenizer, id))
            break;
        piece = tokenizer_piece(r->nano.model->tokenizer, id, &len);
        cr_assert_eq(buf_append(&text, piece, len), 0);
        start = now();
        cr_assert_eq(mask_accept(m, piece, len), 0);
        r->mask_sec += now() - start;
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
    printf("%zu schemas: %zu refused, %zu finished, %zu cut off, %zu invalid; %zu tokens,"
     " mask %.1f us a token (%.1f %% of "
           "the model's %.2f ms), slowest %.2f ms; %zu sets compared\n", r.n_schemas, r.refused, r.finished, r.cut,
               r.invalid,
           r.tokens, r.mask_sec / (double)r.tokens * 1e6, 100 * r.mask_sec / r.model_sec,
           r.model_sec / (double)r.tokens * 1e3, r.slowest * 1e3, r.compared);
    cr_expect_eq(r.invalid, 0);
    cr_expect_gt(r.finished * 10, n * 8);
    if (r.out)
        fclose(r.out);
    lexicon_free(r.lexicon);
    nano_done(&r.nano);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* A vocabulary of 128,256: what building its tree costs, and each set on the way of a document as models write them. */
Test(mask, large_vocabulary, .timeout = 120)
{
    static const char text[] =
        "{\"orders\":[{\"id\":10482,\"customer\":{\"name\":\"Mar\xc3\xad" "a Garc\xc3\xad" "a\","
        "\"email\":\"maria@example.org\","
        "\"vip\":true},\"note\":\"Please leave the parcel with the neighbour on the second floor; she is "
        "\\\"always\\\" at home "
        "before ten.\",\"total\":129.95,\"placed\":\"2024-02-29T10:11:12Z\",\"tags\":[\"gift\",\"express\","
        "\"fragile\"]},"
        "{\"id\":10483,\"customer\":{\"name\":\"Li Wei\",\"email\":null,\"vip\":false},\"note\":\"\",\"total\":7,"
        "\"placed\":\"2024-03-01T00:00:00+01:00\",\"tags\":[]}],\"next\":null,\"free\":{\"any\":[1,{\"x\":\"y\"}]}}";
    static const char schema_text[] =
        "{'type':'object','properties':{'orders':{'type':'array','items':{'type':'object','properties':{"
        "'id':{'type':'integer','minimum':1},'customer':{'type':'object','properties':{'name':{'type':'string'},"
        "'email':{'type':['string','null']},'vip':{'type':'boolean'}},'required':['name','email','vip']},"
        "'note':{'type':'string','maxLength':200},'total':{'type':'number','minimum':0},"
        "'placed':{'type':'string','format':'date-time'},'tags':{'type':'array','items':{'type':'string'}}},"
        "'required':['id','customer','note','total','placed','tags']}},"
        "'next':{'anyOf':[{'type':'null'},{'$ref':'#'}]},'free':{'type':'object'}},'required':['orders','next']}";
    struct tokenizer *t = vocab_llama3(true, NULL);
    cleanup(lexicon_freep) struct lexicon *l = NULL;
    cleanup(grammar_freep) struct grammar *g = NULL;
    cleanup(mask_freep) struct mask *m = NULL;
    cleanup(tokens_done) struct tokens ids = { 0 };
    cleanup(json_decrefp) json_t *schema = NULL;
    char *quoted = strdup(schema_text);
    double start, build, compile, spent[512], sum = 0;
    struct err err = { "" };

    if (!t)
        cr_skip_test("no Llama 3 vocabulary under $TERN_SHARED");
    for (char *p = quoted; (p = strchr(p, '\''));)
        *p = '"';
    schema = json_parse(quoted, strlen(quoted), &err);
    free(quoted);
    cr_assert(schema, "%s", err.msg);
    start = now();
    cr_assert_eq(lexicon_new(&l, t), 0);
    build = now() - start;
    start = now();
    cr_assert_eq(schema_compile(&g, schema, l, &err), 0, "%s", err.msg);
    cr_assert_eq(mask_new(&m, g, l), 0);
    compile = now() - start;
    cr_assert_eq(tokenizer_encode(t, text, strlen(text), false, &ids), 0);
    cr_assert(ids.len < ARRAY_SIZE(spent));
    for (size_t i = 0; i < ids.len; i++) {
        int32_t id = ids.ids[i];
        const uint64_t *set;
        const char *s;
        size_t len;

        start = now();
        set = mask_allowed(m, 4000);
        spent[i] = now() - start;
        sum += spent[i];
        s = tokenizer_piece(t, id, &len);
        cr_assert(set && set[id / 64] >> id % 64 & 1, "%.*s is not allowed", (int)len, s);
        if (i % 16 == 0)
            compare(m, set, l);
        cr_assert_eq(mask_accept(m, s, len), 0);
    }
    cr_expect(mask_whole(m));
    qsort(spent, ids.len, sizeof(*spent), by_size);
    printf("%zu tokens: tree %.0f ms, schema %.2f ms; a set of %zu tokens: mean %.0f us, median %.0f, 99th %.0f,"
     " most %.0f\n",
           l->n, build * 1e3, compile * 1e3, ids.len, sum / (double)ids.len * 1e6, spent[ids.len / 2] * 1e6,
           spent[ids.len * 99 / 100] * 1e6, spent[ids.len - 1] * 1e6);
    tokenizer_free(t);
}
