/* OpenAI's Responses, stateless: a response is a list of items, messages and calls. A stream tells each of them from
 * its beginning to its end, part by part, and the whole response once more at last. The item that is being written is
 * struct writing; its text is in x->text, a call's arguments in x->arguments; items that are done are in x->keep. */
#include <errno.h>
#include <string.h>
#include "daemon/openai_responses.h"

struct writing {
    unsigned sequence;                     /* of the next event */
    unsigned index;                        /* of the item */
    enum { NOTHING, MESSAGE, CALL } kind;
    const char *id, *call_id, *name;       /* its own id; of a call; arena */
};

/* ---- A response and its items ------------------------------------------------------------------------------------ */

static json_t *usage(const struct request_result *res)
{
    json_int_t in = res->tokens_in, out = res->tokens_out;

    return json_pack("{s:I, s:{s:I}, s:I, s:{s:i}, s:I}", "input_tokens", in, "input_tokens_details",
                     "cached_tokens", (json_int_t)res->tokens_cached, "output_tokens", out, "output_tokens_details",
                     "reasoning_tokens", 0, "total_tokens", in + out);
}

/* Why an answer is not complete, or NULL. */
static const char *incomplete(const struct request_result *res)
{
    return strcmp(res->finish, "length") == 0 ? "max_output_tokens" :
           strcmp(res->finish, "content_filter") == 0 ? "content_filter" : NULL;
}

/* The response as it is now; `output` is taken. res: NULL while it is not known. */
static json_t *response(struct exchange *x, const char *status, json_t *output, const struct request_result *res)
{
    const char *why = res ? incomplete(res) : NULL;
    char id[sizeof("resp_") + ID_BYTES];
    json_t *j;

    snprintf(id, sizeof(id), "resp_%s", x->id);
    j = json_pack("{s:s, s:s, s:I, s:s, s:b, s:n, s:o?, s:s, s:o, s:n, s:b, s:s, s:o}", "id", id, "object", "response",
                  "created_at", (json_int_t)x->meta.created_sec, "status", status, "background", 0, "error",
                  "incomplete_details", why ? json_pack("{s:s}", "reason", why) : NULL,
                  "model", x->meta.model ? x->meta.model : "", "output", output, "previous_response_id", "store", 0,
                  "truncation", "disabled", "usage", res ? usage(res) : json_null());
    json_object_update(j, x->keep);
    json_object_del(j, "items");
    return j;
}

static const char *item_id(struct exchange *x, bool call, unsigned index)
{
    return arena_printf(&x->arena, "%s_%s_%u", call ? "fc" : "msg", x->id, index);
}

static json_t *part_json(const char *text, size_t len, json_t *logprobs)
{
    return json_pack("{s:s, s:s%, s:[], s:o}", "type", "output_text", "text", text, len, "annotations",
                     "logprobs", logprobs ? json_incref(logprobs) : json_array());
}

/* `content` is taken. */
static json_t *message_json(const char *id, const char *status, json_t *content)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:o}", "id", id, "type", "message", "status", status, "role", "assistant",
                     "content", content);
}

static json_t *call_json(const char *id, const char *status, const char *call_id, const char *name,
                         const char *arguments, size_t len)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s%}", "id", id, "type", "function_call", "status", status,
                     "call_id", call_id, "name", name, "arguments", arguments, len);
}

static const char *text_of(const struct buf *b)
{
    return b->len ? (const char *)b->data : "";
}

static json_t *answer(struct exchange *x, const struct request_result *res)
{
    const char *status = incomplete(res) ? "incomplete" : "completed";
    json_t *output = json_array(), *call;
    unsigned n = 0;
    size_t i;

    if (x->text.len || !x->calls)
        json_array_append_new(output, message_json(item_id(x, false, n++), status, json_pack("[o]",
                              part_json(text_of(&x->text), x->text.len, x->logprobs))));
    json_array_foreach(x->calls, i, call) {
        const json_t *f = json_object_get(call, "function"), *arguments = json_object_get(f, "arguments");

        json_array_append_new(output, call_json(item_id(x, true, n++), status,
                              json_string_value(json_object_get(call, "id")),
                              json_string_value(json_object_get(f, "name")), json_string_value(arguments),
                              json_string_length(arguments)));
    }
    return response(x, status, output, res);
}

/* ---- The stream -------------------------------------------------------------------------------------------------- */

/* `data` is taken; type and number are added. */
static void event(struct exchange *x, const char *type, json_t *data)
{
    struct writing *w = x->state;
    json_t *e = json_pack("{s:s, s:i}", "type", type, "sequence_number", (int)w->sequence++);

    if (!data || json_object_update(e, data) < 0) {
        json_decref(e);
        e = NULL;
    }
    json_decref(data);
    openai_event(x, type, e);
}

static void begin(struct exchange *x)
{
    x->state = arena_alloc(&x->arena, sizeof(struct writing));
    if (!x->state) {
        x->lost = true;
        return;
    }
    json_object_set_new(x->keep, "items", json_array());
    event(x, "response.created", json_pack("{s:o}", "response", response(x, "in_progress", json_array(), NULL)));
    event(x, "response.in_progress", json_pack("{s:o}", "response", response(x, "in_progress", json_array(), NULL)));
}

static void item_begin(struct exchange *x, json_t *item)
{
    struct writing *w = x->state;

    event(x, "response.output_item.added", json_pack("{s:i, s:o}", "output_index", (int)w->index, "item", item));
}

static void item_end(struct exchange *x, json_t *item)
{
    struct writing *w = x->state;

    if (json_array_append(json_object_get(x->keep, "items"), item) < 0)
        x->lost = true;
    event(x, "response.output_item.done", json_pack("{s:i, s:o}", "output_index", (int)w->index, "item", item));
    w->index++;
    w->kind = NOTHING;
}

