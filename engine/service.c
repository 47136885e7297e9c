/* What the model does besides answering: ids of a text and a text of ids, said at once; and vectors of texts, made a
 * chunk of one text a step, so that answers under way go on. */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "engine/worker.h"

#define MAX_TEXT_BYTES FRAME_MAX_PAYLOAD
#define EMBED_ROWS 32                  /* of a text in one step */

/* ---- ids and texts ----------------------------------------------------------------------------------------------- */

/* special: with the tokens that the vocabulary wants around a text. */
static int ids_add_text(const struct worker *w, struct tokens *ids, const json_t *text, bool special, struct err *err)
{
    const struct tokenizer *t = w->model->tokenizer;
    int r = special && tokenizer_bos(t) >= 0 ? tokens_push(ids, tokenizer_bos(t)) : 0;

    if (r == 0)
        r = tokenizer_encode(t, json_string_value(text), json_string_length(text), false, ids);
    if (r == 0 && special && tokenizer_eos(t) >= 0)
        r = tokens_push(ids, tokenizer_eos(t));
    return r == -EINVAL ? err_set(err, r, "the text has characters that the vocabulary cannot write") : r;
}

static int ids_add_array(const struct worker *w, struct tokens *ids, const json_t *array, struct err *err)
{
    size_t i, n = tokenizer_size(w->model->tokenizer);
    json_t *v;

    json_array_foreach(array, i, v) {
        json_int_t id = json_integer_value(v);
        int r;

        if (!json_is_integer(v) || id < 0 || (size_t)id >= n)
            return err_set(err, -EINVAL, "[%zu]: expected a token's id, from 0 to %zu", i, n - 1);
        r = tokens_push(ids, (int32_t)id);
        if (r < 0)
            return r;
    }
    return 0;
}

static void tokenize(struct worker *w, const struct frame *f, struct tokens *ids, struct refusal *why)
{
    cleanup(json_decrefp) json_t *order = json_parse(f->data, f->len, &why->err);
    const json_t *text = json_object_get(order, "text");
    cleanup(chat_request_freep) struct chat_request *request = NULL;
    int r = -EINVAL;

    if (json_is_string(text)) {
        r = ids_add_text(w, ids, text, json_is_true(json_object_get(order, "add_special")), &why->err);
    } else if (order) {
        r = chat_request_from_json(&request, order, &why->err);
        if (r == 0)
            job_prompt(w, request, ids, why);
    }
    if (r < 0)
        refusal_set(why, r);
}

int service_tokenize(struct worker *w, const struct frame *f)
{
    cleanup(tokens_done) struct tokens ids = { 0 };
    struct refusal why = { 0 };

    tokenize(w, f, &ids, &why);
    return why.code ? worker_refuse(w, f->id, &why)
                    : worker_send(w, ENGINE_TOKENS, f->id, ids.ids, ids.len * sizeof(*ids.ids));
}

static int detokenize(const struct worker *w, const struct frame *f, struct buf *text, struct err *err)
{
    cleanup(json_decrefp) json_t *order = json_parse(f->data, f->len, err);
    const json_t *array = json_object_get(order, "tokens");
    cleanup(tokens_done) struct tokens ids = { 0 };
    cleanup(textgate_done) struct textgate gate;
    int r;

    textgate_init(&gate, NULL, 0);
    if (!order)
        return -EINVAL;
    if (!json_is_array(array))
        return err_set(err, -EINVAL, "tokens: expected an array of ids");
    r = ids_add_array(w, &ids, array, err);
    for (size_t i = 0, len; i < ids.len && r == 0; i++) {
        const char *piece = tokenizer_piece(w->model->tokenizer, ids.ids[i], &len);
        r = textgate_push(&gate, piece, len, text);
    }
    return r < 0 ? r : textgate_flush(&gate, text);
}

int service_detokenize(struct worker *w, const struct frame *f)
{
    cleanup(buf_done) struct buf text;
    struct refusal why = { 0 };
    int r;

    buf_init(&text, MAX_TEXT_BYTES);
    r = detokenize(w, f, &text, &why.err);
    if (r == 0)
        return worker_send(w, ENGINE_TEXT, f->id, text.data, text.len);
    refusal_set(&why, r);
    return worker_refuse(w, f->id, &why);
}

/* ---- vectors ----------------------------------------------------------------------------------------------------- */

void embedding_free(struct embedding *e)
{
    if (!e)
        return;
    tokens_done(&e->ids);
    free(e->ends);
    free(e->rows);
    buf_done(&e->vectors);
    free(e);
}

/* Take the first one off the line. */
static void embedding_drop(struct worker *w)
{
    struct embedding *e = w->embeddings;

    w->embeddings = e->next;
    embedding_free(e);
}

static int input_read(const struct worker *w, struct embedding *e, const json_t *input, struct err *err)
{
    size_t start = e->ids.len, n;
    int r;

    if (json_is_array(input)) {
        r = ids_add_array(w, &e->ids, input, err);
    } else if (json_is_string(input)) {
        r = ids_add_text(w, &e->ids, input, true, err);
    } else {
        r = err_set(err, -EINVAL, "expected a text or an array of token ids");
    }
    n = e->ids.len - start;
    if (r == 0 && (!n || (json_is_string(input) && !json_string_length(input))))
        r = err_set(err, -EINVAL, "is empty");
    if (r == 0 && n > w->n_ctx)
        r = err_set(err, -ENOSPC, "is %zu tokens; the context holds %zu", n, w->n_ctx);
    return r;
}

