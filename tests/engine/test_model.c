/* Opening models: what is taken, with what sizes, and what is refused in which words. */
#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <unistd.h>
#include "tests/engine/gguf_write.h"
#include "tests/engine/read_file.h"

static struct model *open_tiny(const struct tiny *spec, uint8_t **ret_file)
{
    struct model *m = NULL;
    struct err err = {0};
    size_t size;

    *ret_file = tiny_file(spec, &size);
    cr_assert_eq(model_open_memory(&m, *ret_file, size, NULL, &err), 0, "%s", err.msg);
    return m;
}

Test(model, nano)
{
    cleanup(model_freep) struct model *m = NULL;
    cleanup(freep) uint8_t *file = NULL;
    struct err err = {0};
    char path[4096];
    size_t size;

    snprintf(path, sizeof(path), "%s/models/tern-nano.gguf", getenv("TERN_SOURCE") ?: ".");
    cr_assert_eq(model_open(&m, path, NULL, &err), 0, "%s", err.msg);
    cr_expect_str_eq(m->architecture, "bitnet-b1.58");
    cr_expect(m->n_embd == 256 && m->n_ff == 768 && m->n_layer == 4 && m->n_head == 4 && m->n_kv == 2 && m->head_dim == 64);
    cr_expect(m->n_vocab == 2048 && m->n_ctx == 512 && m->rope_dim == 64 && m->rope_half && m->act == ACT_RELU2);
    cr_expect(strcmp(m->template, "bitnet") == 0 && m->embd.type == TENSOR_F16 && m->head.w == m->embd.w);
    cr_expect(m->layers[3].ffn_sub_norm && m->layers[0].attn_sub_norm);

    /* sha256sum models/tern-nano.gguf */
    file = read_below("TERN_SOURCE", "models/tern-nano.gguf", &size);
    cr_expect_eq(m->file_bytes, size);
    cr_expect_str_eq(m->digest, "sha256:709b987cc13f78896533433accd15865ea4e5aaa3c2e2e62dc516fc43a2a3353");
}

Test(model, file_errors_name_the_path)
{
    struct model *m = NULL;
    struct err err = {0};

    cr_assert_eq(model_open(&m, "/nonexistent/model.gguf", NULL, &err), -ENOENT);
    cr_assert(strstr(err.msg, "/nonexistent/model.gguf"));
    cr_assert_eq(model_open(&m, "/", NULL, &err), -EINVAL);
    cr_assert_eq(model_open(&m, "/dev/null", NULL, &err), -EINVAL);
    cr_assert_null(m);
}

/* Ternary weights as loaded are the trits as written, also where blocks straddle rows, in both types. */
static void check_trits(const struct tiny *spec)
{
    cleanup(freep) uint8_t *file = NULL;
    cleanup(model_freep) struct model *m = open_tiny(spec, &file);
    const struct { const char *name; const struct ternary *w; } matrices[] = {
        { "blk.1.attn_k.weight", &m->layers[1].k }, { "blk.0.ffn_down.weight", &m->layers[0].down },
        { "blk.1.ffn_up.weight", &m->layers[1].up }, { "blk.0.attn_output.weight", &m->layers[0].o },
    };

    for (size_t i = 0; i < ARRAY_SIZE(matrices); i++) {
        const struct ternary *w = matrices[i].w;
        uint64_t seed = tiny_seed(matrices[i].name);
        cleanup(freep) int8_t *t = malloc(w->padded);

        cr_assert_eq(w->scale, 0.0625f);
        cr_assert(w->padded % 128 == 0 && w->padded >= w->cols && w->padded < w->cols + 128);
        for (size_t r = 0; r < w->rows; r++) {
            w->layout->row(t, w->w, r, w->padded);
            for (size_t c = 0; c < w->padded; c++)
                cr_assert_eq(t[c], c < w->cols ? (int)(tiny_random_of(seed, r * w->cols + c) % 3) - 1 : 0, "%s row %zu column %zu",
                             matrices[i].name, r, c);
        }
    }
}

Test(model, trits)
{
    struct tiny whole = TINY, straddling = TINY, scaled = TINY, blocks = TINY;

    check_trits(&whole);
    straddling.n_ff = 172;
    straddling.head_dim = 40;           /* attention is 160 wide */
    check_trits(&straddling);
    blocks.ternary = TENSOR_TQ2_0;
    check_trits(&blocks);
    scaled.scale_tensors = true;
    check_trits(&scaled);
}

Test(model, whole_blocks_are_not_copied)
{
    struct tiny spec = TINY;
    cleanup(freep) uint8_t *file = NULL;
    cleanup(model_freep) struct model *m = NULL;

    setenv("TERN_CPU", "ref", true);         /* whose layout is the file's; a test is a process */
    m = open_tiny(&spec, &file);
    cr_assert(m->layers[0].q.w > file && m->layers[0].q.w < file + m->file_bytes);
}

