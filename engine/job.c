/* One request being answered. Its slot is filled from a START frame, or the frame is refused; each token is chosen from
 * the slot's logits, sent with what it adds to the answer, and ends the request when it was the last: the model's own
 * end, a stop string, or the number that was asked for. */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "engine/worker.h"

#define MAX_STOP_BYTES 1024
#define MAX_ANSWER_BYTES (64u << 20)

void job_init(struct job *j)
{
    buf_init(&j->shown, MAX_ANSWER_BYTES);
    buf_init(&j->frame, MAX_ANSWER_BYTES);
    buf_init(&j->out, SIZE_MAX);
}

void job_done(struct job *j)
{
    if (j->session)
        job_clear(j);
    session_free(j->session);
    free(j->logits);
    buf_done(&j->shown);
    buf_done(&j->frame);
    buf_done(&j->out);
}

void job_clear(struct job *j)
{
    chat_request_free(j->request);
    sampler_free(j->sampler);
    reply_free(j->reply);
    tokens_done(&j->text);
    free(j->client);
    session_reset(j->session, 0);
    buf_clear(&j->out);
    *j = (struct job){
        .session = j->session, .logits = j->logits, .shown = j->shown, .frame = j->frame, .out = j->out,
    };
}

int job_end(struct worker *w, struct job *j, enum engine_finish finish)
{
    uint64_t now = clock_usec(), prompt = j->prompt_usec ? j->prompt_usec : now, id = j->id;
    struct engine_end end = {
        .finish = finish, .n_prompt = (uint32_t)j->n_prompt, .n_tokens = (uint32_t)j->n_tokens,
        .stop = j->reply ? reply_stop(j->reply) : 0, .n_guessed = (uint32_t)j->n_guessed,
        .prefill_usec = prompt - j->start_usec, .decode_usec = now - prompt,
    };

    /* The last token was not read yet. */
    session_reset(j->session, j->text.len - 1);
    if (finish != FINISH_ERROR)
        prefix_keep(&w->prefix, j->client, j->text.ids, j->session);
    job_clear(j);
    w->n_running--;
    return worker_send(w, ENGINE_END, id, &end, sizeof(end));
}

/* ---- its tokens ---- */

int job_allow(struct job *j)
{
    return j->held = reply_allowed(j->reply, j->max_tokens - j->n_tokens, &j->allowed);
}

static void over(struct job *j, enum engine_finish finish)
{
    j->over = true;
    j->finish = finish;
}

/* What a token adds to the answer, in `shown`. Whether it was the last one: then the job is over. Negative: -errno. */
static int show(const struct worker *w, struct job *j, int32_t token, enum answer_channel *channel)
{
    int r;

    buf_clear(&j->shown);
    if (tokenizer_is_end(w->model->tokenizer, token)) {
        r = reply_flush(j->reply, &j->shown, channel);
        over(j, reply_finish(j->reply, true));
        return r;
    }
    r = reply_push(j->reply, token, &j->shown, channel);
    if (r != 0 || j->n_tokens == j->max_tokens)
        over(j, reply_finish(j->reply, r > 0));
    return r == 0 && j->over ? reply_flush(j->reply, &j->shown, channel) : MIN(r, 0);
}

/* Choose a token from the logits, and say it. */
static int32_t next_token(const struct worker *w, struct job *j, float *logits)
{
    const struct tokenizer *tokenizer = w->model->tokenizer;
    struct engine_token t = { 0 };
    enum answer_channel channel = ANSWER_TEXT;
    size_t len;
    int r;

    sampler_pick(j->sampler, logits, j->allowed, &t);
    j->n_tokens++;
    t.piece = tokenizer_piece(tokenizer, (int32_t)t.id, &len);
    t.piece_len = tokenizer_is_end(tokenizer, (int32_t)t.id) ? 0 : (uint32_t)len;
    for (size_t i = 0; i < t.n_top; i++) {
        t.top[i].piece = tokenizer_piece(tokenizer, (int32_t)t.top[i].id, &len);
        t.top[i].piece_len = (uint32_t)len;
    }
    r = tokens_push(&j->text, (int32_t)t.id);
    if (r == 0)
        r = show(w, j, (int32_t)t.id, &channel);
    t.text = (const char *)j->shown.data;
    t.text_len = (uint32_t)j->shown.len;
    t.channel = channel;
    buf_clear(&j->frame);
    if (r == 0)
        r = engine_token_encode(&j->frame, &t);
    if (r == 0)
        r = frame_append(&j->out, ENGINE_TOKEN, j->id, j->frame.data, j->frame.len);
    if (r < 0)
        over(j, FINISH_ERROR);
    return (int32_t)t.id;
}

/* The prompt is through. */
static void prompted(struct job *j)
{
    struct engine_prompt p = { .n_tokens = (uint32_t)j->n_prompt, .n_cached = (uint32_t)j->n_cached };

    j->prompt_usec = clock_usec();
    p.prefill_usec = j->prompt_usec - j->start_usec;
    if (frame_append(&j->out, ENGINE_PROMPT, j->id, &p, sizeof(p)) < 0)
        over(j, FINISH_ERROR);
}

