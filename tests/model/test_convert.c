/* synth and convert: every ternary type from every other with the same trits and the same logits to the bit, and what a
 * type cannot hold refused. */
#include <criterion/criterion.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include "engine/gguf_write.h"
#include "engine/source.h"
#include "model/pack.h"
#include "model/tool.h"

#define MAX_ARGS 12
#define N_TOKENS 9
#define GOLDEN_TINY "sha256:b88b43ab1a1312f4265eaafe50d046f80102f4f2fe4e2f5f4cf464d3f12d6e47"

static const char *const types[] = { "i2_s", "tq1_0", "tq2_0", "iq1_bn", "iq2_bn" };
static char folder[] = "/tmp/tern-model-XXXXXX";

static void make_folder(void)
{
    cr_assert_not_null(mkdtemp(folder));
}

static void remove_folder(void)
{
    char command[64];

    snprintf(command, sizeof(command), "rm -r %s", folder);
    cr_expect_eq(system(command), 0);
}

TestSuite(convert, .init = make_folder, .fini = remove_folder);

/* "@" begins each name of a file in the folder. */
static int run(const struct verb *v, const char *words)
{
    char copy[512], paths[MAX_ARGS][128], *argv[MAX_ARGS + 1] = { (char *)v->name }, *save;
    int argc = 1;

    snprintf(copy, sizeof(copy), "%s", words);
    for (char *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
        cr_assert_lt(argc, MAX_ARGS);
        snprintf(paths[argc], sizeof(paths[argc]), *w == '@' ? "%s/" : "", folder);
        snprintf(paths[argc] + strlen(paths[argc]), 64, "%s", *w == '@' ? w + 1 : w);
        argv[argc] = paths[argc];
        argc++;
    }
    optind = 0;
    return v->run(argc, argv);
}

static const char *path_of(const char *name)
{
    static char path[2][128];
    static int turn;

    turn = !turn;
    snprintf(path[turn], sizeof(path[turn]), "%s/%s", folder, name);
    return path[turn];
}

static void digest_of(const char *name, char ret[80])
{
    cleanup(source_freep) struct source *s = NULL;
    struct err err = {0};

    cr_assert_eq(source_open(&s, path_of(name), &err), 0, "%s: %s", name, err.msg);
    cr_assert_eq(source_digest(s, ret), 0);
}

static void check_same_file(const char *a, const char *b)
{
    char da[80], db[80];

    digest_of(a, da);
    digest_of(b, db);
    cr_expect_str_eq(da, db, "%s and %s", a, b);
}

/* The logits of the last of a few tokens; freed by the caller. */
static float *logits_of(const char *name, size_t *ret_n)
{
    struct forward_row rows[N_TOKENS];
    struct forward *forward = NULL;
    struct session *session = NULL;
    struct kv_pool *kv = NULL;
    struct model *model = NULL;
    struct pool *pool = NULL;
    struct err err = {0};
    float *logits;

    cr_assert_eq(model_open(&model, path_of(name), NULL, &err), 0, "%s: %s", name, err.msg);
    cr_assert_eq(pool_new(&pool, 1), 0);
    cr_assert_eq(forward_new(&forward, model, pool, N_TOKENS, &err), 0);
    cr_assert_eq(kv_pool_new(&kv, model, KV_F32, 0, &err), 0);
    cr_assert_eq(session_new(&session, kv, 0), 0);
    logits = calloc(model->n_vocab, sizeof(*logits));
    for (int i = 0; i < N_TOKENS; i++)
        rows[i] = (struct forward_row){ .session = session, .token = 31 * i + 5,
                                        .logits = i + 1 == N_TOKENS ? logits : NULL };
    cr_assert_eq(forward_run(forward, rows, N_TOKENS), 0);
    *ret_n = model->n_vocab;
    session_free(session);
    kv_pool_free(kv);
    forward_free(forward);
    pool_free(pool);
    model_free(model);
    return logits;
}

static void check_same_logits(const char *a, const char *b)
{
    size_t na, nb;
    cleanup(freep) float *la = logits_of(a, &na), *lb = logits_of(b, &nb);
    float widest = 0;

    cr_assert_eq(na, nb);
    for (size_t i = 0; i < na; i++)
        widest = MAX(widest, la[i] * la[i]);
    cr_expect_gt(widest, 1, "logits of %s are wide enough to differ", a);
    cr_expect_lt(widest, 900);
    cr_expect_eq(memcmp(la, lb, na * sizeof(*la)), 0, "logits of %s and %s", a, b);
}

