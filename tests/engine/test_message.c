/* Tokens as bytes: there and back, and nothing that was tampered with is read past its end. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "engine/engine.h"

static struct engine_token sample(void)
{
    return (struct engine_token){
        .id = 128009, .logprob = -0.25f, .margin = 3.5f, .entropy = 0.5f, .piece = "\xf0\x9f", .piece_len = 2,
        .text = "so far", .text_len = 6, .channel = ANSWER_TOOL_ARGUMENTS, .n_top = 2,
        .top = { { 1, -0.25f, "a", 1 }, { 7, -9999, "", 0 } },
    };
}

Test(message, there_and_back)
{
    cleanup(buf_done) struct buf b = { .max = 4096 };
    struct engine_token t = sample(), u;

    cr_assert_eq(engine_token_encode(&b, &t), 0);
    cr_assert_eq(engine_token_decode(&u, b.data, b.len), 0);
    cr_expect(u.id == t.id && u.logprob == t.logprob && u.margin == t.margin && u.entropy == t.entropy);
    cr_expect(u.piece_len == 2 && memcmp(u.piece, t.piece, 2) == 0);
    cr_expect_eq(u.channel, ANSWER_TOOL_ARGUMENTS);
    cr_expect(u.text_len == 6 && memcmp(u.text, t.text, 6) == 0);
    cr_expect(u.n_top == 2 && u.top[0].id == 1 && u.top[0].logprob == -0.25f && u.top[0].piece_len == 1);
    cr_expect(*u.top[0].piece == 'a' && u.top[1].id == 7 && u.top[1].logprob == -9999 && u.top[1].piece_len == 0);

    /* Nothing at all to say is a message as well. */
    t = (struct engine_token){ 0 };
    buf_clear(&b);
    cr_assert_eq(engine_token_encode(&b, &t), 0);
    cr_assert_eq(engine_token_decode(&u, b.data, b.len), 0);
    cr_expect(u.piece_len == 0 && u.text_len == 0 && u.n_top == 0);
}

Test(message, no_room)
{
    cleanup(buf_done) struct buf b = { .max = 40 };
    struct engine_token t = sample();

    cr_assert_eq(buf_puts(&b, "kept"), 0);
    cr_expect_eq(engine_token_encode(&b, &t), -ENOMEM);
    cr_expect_str_eq((char *)b.data, "kept");
}

/* Every truncation, every byte set to every of a few values, at the very end of a heap block: the address sanitizer
 * watches. Whatever is accepted lies inside the data. */
Test(message, hostile)
{
    static const uint8_t values[] = { 0, 1, 2, 0x14, 0x15, 0x7f, 0x80, 0xff };
    cleanup(buf_done) struct buf b = { .max = 4096 };
    struct engine_token t = sample(), u;
    uint8_t *data;

    cr_assert_eq(engine_token_encode(&b, &t), 0);
    for (size_t len = 0; len <= b.len + 1; len++) {
        data = calloc(len ? len : 1, 1);
        memcpy(data, b.data, MIN(len, b.len));
        cr_expect_eq(engine_token_decode(&u, data, len), len == b.len ? 0 : -EPROTO, "length %zu", len);
        free(data);
    }
    data = malloc(b.len);
    for (size_t i = 0; i < b.len; i++)
        for (size_t v = 0; v < ARRAY_SIZE(values); v++) {
            memcpy(data, b.data, b.len);
            data[i] = values[v];
            if (engine_token_decode(&u, data, b.len) < 0)
                continue;
            cr_assert((const uint8_t *)u.piece >= data && (const uint8_t *)u.piece + u.piece_len <= data + b.len);
            cr_assert((const uint8_t *)u.text >= data && (const uint8_t *)u.text + u.text_len <= data + b.len);
            cr_assert_leq(u.channel, ANSWER_TOOL_ARGUMENTS);
            cr_assert_leq(u.n_top, CHAT_MAX_TOP_LOGPROBS);
            for (size_t k = 0; k < u.n_top; k++)
                cr_assert((const uint8_t *)u.top[k].piece + u.top[k].piece_len <= data + b.len);
        }
    free(data);
}

/* A probability that is none must not reach the policy. */
Test(message, not_a_number)
{
    const float bad[] = { NAN, INFINITY, -INFINITY };

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        for (int field = 0; field < 4; field++) {
            cleanup(buf_done) struct buf b = { .max = 4096 };
            struct engine_token t = sample(), u;
            *(field == 0 ? &t.logprob : field == 1 ? &t.margin : field == 2 ? &t.entropy : &t.top[1].logprob) = bad[i];
            cr_assert_eq(engine_token_encode(&b, &t), 0);
            cr_expect_eq(engine_token_decode(&u, b.data, b.len), -EPROTO);
        }
}

Test(message, finish_names)
{
    cr_expect_str_eq(engine_finish_name(FINISH_STOP), "stop");
    cr_expect_str_eq(engine_finish_name(FINISH_LENGTH), "length");
    cr_expect_str_eq(engine_finish_name(FINISH_CANCELLED), "cancelled");
    cr_expect_str_eq(engine_finish_name(FINISH_ERROR), "error");
    cr_expect_str_eq(engine_finish_name(FINISH_TOOL_CALLS), "tool_calls");
    cr_expect_str_eq(engine_finish_name((enum engine_finish)77), "error");
}
