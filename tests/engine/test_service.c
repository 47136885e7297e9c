/* What the engine does besides answering: ids, texts and vectors. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "tests/engine/process.h"

#define WIDTH_MAX 4096

struct vectors { struct engine_embedding head; float x[8][WIDTH_MAX]; };

/* Send and take the one answer, of any type; f's bytes last until the next frame. */
static struct frame exchange(struct engine *e, uint32_t type, const char *text)
{
    struct frame f;

    send_frame(e, type, 7, text);
    do
        cr_assert(next_frame(e, &f));
    while (f.id != 7);
    return f;
}

static void expect_refused(struct engine *e, uint32_t type, const char *text, const char *code)
{
    struct frame f = exchange(e, type, text);

    cr_expect(f.type == ENGINE_REFUSED && memmem(f.data, f.len, code, strlen(code)), "%.80s: %.*s", text, (int)f.len,
              (const char *)f.data);
}

static struct vectors embed(struct engine *e, const char *input)
{
    struct frame f = exchange(e, ENGINE_EMBED, input);
    struct vectors v;

    cr_assert_eq(f.type, ENGINE_EMBEDDING, "%.*s", (int)f.len, (const char *)f.data);
    memcpy(&v.head, f.data, sizeof(v.head));
    cr_assert(v.head.n <= 8 && v.head.width <= WIDTH_MAX);
    cr_assert_eq(f.len, sizeof(v.head) + v.head.n * v.head.width * sizeof(float));
    for (size_t i = 0; i < v.head.n; i++)
        memcpy(v.x[i], f.data + sizeof(v.head) + i * v.head.width * sizeof(float), v.head.width * sizeof(float));
    return v;
}

static double dot(const float *a, const float *b, size_t n)
{
    double sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

Test(service, ids_and_back)
{
    struct engine_config cfg = config(1, 0);
    struct engine e = engine_start(&cfg);
    char order[256] = "{\"tokens\":[";
    struct answer a;
    struct frame f;
    int32_t ids[64];
    size_t n;

    expect_ready(&e);
    f = exchange(&e, ENGINE_TOKENIZE, "{\"text\":\"what is 12 + 7\"}");
    n = f.len / sizeof(*ids);
    cr_assert(f.type == ENGINE_TOKENS && n > 3 && n < 20);
    memcpy(ids, f.data, f.len);
    for (size_t i = 0; i < n; i++)
        snprintf(order + strlen(order), sizeof(order) - strlen(order), "%s%d", i ? "," : "", ids[i]);
    strcat(order, "]}");
    f = exchange(&e, ENGINE_DETOKENIZE, order);
    cr_expect(f.type == ENGINE_TEXT && f.len == 14 && memcmp(f.data, "what is 12 + 7", 14) == 0);

    /* A prompt as it would be made: as many as the answer's usage says. */
    f = exchange(&e, ENGINE_TOKENIZE, "{\"messages\":[{\"role\":\"user\",\"content\":\"what is 12 + 7\"}]}");
    n = f.len / sizeof(*ids);
    cr_expect_eq(f.type, ENGINE_TOKENS);
    a = ask(&e, "what is 12 + 7", "");
    cr_expect_eq(n, a.end.n_prompt);

    f = exchange(&e, ENGINE_TOKENIZE, "{\"text\":\"\"}");
    cr_expect(f.type == ENGINE_TOKENS && f.len == 0);
    f = exchange(&e, ENGINE_DETOKENIZE, "{\"tokens\":[]}");
    cr_expect(f.type == ENGINE_TEXT && f.len == 0);
    expect_refused(&e, ENGINE_TOKENIZE, "{}", ENGINE_E_INVALID);
    expect_refused(&e, ENGINE_TOKENIZE, "", ENGINE_E_INVALID);
    expect_refused(&e, ENGINE_TOKENIZE, "{\"messages\":[]}", ENGINE_E_INVALID);
    expect_refused(&e, ENGINE_DETOKENIZE, "{\"tokens\":[-1]}", ENGINE_E_INVALID);
    expect_refused(&e, ENGINE_DETOKENIZE, "{\"tokens\":[2048]}", ENGINE_E_INVALID);
    expect_refused(&e, ENGINE_DETOKENIZE, "{\"tokens\":\"x\"}", ENGINE_E_INVALID);
    engine_stop(&e);
}

Test(service, vectors)
{
    struct engine_config cfg = config(2, 64);
    struct engine e = engine_start(&cfg);
    struct vectors v, again;
    char ids[256] = "{\"input\":[[", longest[1400] = "{\"input\":[\"";
    struct frame f;

    expect_ready(&e);
    v = embed(&e, "{\"input\":[\"the weather is fine\",\"what is 12 + 7\",\"the weather is fine\"]}");
    cr_assert_eq(v.head.n, 3u);
    for (size_t i = 0; i < 3; i++)
        cr_expect_float_eq(dot(v.x[i], v.x[i], v.head.width), 1, 1e-5);
    cr_expect_eq(memcmp(v.x[0], v.x[2], v.head.width * sizeof(float)), 0);
    cr_expect_lt(dot(v.x[0], v.x[1], v.head.width), 0.999);

    /* Beside an answer, and as ids: the same vector, and the answer goes on. */
    send_frame(&e, ENGINE_START, 1, "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}],\"max_tokens\":1}");
    f = exchange(&e, ENGINE_TOKENIZE, "{\"text\":\"what is 12 + 7\",\"add_special\":true}");
    for (size_t i = 0; i < f.len / 4; i++)
        snprintf(ids + strlen(ids), sizeof(ids) - strlen(ids), "%s%d", i ? "," : "", ((const int32_t *)f.data)[i]);
    strcat(ids, "]]}");
    again = embed(&e, ids);
    cr_expect_eq(again.head.n, 1u);
    cr_expect_eq(memcmp(v.x[1], again.x[0], v.head.width * sizeof(float)), 0);

    expect_refused(&e, ENGINE_EMBED, "{\"input\":[]}", ENGINE_E_INVALID);
    expect_refused(&e, ENGINE_EMBED, "{\"input\":\"x\"}", ENGINE_E_INVALID);
    expect_refused(&e, ENGINE_EMBED, "{\"input\":[\"x\",\"\"]}", ENGINE_E_INVALID);
    expect_refused(&e, ENGINE_EMBED, "{\"input\":[[]]}", ENGINE_E_INVALID);
    expect_refused(&e, ENGINE_EMBED, "{\"input\":[[99999]]}", ENGINE_E_INVALID);
    expect_refused(&e, ENGINE_EMBED, "{\"input\":[3]}", ENGINE_E_INVALID);
    for (int i = 0; i < 200; i++)
        strcat(longest, "7 + 8 ");
    strcat(longest, "\"]}");
    expect_refused(&e, ENGINE_EMBED, longest, ENGINE_E_CONTEXT);

    /* Cancelled before its turn. */
    send_frame(&e, ENGINE_EMBED, 9, "{\"input\":[\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\",\"h\"]}");
    send_frame(&e, ENGINE_CANCEL, 9, NULL);
    cr_assert(next_frame(&e, &f));
    cr_expect(f.id == 9 && (f.type == ENGINE_END || f.type == ENGINE_EMBEDDING));
    engine_stop(&e);
}
