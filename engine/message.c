/* A generated token as bytes, for ENGINE_TOKEN. Host order: both ends are the same executable.
 *
 *     u32 id | f32 logprob, margin, entropy | u32 piece_len, text_len, channel, n_top | piece | text
 *     then for each alternative: u32 id | f32 logprob | u32 piece_len | piece
 *
 * The reader believes no length: the engine holds text from outside and may be made to misbehave. */
#include <errno.h>
#include <string.h>

#include "engine/engine.h"

struct head { uint32_t id; float logprob, margin, entropy; uint32_t piece_len, text_len, channel, n_top; };
struct alternative { uint32_t id; float logprob; uint32_t piece_len; };

int engine_token_encode(struct buf *out, const struct engine_token *t)
{
    struct head h = { t->id, t->logprob, t->margin, t->entropy, t->piece_len, t->text_len, t->channel, t->n_top };
    size_t start = out->len;
    int r;

    r = buf_append(out, &h, sizeof(h));

    if (r == 0)
        r = buf_append(out, t->piece, t->piece_len);
    if (r == 0)
        r = buf_append(out, t->text, t->text_len);
    for (size_t i = 0; i < t->n_top && r == 0; i++) {
        struct alternative a = { t->top[i].id, t->top[i].logprob, t->top[i].piece_len };
        r = buf_append(out, &a, sizeof(a));
        if (r == 0)
            r = buf_append(out, t->top[i].piece, t->top[i].piece_len);
    }
    if (r < 0 && out->len > start) {
        out->len = start;
        out->data[start] = 0;
    }
    return r < 0 ? -ENOMEM : 0;
}

/* What is left to read; NULL once something did not fit. */
struct cursor { const uint8_t *p; size_t left; };

static const void *take(struct cursor *c, size_t n)
{
    const uint8_t *p = c->p;

    if (!p || n > c->left)
        return c->p = NULL;
    c->p += n;
    c->left -= n;
    return p;
}

int engine_token_decode(struct engine_token *ret, const uint8_t *data, size_t len)
{
    struct cursor c = { data, len };
    struct engine_token t;
    const void *p;
    struct head h;

    p = take(&c, sizeof(h));
    if (!p)
        return -EPROTO;
    memcpy(&h, p, sizeof(h));
    if (h.channel > ANSWER_TOOL_ARGUMENTS || h.n_top > CHAT_MAX_TOP_LOGPROBS || !isfinite(h.logprob) ||
        !isfinite(h.margin) || !isfinite(h.entropy))
        return -EPROTO;
    t.id = h.id;
    t.logprob = h.logprob;
    t.margin = h.margin;
    t.entropy = h.entropy;
    t.piece_len = h.piece_len;
    t.piece = take(&c, h.piece_len);
    t.text_len = h.text_len;
    t.text = take(&c, h.text_len);
    t.channel = h.channel;
    t.n_top = h.n_top;
    for (size_t i = 0; i < h.n_top; i++) {
        struct alternative a;
        p = take(&c, sizeof(a));
        if (!p)
            return -EPROTO;
        memcpy(&a, p, sizeof(a));
        if (!isfinite(a.logprob))
            return -EPROTO;
        t.top[i] = (struct engine_alternative){ a.id, a.logprob, take(&c, a.piece_len), a.piece_len };
    }
    if (!c.p || c.left)
        return -EPROTO;
    *ret = t;
    return 0;
}

const char *engine_finish_name(enum engine_finish f)
{
    static const char *const names[] = {
        [FINISH_STOP] = "stop", [FINISH_LENGTH] = "length", [FINISH_CANCELLED] = "cancelled", [FINISH_ERROR] = "error",
        [FINISH_TOOL_CALLS] = "tool_calls",
    };

    return (size_t)f < ARRAY_SIZE(names) ? names[f] : "error";
}