Test(model, graphs)
{
    static const struct { const char *architecture, *vocabulary; enum ffn_act act; bool sub_norms, half; } graphs[] = {
        { "bitnet-b1.58", "gpt2", ACT_RELU2, true, true }, { "bitnet-b1.58", "llama", ACT_SILU, true, true },
        { "bitnet-25", "gpt2", ACT_RELU2, true, true },    { "bitnet", "llama", ACT_SILU, true, true },
        { "llama", "gpt2", ACT_SILU, false, false },
    };

    for (size_t i = 0; i < ARRAY_SIZE(graphs); i++) {
        struct tiny spec = TINY;
        cleanup(freep) uint8_t *file = NULL;
        cleanup(model_freep) struct model *m = NULL;

        spec.architecture = graphs[i].architecture;
        spec.vocabulary = graphs[i].vocabulary;
        m = open_tiny(&spec, &file);
        cr_expect_eq(m->act, graphs[i].act, "%zu", i);
        cr_expect_eq(m->rope_half, graphs[i].half);
        cr_expect_eq(!!m->layers[0].attn_sub_norm, graphs[i].sub_norms);
        cr_expect_eq(!!m->layers[1].ffn_sub_norm, graphs[i].sub_norms);
        cr_expect_str_eq(m->architecture, graphs[i].architecture);
        cr_expect_str_eq(m->name, "tiny-model");
    }
}

/* ---- refusals --------------------------------------------------------------------------------------------------- */

static void expect_refused(const uint8_t *file, size_t size, const char *says)
{
    struct model *m = NULL;
    struct err err = {0};
    int r = model_open_memory(&m, file, size, NULL, &err);

    cr_expect_eq(r, -EINVAL, "%s: %d", says, r);
    cr_expect(strstr(err.msg, says), "wanted %s, says: %s", says, err.msg);
    model_free(r < 0 ? NULL : m);
}

static void expect_spec_refused(struct tiny spec, const char *says)
{
    size_t size;
    cleanup(freep) uint8_t *file = tiny_file(&spec, &size);

    expect_refused(file, size, says);
}

#define REFUSED(words, ...) do { struct tiny spec = TINY; __VA_ARGS__; expect_spec_refused(spec, words); } while (0)

Test(model, refuses_specifications)
{
    REFUSED("general.architecture", spec.architecture = "gemma2");
    REFUSED("tokenizer.ggml.model", spec.vocabulary = "wordpiece");
    REFUSED("context_length", spec.n_ctx = 0);
    REFUSED("block_count", spec.n_layer = 0);
    REFUSED("attention can have", spec.n_head = 4, spec.n_kv = 3);
    REFUSED("head_count_kv", spec.n_kv = 8);
    REFUSED("attention can have", spec.head_dim = 63);
    REFUSED("blk.1.ffn_up.weight is missing", spec.leave_out = "blk.1.ffn_up.weight");
    REFUSED("blk.0.attn_sub_norm.weight is missing", spec.leave_out = "blk.0.attn_sub_norm.weight");
    REFUSED("output_norm.weight is missing", spec.leave_out = "output_norm.weight");
    REFUSED("blk.0.attn_q.bias: is no part of the bitnet-b1.58 graph", spec.extra = "blk.0.attn_q.bias");
    REFUSED("blk.0.attn_q_norm.weight is missing", spec.architecture = "qwen3", spec.leave_out = "blk.0.attn_q_norm.weight");
    REFUSED("not a multiple of 128", spec.n_embd = 66, spec.n_ff = 66, spec.head_dim = 66);
}

/* One byte, half or float of a good file changed. */
static void expect_change_refused(const struct tiny *spec, const char *tensor, size_t at, const void *with, size_t n,
                                  const char *says)
{
    size_t size;
    cleanup(freep) uint8_t *file = tiny_file(spec, &size);
    cleanup(gguf_freep) struct gguf *g = NULL;

    cr_assert_eq(gguf_open(&g, file, size, NULL), 0);
    memcpy(file + (gguf_tensor(g, tensor)->data - file) + at, with, n);
    expect_refused(file, size, says);
}

Test(model, refuses_values)
{
    const float zero = 0, negative = -1, nan = NAN, infinite = INFINITY;
    const uint16_t half_infinity = 0x7c00, other_scale = 0x2bff;
    struct tiny i2s = TINY, tq2 = TINY, q8 = TINY, f32 = TINY;
    const char *q = "blk.1.attn_q.weight";
    size_t scale_at = 256 * 256 / 4;

    tq2.ternary = TENSOR_TQ2_0;
    q8.dense = TENSOR_Q8_0;
    f32.dense = TENSOR_F32;
    expect_change_refused(&i2s, q, 777, "\x0c", 1, "blk.1.attn_q.weight: code 3 at byte");
    expect_change_refused(&i2s, q, scale_at - 1, "\xc0", 1, "blk.1.attn_q.weight: code 3 at byte");
    expect_change_refused(&i2s, q, scale_at, &zero, 4, "blk.1.attn_q.weight: the scale at byte");
    expect_change_refused(&i2s, q, scale_at, &negative, 4, "the scale at byte");
    expect_change_refused(&i2s, q, scale_at, &nan, 4, "the scale at byte");
    expect_change_refused(&i2s, q, scale_at, &infinite, 4, "the scale at byte");
    expect_change_refused(&tq2, "blk.0.ffn_down.weight", 66 * 3 + 64, &other_scale, 2, "blk.0.ffn_down.weight: block 3 has the scale");
    expect_change_refused(&tq2, q, 66 * 5 + 7, "\x03", 1, "code 3 at row 5, column 7");
    expect_change_refused(&tq2, q, 64, &half_infinity, 2, "the scale of row 0");
    expect_change_refused(&i2s, "blk.0.ffn_norm.weight", 4, &nan, 4, "blk.0.ffn_norm.weight: element 1 is not finite");
    expect_change_refused(&i2s, "token_embd.weight", 6, &half_infinity, 2, "token_embd.weight: element 3 is not finite");
    expect_change_refused(&q8, "token_embd.weight", 34, &half_infinity, 2, "the scale of block 1 is not finite");
    expect_change_refused(&f32, "token_embd.weight", 8, &infinite, 4, "token_embd.weight: element 2 is not finite");
}