void job_advance(const struct worker *w, struct job *j)
{
    size_t fed = j->session->n - j->n_rows;

    j->keep = j->session->n;
    if (j->session->n < j->text.len)
        return;                        /* more of it to read */
    if (!j->prompt_usec)
        prompted(j);
    for (size_t i = 0; i < j->n_rows && !j->over; i++) {
        int32_t token;

        if (!j->rows[i].logits)
            continue;
        j->keep = fed + i + 1;
        if (j->held < 0) {
            over(j, FINISH_ERROR);
            break;
        }
        token = next_token(w, j, j->rows[i].logits);
        draft_learn(&j->draft, i, token);
        /* Where the answer comes to be held to a grammar, the next row was not asked for what may follow. */
        if (j->over || job_allow(j) || i + 1 == j->n_rows || j->rows[i + 1].token != token)
            break;
        j->n_guessed++;
    }
}

int job_settle(struct worker *w, struct job *j)
{
    bool through = j->keep == j->n_prompt && j->prompt_usec;
    int r = worker_send_frames(w, &j->out);

    buf_clear(&j->out);
    session_reset(j->session, j->keep);
    if (r == 0 && j->over)
        return job_end(w, j, j->finish);
    if (r == 0 && through)
        prefix_keep(&w->prefix, j->client, j->text.ids, j->session);
    return r;
}

/* ---- from its frame ---- */

void job_prompt(const struct worker *w, const struct chat_request *request, struct tokens *ret, struct refusal *why)
{
    cleanup(json_decrefp) json_t *messages = tools_messages(request);
    size_t bytes = chat_content_bytes(messages);
    int r;

    if (!messages) {
        refusal_set(why, -ENOMEM);
        return;
    }
    /* What cannot fit, however its bytes are cut, need not be cut to know it. */
    if (bytes / w->longest_piece >= w->n_ctx) {
        why->code = ENGINE_E_CONTEXT;
        err_set(&why->err, 0, "the prompt's %zu bytes are at least %zu tokens; the context holds %zu",
                bytes, bytes / w->longest_piece, w->n_ctx);
        return;
    }
    r = template_render(w->model->template, w->model->tokenizer, messages, ret, &why->err);
    if (r < 0)
        refusal_set(why, r);
    else if (!ret->len)
        refusal_set(why, err_set(&why->err, -EINVAL, "messages: nothing to answer"));
}

/* What the client left open is the engine's to say. */
static int params_read(const struct worker *w, struct chat_params *params, struct err *err)
{
    for (size_t i = 0; i < params->n_stop; i++)
        if (strlen(params->stop[i]) > MAX_STOP_BYTES)
            return err_set(err, -EINVAL, "stop: expected strings of at most %d bytes", MAX_STOP_BYTES);
    if (isnan(params->temperature))
        params->temperature = w->cfg->temperature;
    if (isnan(params->top_p))
        params->top_p = w->cfg->top_p;
    return 0;
}

static int request_read(const struct worker *w, struct job *j, const struct frame *f, struct err *err)
{
    cleanup(json_decrefp) json_t *body = json_parse(f->data, f->len, err);
    const char *client = "";
    int r;

    if (!body)
        return -EINVAL;
    r = json_read_string(body, "client", &client, err);
    if (r >= 0)
        r = json_read_bool(body, "batch", &j->batch, err);
    if (r >= 0)
        r = chat_request_from_json(&j->request, body, err);
    if (r < 0)
        return r;
    j->client = strdup(client);
    return j->client ? params_read(w, &j->request->params, err) : -ENOMEM;
}

static void fill(struct worker *w, struct job *j, const struct frame *f, struct refusal *why)
{
    const struct chat_params *params;
    int r = request_read(w, j, f, &why->err);

    if (r < 0) {
        refusal_set(why, r);
        return;
    }
    job_prompt(w, j->request, &j->text, why);
    if (why->code)
        return;
    j->n_prompt = j->text.len;
    if (j->n_prompt >= w->n_ctx) {
        why->code = ENGINE_E_CONTEXT;
        err_set(&why->err, 0, "the prompt is %zu tokens; the context holds %zu, the answer included",
                j->n_prompt, w->n_ctx);
        return;
    }
    params = &j->request->params;
    r = sampler_new(&j->sampler, params, w->model->n_vocab);
    if (r == 0)
        r = reply_new(&j->reply, j->request, w->lexicon, &why->err);
    if (r < 0) {
        refusal_set(why, r);
        return;
    }
    j->max_tokens = w->n_ctx - j->n_prompt;
    if (params->max_tokens > 0)
        j->max_tokens = MIN(j->max_tokens, (size_t)params->max_tokens);
    else if (w->cfg->max_tokens)
        j->max_tokens = MIN(j->max_tokens, w->cfg->max_tokens);
    draft_begin(&j->draft);
    /* The last token is always read: the answer begins with what follows it. */
    j->n_cached = prefix_find(&w->prefix, j->client, j->text.ids, j->n_prompt - 1, j->session);
}

void job_start(struct worker *w, struct job *j, const struct frame *f, struct refusal *why)
{
    j->id = f->id;
    j->start_usec = clock_usec();
    fill(w, j, f, why);
    if (why->code)
        job_clear(j);
    else
        w->n_running++;
}