static void message_begin(struct exchange *x)
{
    struct writing *w = x->state;

    w->kind = MESSAGE;
    w->id = item_id(x, false, w->index);
    buf_clear(&x->text);
    item_begin(x, message_json(w->id, "in_progress", json_array()));
    event(x, "response.content_part.added", json_pack("{s:s, s:i, s:i, s:o}", "item_id", w->id, "output_index",
          (int)w->index, "content_index", 0, "part", part_json("", 0, NULL)));
}

static void message_end(struct exchange *x, const char *status)
{
    struct writing *w = x->state;
    const char *text = text_of(&x->text);
    json_t *part = part_json(text, x->text.len, x->logprobs);

    event(x, "response.output_text.done", json_pack("{s:s, s:i, s:i, s:s%, s:o}", "item_id", w->id, "output_index",
          (int)w->index, "content_index", 0, "text", text, x->text.len,
          "logprobs", x->logprobs ? json_incref(x->logprobs) : json_array()));
    event(x, "response.content_part.done", json_pack("{s:s, s:i, s:i, s:O}", "item_id", w->id, "output_index",
          (int)w->index, "content_index", 0, "part", part));
    item_end(x, message_json(w->id, status, json_pack("[o]", part)));
    json_decref(x->logprobs);
    x->logprobs = NULL;
}

static void call_begin(struct exchange *x, const struct request_delta *d)
{
    struct writing *w = x->state;

    w->kind = CALL;
    w->id = item_id(x, true, w->index);
    w->call_id = arena_strdup(&x->arena, d->call_id);
    w->name = arena_strndup(&x->arena, d->text, d->text_len);
    buf_clear(&x->arguments);
    item_begin(x, call_json(w->id, "in_progress", w->call_id, w->name, "", 0));
}

static void call_end(struct exchange *x, const char *status)
{
    struct writing *w = x->state;
    const char *arguments = text_of(&x->arguments);

    event(x, "response.function_call_arguments.done", json_pack("{s:s, s:i, s:s, s:s%}", "item_id", w->id,
          "output_index", (int)w->index, "name", w->name, "arguments", arguments, x->arguments.len));
    item_end(x, call_json(w->id, status, w->call_id, w->name, arguments, x->arguments.len));
}

static void writing_end(struct exchange *x, const char *status)
{
    struct writing *w = x->state;

    if (w->kind == MESSAGE)
        message_end(x, status);
    else if (w->kind == CALL)
        call_end(x, status);
}

static void text_delta(struct exchange *x, const struct request_delta *d)
{
    struct writing *w = x->state;

    if (w->kind != MESSAGE) {
        writing_end(x, "completed");
        message_begin(x);
    }
    if (buf_append(&x->text, d->text, d->text_len) < 0)
        x->lost = true;
    if (d->logprobs && !x->logprobs)
        x->logprobs = json_array();
    if (d->logprobs)
        json_array_extend(x->logprobs, d->logprobs);
    event(x, "response.output_text.delta", json_pack("{s:s, s:i, s:i, s:s%, s:o}", "item_id", w->id,
          "output_index", (int)w->index, "content_index", 0, "delta", d->text, d->text_len,
          "logprobs", d->logprobs ? json_incref(d->logprobs) : json_array()));
}

static void delta(struct exchange *x, const struct request_delta *d)
{
    struct writing *w = x->state;

    if (x->lost)
        return;
    switch (d->channel) {
    case ANSWER_TEXT:
        text_delta(x, d);
        return;
    case ANSWER_TOOL_NAME:
        writing_end(x, "completed");
        call_begin(x, d);
        return;
    case ANSWER_TOOL_ARGUMENTS:
        if (buf_append(&x->arguments, d->text, d->text_len) < 0)
            x->lost = true;
        event(x, "response.function_call_arguments.delta", json_pack("{s:s, s:i, s:s%}", "item_id", w->id,
              "output_index", (int)w->index, "delta", d->text, d->text_len));
    }
}

static void end(struct exchange *x, const struct request_result *res)
{
    struct writing *w = x->state;
    const char *status = incomplete(res) ? "incomplete" : "completed";

    if (w->kind == NOTHING && !w->index)
        message_begin(x);
    writing_end(x, status);
    event(x, incomplete(res) ? "response.incomplete" : "response.completed", json_pack("{s:o}", "response",
          response(x, status, json_incref(json_object_get(x->keep, "items")), res)));
    openai_cost(x, res);
}

/* Some clients look for the failed response, others for the error, and of these some for it at the top and some not. */
static void fail(struct exchange *x, const struct request_error *e)
{
    json_t *failed;

    if (!x->state)
        return;
    failed = response(x, "failed", json_incref(json_object_get(x->keep, "items")), NULL);
    json_object_set_new(failed, "error", json_pack("{s:s, s:s}", "code", e->code ? e->code : "server_error",
                                                   "message", e->message ? e->message : "failed"));
    event(x, "response.failed", json_pack("{s:o}", "response", failed));
    failed = openai_error(e);
    json_object_set_new(failed, "message", json_string(e->message ? e->message : "failed"));
    json_object_set_new(failed, "code", e->code ? json_string(e->code) : json_null());
    json_object_set_new(failed, "param", e->param ? json_string(e->param) : json_null());
    event(x, "error", failed);
}

const struct dialect openai_responses = {
    .name = "openai-responses", .stream_type = OPENAI_STREAM, .ping = OPENAI_PING, .parse = responses_parse,
    .begin = begin, .delta = delta, .end = end, .fail = fail, .answer = answer, .error = openai_error,
};