/* The tensors' shapes are those of the file's first keys; a key changed alone makes them wrong. */
Test(model, refuses_shapes_that_keys_do_not_make)
{
    static const struct { const char *suffix; uint32_t value; const char *says; } changes[] = {
        { "embedding_length", 512, "token_embd.weight: is 256 x 300" }, { "feed_forward_length", 384, "ffn_gate.weight: is 256 x 512" },
        { "attention.head_count", 0, "attention.head_count is out of range" },
        { "attention.head_count_kv", 1, "attn_k.weight: is 256 x 128" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(changes); i++) {
        struct tiny spec = TINY;
        size_t size;
        cleanup(freep) uint8_t *file = tiny_file(&spec, &size);
        char key[96];
        uint8_t *at;

        snprintf(key, sizeof(key), "bitnet-b1.58.%s", changes[i].suffix);
        at = memmem(file, size, key, strlen(key));
        memcpy(at + strlen(key) + 4, &changes[i].value, 4);
        expect_refused(file, size, changes[i].says);
    }
}

Test(model, refuses_scaled_rope)
{
    struct tiny spec = TINY;
    cleanup(freep) uint8_t *file = NULL;
    struct gguf_writer w;
    size_t size;

    writer_init(&w);
    tiny_write(&w, &spec);
    write_string(&w, "bitnet-b1.58.rope.scaling.type", "yarn");
    file = writer_file(&w, &size);
    writer_done(&w);
    expect_refused(file, size, "rope.scaling.type is yarn");
}

Test(model, from_a_file_and_from_memory_alike)
{
    struct tiny spec = TINY;
    cleanup(freep) uint8_t *file = NULL;
    cleanup(model_freep) struct model *a = open_tiny(&spec, &file), *b = NULL;
    char path[] = "/tmp/tern-model-XXXXXX";
    int fd = mkstemp(path);
    struct err err = {0};

    cr_assert_eq(write(fd, file, a->file_bytes), (ssize_t)a->file_bytes);
    close(fd);
    cr_assert_eq(model_open(&b, path, NULL, &err), 0, "%s", err.msg);
    unlink(path);
    cr_assert_str_eq(a->digest, b->digest);
    cr_assert_arr_eq(a->layers[0].q.w, b->layers[0].q.w, 256 * 64);
}

/* Bytes of the keys and tensor infos changed at random: refused, or a model that runs inside its memory. */
Test(model, changed_files_are_refused_or_run)
{
    struct tiny spec = TINY;
    cleanup(freep) uint8_t *file = NULL;
    size_t size, head, opened = 0;
    struct pool *p;

    spec.n_embd = spec.n_ff = 128;
    spec.n_layer = 1;
    spec.n_head = 2;
    file = tiny_file(&spec, &size);
    head = (size_t)((uint8_t *)memmem(file, size, "output_norm", 11) - file) + 64;
    cr_assert_eq(pool_new(&p, 1), 0);
    for (uint64_t i = 0; i < 1500; i++) {
        size_t at = tiny_random("place", i) % head;
        uint8_t old = file[at];
        struct model *m;

        file[at] ^= 1 << tiny_random("bit", i) % 8;
        if (!model_open_memory(&m, file, size, NULL, NULL)) {
            cleanup(freep) float *logits = malloc(m->n_vocab * sizeof(*logits));
            struct forward *f;
            struct session *s;
            struct kv_pool *kv;

            cr_assert_eq(forward_new(&f, m, p, 2, NULL), 0);
            cr_assert_eq(kv_pool_new(&kv, m, KV_F32, 0, NULL), 0);
            cr_assert_eq(session_new(&s, kv, 8), 0);
            cr_assert_eq(forward_run(f, &(struct forward_row){ .session = s, .token = 1, .logits = logits }, 1), 0);
            session_free(s);
            kv_pool_free(kv);
            forward_free(f);
            model_free(m);
            opened++;
        }
        file[at] = old;
    }
    pool_free(p);
    cr_expect(opened > 0 && opened < 1500);
    printf("%zu of 1500 changed files still open\n", opened);
}