Test(convert, every_type_from_every_other)
{
    char words[128], from[32], to[64], first[64];

    for (size_t a = 0; a < ARRAY_SIZE(types); a++) {
        snprintf(words, sizeof(words), "--shape tiny --seed 7 --type %s @%s", types[a], types[a]);
        cr_assert_eq(run(&synth_verb, words), TOOL_OK);
        if (a)
            check_same_logits(types[0], types[a]);
    }
    for (size_t b = 0; b < ARRAY_SIZE(types); b++)
        for (size_t a = 0; a < ARRAY_SIZE(types); a++) {
            snprintf(from, sizeof(from), "%s", types[a]);
            snprintf(to, sizeof(to), "%s-%s", types[a], types[b]);
            snprintf(words, sizeof(words), "--type %s @%s @%s", types[b], from, to);
            cr_assert_eq(run(&convert_verb, words), TOOL_OK);
            if (a == 0) {
                snprintf(first, sizeof(first), "%s", to);
                check_same_logits(types[0], to);
            } else {
                check_same_file(first, to);
            }
        }
}

Test(convert, embeddings)
{
    static const char *const exact[] = { "f32" }, *const rounded[] = { "bf16", "q8_0", "q6_k", "q5_0", "q4_0" };
    char words[128];
    size_t n;

    cr_assert_eq(run(&synth_verb, "--shape tiny --vocab 300 @in"), TOOL_OK);
    for (size_t i = 0; i < ARRAY_SIZE(exact); i++) {
        snprintf(words, sizeof(words), "--embedding %s @in @out", exact[i]);
        cr_assert_eq(run(&convert_verb, words), TOOL_OK);
        check_same_logits("in", "out");
    }
    for (size_t i = 0; i < ARRAY_SIZE(rounded); i++) {
        cleanup(freep) float *want = logits_of("in", &n), *got = NULL;
        double off = 0, all = 0;

        snprintf(words, sizeof(words), "--embedding %s @in @%s", rounded[i], rounded[i]);
        cr_assert_eq(run(&convert_verb, words), TOOL_OK);
        got = logits_of(rounded[i], &n);
        for (size_t k = 0; k < n; k++) {
            off += (double)(got[k] - want[k]) * (double)(got[k] - want[k]);
            all += (double)want[k] * (double)want[k];
        }
        cr_expect_lt(off, all * 0.05, "%s: %g of %g", rounded[i], off, all);
        cr_expect_gt(off, 0);
    }
}

/* The file `from` with its ternary weights as the floats of masters, or as IQ2_BN whose odd rows have twice the
 * scale. */
static void write_other(const char *from, const char *to, bool masters)
{
    cleanup(gguf_writer_freep) struct gguf_writer *w = NULL;
    cleanup(source_freep) struct source *s = NULL;
    struct gguf_string name, whole;
    struct err err = {0};

    cr_assert_eq(source_open(&s, path_of(from), &err), 0, "%s", err.msg);
    cr_assert_eq(gguf_writer_new(&w), 0);
    for (size_t i = 0; (whole = gguf_key_at(source_keys(s), i, &name)).data; i++)
        gguf_write_key(w, whole);
    for (size_t i = 0; i < source_tensor_count(s); i++) {
        const struct source_tensor *t = source_tensor_at(s, i);
        char text[65];

        snprintf(text, sizeof(text), "%.*s", (int)t->name.len, t->name.data);
        gguf_write_tensor(w, text, is_projection(t->name) && masters ? TENSOR_F32 : t->type, t->dims[0], t->dims[1]);
    }
    cr_assert_eq(gguf_writer_begin(w, path_of(to), &err), 0, "%s", err.msg);
    for (size_t i = 0; i < source_tensor_count(s); i++) {
        const struct source_tensor *t = source_tensor_at(s, i);
        cleanup(freep) uint8_t *rows = NULL;

        if (!is_projection(t->name)) {
            cr_assert_eq(gguf_write_data(w, t->data, t->bytes, &err), 0);
            continue;
        }
        rows = malloc(t->dims[0] * t->dims[1] * 4);
        if (masters) {
            for (size_t e = 0; e < t->dims[0] * t->dims[1]; e++)
                ((float *)rows)[e] = (float)(int)((e * 2654435761u + i) % 2001) / 1000 - 1;
            cr_assert_eq(gguf_write_data(w, rows, t->dims[0] * t->dims[1] * 4, &err), 0);
        } else {
            memcpy(rows, t->data, t->bytes);
            for (size_t r = 1; r < t->dims[1]; r += 2) {
                float d;

                memcpy(&d, rows + r * (4 + t->dims[0] / 4), sizeof(d));
                d *= 2;
                memcpy(rows + r * (4 + t->dims[0] / 4), &d, sizeof(d));
            }
            cr_assert_eq(gguf_write_data(w, rows, t->bytes, &err), 0);
        }
    }
    cr_assert_eq(gguf_writer_end(w, &err), 0);
}