static int inputs_read(const struct worker *w, struct embedding *e, const struct frame *f, struct err *err)
{
    cleanup(json_decrefp) json_t *order = json_parse(f->data, f->len, err);
    const json_t *inputs = json_object_get(order, "input"), *input;
    struct err why = { "" };
    size_t i;

    if (!order)
        return -EINVAL;
    if (!json_is_array(inputs) || !json_array_size(inputs) || json_array_size(inputs) > ENGINE_MAX_INPUTS)
        return err_set(err, -EINVAL, "input: expected 1 to %d texts", ENGINE_MAX_INPUTS);
    if (json_array_size(inputs) * w->model->n_embd * sizeof(float) > FRAME_MAX_PAYLOAD - sizeof(struct engine_embedding))
        return err_set(err, -EINVAL, "input: too many texts at once");
    e->ends = calloc(json_array_size(inputs), sizeof(*e->ends));
    if (!e->ends)
        return -ENOMEM;
    json_array_foreach(inputs, i, input) {
        int r = input_read(w, e, input, &why);

        if (r < 0)
            return *why.msg ? err_set(err, r, "input[%zu]: %s", i, why.msg) : r;
        e->ends[e->n++] = e->ids.len;
    }
    return 0;
}

int service_embed(struct worker *w, const struct frame *f)
{
    struct embedding *e = calloc(1, sizeof(*e)), **end = &w->embeddings;
    struct refusal why = { 0 };
    size_t waiting = 0;
    int r = e ? 0 : -ENOMEM;

    for (; *end; end = &(*end)->next)
        waiting++;
    if (e) {
        buf_init(&e->vectors, FRAME_MAX_PAYLOAD);
        e->id = f->id;
    }
    if (r == 0 && waiting >= w->n_jobs) {
        why.code = ENGINE_E_BUSY;
        err_set(&why.err, 0, "too many texts wait to be embedded");
    } else if (r == 0) {
        r = inputs_read(w, e, f, &why.err);
    }
    if (r == 0 && !why.code && !w->embed_session)
        r = session_new(&w->embed_session, w->kv, w->n_ctx);
    if (r == 0 && !why.code) {
        *end = e;
        return 0;
    }
    embedding_free(e);
    if (r == -ENOSPC)
        why.code = ENGINE_E_CONTEXT;
    else if (r < 0)
        refusal_set(&why, r);
    return worker_refuse(w, f->id, &why);
}

int embedding_cancel(struct worker *w, uint64_t id)
{
    struct engine_end end = { .finish = FINISH_CANCELLED };

    for (struct embedding **at = &w->embeddings, *e; (e = *at); at = &e->next)
        if (e->id == id) {
            *at = e->next;
            embedding_free(e);
            return worker_send(w, ENGINE_END, id, &end, sizeof(end));
        }
    return 0;
}

/* Read a chunk of the text at work. 1: it is through, and its vector was added; a model that says nothing of pooling
 * gives the mean. */
static int embed(struct worker *w, struct embedding *e)
{
    size_t start = e->done ? e->ends[e->done - 1] : 0, n = e->ends[e->done] - start, width = w->model->n_embd;
    enum pooling pooling = w->model->pooling == POOLING_NONE ? POOLING_MEAN : w->model->pooling;
    struct session *s = w->embed_session;
    cleanup(freep) float *vector = NULL;
    size_t chunk, bytes;
    int r;

    if (!e->rows) {
        session_reset(s, 0);
        e->rows = size_mul(&bytes, n, width * sizeof(*e->rows)) ? malloc(bytes) : NULL;
    }
    if (!e->rows)
        return -ENOMEM;
    chunk = MIN(n - s->n, (size_t)EMBED_ROWS);
    r = forward_hidden(w->forward, s, e->ids.ids + start + s->n, chunk, e->rows + s->n * width);
    if (r < 0 || s->n < n)
        return r;
    vector = malloc(width * sizeof(*vector));
    if (!vector)
        return -ENOMEM;
    forward_pool(vector, e->rows, n, width, pooling);
    freep(&e->rows);
    e->rows = NULL;
    r = buf_append(&e->vectors, vector, width * sizeof(*vector));
    return r < 0 ? r : 1;
}

static int embedding_say(struct worker *w, struct embedding *e)
{
    struct engine_embedding head = {
        .n = (uint32_t)e->n, .width = (uint32_t)w->model->n_embd, .n_tokens = (uint32_t)e->ids.len,
    };
    cleanup(buf_done) struct buf payload;
    int r;

    buf_init(&payload, FRAME_MAX_PAYLOAD);
    r = buf_append(&payload, &head, sizeof(head));
    if (r == 0)
        r = buf_append(&payload, e->vectors.data, e->vectors.len);
    return r < 0 ? r : worker_send(w, ENGINE_EMBEDDING, e->id, payload.data, payload.len);
}

int embedding_step(struct worker *w)
{
    struct embedding *e = w->embeddings;
    struct engine_end end = { .finish = FINISH_ERROR };
    uint64_t id = e->id;
    int r = embed(w, e);

    if ((r == -ENOBUFS || r == -ENOMEM) && prefix_shrink(&w->prefix))
        return 0;                      /* tried again in the next step */
    if (r < 0) {
        log_error("a text could not be embedded: %s", strerror(-r));
        embedding_drop(w);
        return worker_send(w, ENGINE_END, id, &end, sizeof(end));
    }
    e->done += (size_t)r;
    if (e->done < e->n)
        return 0;
    session_reset(w->embed_session, 0);
    r = embedding_say(w, e);
    embedding_drop(w);
    return r;
}