static bool exists(const char *name)
{
    return !access(path_of(name), F_OK);
}

/* The mean magnitude of a master is no 16-bit number: refused where there are 16 bits, exact beside the weights. */
Test(convert, masters)
{
    cr_assert_eq(run(&synth_verb, "--shape tiny @tiny"), TOOL_OK);
    write_other("tiny", "masters", true);
    cr_expect_eq(run(&convert_verb, "--type tq2_0 @masters @no"), TOOL_FAILED);
    cr_expect(!exists("no") && !exists("no.unfinished"));
    cr_expect_eq(run(&convert_verb, "@masters @i2_s"), TOOL_OK);
    check_same_logits("masters", "i2_s");
    cr_expect_eq(run(&convert_verb, "--type iq2_bn @masters @iq2_bn"), TOOL_OK);
    check_same_logits("masters", "iq2_bn");
    cr_expect_eq(run(&convert_verb, "--type tq1_0 --scale-tensors @masters @tq1_0"), TOOL_OK);
    check_same_logits("masters", "tq1_0");
    cr_expect_eq(run(&convert_verb, "--type iq1_bn @tq1_0 @iq1_bn"), TOOL_OK);
    check_same_logits("masters", "iq1_bn");
}

Test(convert, scales_of_rows)
{
    cr_assert_eq(run(&synth_verb, "--shape tiny --type iq2_bn @tiny"), TOOL_OK);
    write_other("tiny", "rows", false);
    cr_expect_eq(run(&convert_verb, "--type i2_s @rows @no"), TOOL_FAILED);
    cr_expect_eq(run(&convert_verb, "--type i2_s --scale-tensors @rows @no"), TOOL_FAILED);
    cr_expect(!exists("no"));
    cr_expect_eq(run(&convert_verb, "--type tq1_0 @rows @tq1_0"), TOOL_OK);
    check_same_logits("rows", "tq1_0");
    cr_expect_eq(run(&convert_verb, "--type iq2_bn @tq1_0 @back"), TOOL_OK);
    check_same_logits("rows", "back");
}

Test(convert, synth_by_seed)
{
    char tiny[80], other[80];

    cr_assert_eq(run(&synth_verb, "--shape tiny @a"), TOOL_OK);
    cr_assert_eq(run(&synth_verb, "--shape TINY --seed 0 --type I2_S --embedding f16 @b"), TOOL_OK);
    cr_assert_eq(run(&synth_verb, "--shape tiny --seed 1 @c"), TOOL_OK);
    check_same_file("a", "b");
    digest_of("a", tiny);
    digest_of("c", other);
    cr_expect_str_neq(tiny, other);
    cr_expect_str_eq(tiny, GOLDEN_TINY);
}

/* All the layer kinds that shapes have: widths that are no multiple of 128, heads of 100, heads wider than the
 * model. */
Test(convert, shapes)
{
    static const char *const shapes[] = { "125m", "large", "3b", "falcon3-1b" };
    char words[128];

    for (size_t i = 0; i < ARRAY_SIZE(shapes); i++) {
        snprintf(words, sizeof(words), "--shape %s --layers 1 --vocab 300 @a", shapes[i]);
        cr_assert_eq(run(&synth_verb, words), TOOL_OK);
        cr_assert_eq(run(&convert_verb, "--type iq2_bn @a @b"), TOOL_OK);
        check_same_logits("a", "b");
    }
}

Test(convert, wrong_usage)
{
    cr_expect_eq(run(&synth_verb, "@a"), TOOL_USAGE);
    cr_expect_eq(run(&synth_verb, "--shape huge @a"), TOOL_USAGE);
    cr_expect_eq(run(&synth_verb, "--shape tiny --type f16 @a"), TOOL_USAGE);
    cr_expect_eq(run(&synth_verb, "--shape tiny --embedding i2_s @a"), TOOL_USAGE);
    cr_expect_eq(run(&synth_verb, "--shape tiny --vocab 10 @a"), TOOL_USAGE);
    cr_expect_eq(run(&synth_verb, "--shape tiny --seed -1 @a"), TOOL_USAGE);
    cr_expect_eq(run(&synth_verb, "--shape 3b --layers 1 --type tq2_0 --vocab 300 @a"),
                 TOOL_FAILED);   /* 8640 = 33.75 * 256 */
    cr_expect_eq(run(&convert_verb, "@a"), TOOL_USAGE);
    cr_expect_eq(run(&convert_verb, "@a @b"), TOOL_FAILED);
    cr_expect_eq(run(&convert_verb, "--i2s-layout d @a @b"), TOOL_USAGE);
    cr_expect(!exists("a") && !exists("a.unfinished") && !exists("b"));
}
