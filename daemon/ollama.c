/* Ollama's /api/chat and /api/generate: one JSON object a line, streamed unless asked otherwise. A body is rewritten
 * into the one of chat completions, which chat.c then reads. Calls have no ids here: they get one each, and results
 * find theirs by the tool's name, or in order. Options that only tell Ollama how to use the machine are ignored, as
 * there; what would change the answer and cannot be done is refused by name. A request without a prompt asks for a model
 * to be loaded, which the local one is. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "base/clock.h"
#include "daemon/http.h"
#include "daemon/ollama.h"

#define INVALID(x, e, ...) ollama_invalid(e, arena_printf(&(x)->arena, __VA_ARGS__))

json_t *ollama_error(const struct request_error *e)
{
    return json_pack("{s:s}", "error", e->message ? e->message : "failed");
}

int ollama_invalid(struct request_error *e, const char *message)
{
    if (!message)
        return -ENOMEM;
    *e = (struct request_error){.http_status = 400, .type = "invalid_request_error", .code = "invalid_value",
                                .message = message};
    return -EINVAL;
}

const char *ollama_model_name(struct exchange *x, const json_t *body, const char *member)
{
    const char *name = json_string_value(json_object_get(body, member));
    size_t n = name ? strlen(name) : 0;

    if (n > 7 && strcmp(name + n - 7, ":latest") == 0)
        n -= 7;
    return n ? arena_strndup(&x->arena, name, n) : NULL;
}

static bool is_chat(const struct exchange *x) { return x->dialect == &ollama_chat; }

/* ---- The request ------------------------------------------------------------------------------------------------- */

static const char *text_of(const json_t *obj, const char *key)
{
    const char *s = json_string_value(json_object_get(obj, key));

    return s ? s : "";
}

/* Ollama's clients send null, "", [] and false for what was not asked. */
static bool is_given(const json_t *v)
{
    return v && !json_is_null(v) && !json_is_false(v) && !(json_is_string(v) && !json_string_length(v)) &&
           !(json_is_array(v) && !json_array_size(v));
}

static int take(json_t *out, const char *as, const json_t *from, const char *name)
{
    json_t *v = json_object_get(from, name);

    return v && !json_is_null(v) ? json_object_set(out, as, v) : 0;
}

/* {"function":{"name":…,"arguments":{…}}}, as ours with an id. */
static int call_read(struct exchange *x, struct request_error *e, json_t *calls, size_t at, size_t i,
                     const json_t *call)
{
    const json_t *function = json_object_get(call, "function"), *arguments = json_object_get(function, "arguments");
    cleanup(freep) char *text = NULL;
    const char *id = text_of(call, "id");

    if (!*text_of(function, "name") || !json_is_object(arguments))
        return INVALID(x, e, "messages[%zu].tool_calls[%zu].function: expected a name, and arguments as an object",
                       at, i);
    text = json_dumps(arguments, JSON_COMPACT);
    if (!*id)
        id = arena_printf(&x->arena, "call_%zu_%zu", at, i);
    if (!text || !id)
        return -ENOMEM;
    return json_array_append_new(calls, json_pack("{s:s, s:s, s:{s:s, s:s}}", "id", id, "type", "function",
                                                  "function", "name", text_of(function, "name"), "arguments", text));
}

/* The id of the call that a result answers, taken off `open`; NULL: there is none left. */
static const char *call_answered(struct exchange *x, json_t *open, const json_t *result)
{
    const char *name = *text_of(result, "tool_name") ? text_of(result, "tool_name") : text_of(result, "name");
    const char *id = text_of(result, "tool_call_id");
    size_t i, found = json_array_size(open);
    const json_t *call;

    json_array_foreach(open, i, call)
        if (*id ? strcmp(text_of(call, "id"), id) == 0
                : !*name || strcmp(text_of(json_object_get(call, "function"), "name"), name) == 0) {
            found = i;
            break;
        }
    if (found == json_array_size(open))
        return NULL;
    id = arena_strdup(&x->arena, text_of(json_array_get(open, found), "id"));
    json_array_remove(open, found);
    return id;
}

/* `open`: calls that no result has answered yet. */
static int message_read(struct exchange *x, struct request_error *e, json_t *messages, json_t *open, size_t at,
                        const json_t *m)
{
    const json_t *calls = json_object_get(m, "tool_calls"), *call;
    json_t *ours = json_pack("{s:s, s:s}", "role", text_of(m, "role"), "content", text_of(m, "content")), *list;
    const char *id = NULL;
    size_t i;
    int r;

    if (json_array_append_new(messages, ours) < 0)
        return -ENOMEM;
    if (!json_is_object(m) || (json_object_get(m, "content") && !json_is_string(json_object_get(m, "content"))))
        return INVALID(x, e, "messages[%zu].content: expected a string", at);
    if (is_given(json_object_get(m, "images")))
        return INVALID(x, e, "messages[%zu].images: images are not supported; only text is", at);
    if (strcmp(text_of(m, "role"), "tool") == 0) {
        id = call_answered(x, open, m);
        if (!id)
            return INVALID(x, e, "messages[%zu]: a tool's result that answers no call before it", at);
        return json_object_set_new(ours, "tool_call_id", json_string(id));
    }
    if (!is_given(calls))
        return 0;
    if (!json_is_array(calls))
        return INVALID(x, e, "messages[%zu].tool_calls: expected an array", at);
    list = json_array();
    if (json_object_set_new(ours, "tool_calls", list) < 0)
        return -ENOMEM;
    json_array_foreach(calls, i, call) {
        r = call_read(x, e, list, at, i, call);
        if (r < 0)
            return r;
    }
    return json_array_extend(open, list);
}

static int messages_read(struct exchange *x, struct request_error *e, json_t *out, const json_t *body)
{
    const json_t *theirs = json_object_get(body, "messages"), *m;
    json_t *messages = json_array();
    cleanup(json_decrefp) json_t *open = json_array();
    size_t i;
    int r;

    if (json_object_set_new(out, "messages", messages) < 0)
        return -ENOMEM;
    json_array_foreach(theirs, i, m) {
        r = i < CHAT_MAX_MESSAGES ? message_read(x, e, messages, open, i, m)
                                  : INVALID(x, e, "messages: expected at most %d messages", CHAT_MAX_MESSAGES);
        if (r < 0)
            return r;
    }
    return 0;
}

/* /api/generate: a prompt, and perhaps what stands before it. */
static int prompt_read(struct exchange *x, struct request_error *e, json_t *out, const json_t *body)
{
    static const char *const members[] = {"suffix", "template", "context", "raw", "images"};
    const json_t *system = json_object_get(body, "system");
    json_t *messages = json_array();
    int r = 0;

    if (json_object_set_new(out, "messages", messages) < 0)
        return -ENOMEM;
    for (size_t i = 0; i < ARRAY_SIZE(members); i++)
        if (is_given(json_object_get(body, members[i])))
            return INVALID(x, e, "%s: not supported here", members[i]);
    if (is_given(system) && !json_is_string(system))
        return ollama_invalid(e, "system: expected a string");
    if (is_given(system))
        r = json_array_append_new(messages, json_pack("{s:s, s:O}", "role", "system", "content", system));
    return r | json_array_append_new(messages, json_pack("{s:s, s:O}", "role", "user",
                                                         "content", json_object_get(body, "prompt")));
}

/* An option that counts only from `min` on; below it Ollama takes it as not given. */
static int count_read(struct exchange *x, struct request_error *e, json_t *out, const char *as, const json_t *options,
                      const char *name, json_int_t min)
{
    json_t *v = json_object_get(options, name);

    if (!v || json_is_null(v))
        return 0;
    if (!json_is_integer(v))
        return INVALID(x, e, "options.%s: expected a whole number", name);
    return json_integer_value(v) >= min ? json_object_set(out, as, v) : 0;
}

static int options_read(struct exchange *x, struct request_error *e, json_t *out, const json_t *body)
{
    static const char *const same[] = {"temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty",
                                       "frequency_penalty", "stop"};
    static const struct { const char *name; double off; } refused[] = {{"mirostat", 0}, {"typical_p", 1}, {"tfs_z", 1}};
    const json_t *options = json_object_get(body, "options"), *v;
    int r = 0;

    if (options && !json_is_null(options) && !json_is_object(options))
        return ollama_invalid(e, "options: expected an object");
    for (size_t i = 0; i < ARRAY_SIZE(same); i++)
        r |= take(out, same[i], options, same[i]);
    for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
        v = json_object_get(options, refused[i].name);
        if (json_is_number(v) && (json_number_value(v) < refused[i].off || json_number_value(v) > refused[i].off))
            return INVALID(x, e, "options.%s: not supported here", refused[i].name);
    }
    if (r == 0)
        r = count_read(x, e, out, "max_tokens", options, "num_predict", 1);
    if (r == 0)
        r = count_read(x, e, out, "top_k", options, "top_k", 0);
    return r ? r : count_read(x, e, out, "seed", options, "seed", 0);
}

/* "json", or a schema. */
static int format_read(struct request_error *e, json_t *out, const json_t *body)
{
    json_t *format = json_object_get(body, "format");

    if (!is_given(format))
        return 0;
    if (json_is_object(format))
        return json_object_set_new(out, "response_format", json_pack("{s:s, s:{s:s, s:O, s:b}}", "type", "json_schema",
            "json_schema", "name", "answer", "schema", format, "strict", 1));
    if (strcmp(text_of(body, "format"), "json") != 0)
        return ollama_invalid(e, "format: expected \"json\" or a JSON schema");
    return json_object_set_new(out, "response_format", json_pack("{s:s}", "type", "json_object"));
}

static int rewrite(struct exchange *x, struct request_error *e, json_t **ret, const json_t *body, const char *model)
{
    static const char *const same[] = {"logprobs", "top_logprobs"};
    cleanup(json_decrefp) json_t *out = json_pack("{s:s, s:b}", "model", model, "stream", 1);
    int r = out ? 0 : -ENOMEM;

    for (size_t i = 0; i < ARRAY_SIZE(same); i++)
        r |= take(out, same[i], body, same[i]);
    r |= take(out, "stream", body, "stream");
    if (r == 0 && is_given(json_object_get(body, "think")))
        r = ollama_invalid(e, "think: no model here thinks aloud");
    if (r == 0 && is_chat(x))
        r = take(out, "tools", body, "tools");
    if (r == 0)
        r = (is_chat(x) ? messages_read : prompt_read)(x, e, out, body);
    if (r == 0)
        r = options_read(x, e, out, body);
    if (r == 0)
        r = format_read(e, out, body);
    if (r == 0)
        *ret = TAKE(out);
    return r == -EINVAL || r == 0 ? r : -ENOMEM;
}

static json_t *line(const struct exchange *x, const char *model, const char *text, size_t len, bool done)
{
    char now[CLOCK_RFC3339_BYTES];
    json_t *j;

    clock_rfc3339(now, clock_wall_usec());
    j = json_pack("{s:s, s:s, s:b}", "model", model, "created_at", now, "done", done);
    if (is_chat(x))
        json_object_set_new(j, "message", json_pack("{s:s, s:s%}", "role", "assistant", "content", text, len));
    else
        json_object_set_new(j, "response", json_stringn(text, len));
    return j;
}

static int parse(struct exchange *x, const json_t *body, struct chat_request **ret, struct request_error *e)
{
    const char *model = ollama_model_name(x, body, "model"), *input = is_chat(x) ? "messages" : "prompt";
    cleanup(json_decrefp) json_t *ours = NULL;
    struct err err;
    json_t *load;
    int r;

    if (!model)
        return ollama_invalid(e, "model: expected a string");
    if (is_given(json_object_get(body, input)) &&
        !(is_chat(x) ? json_is_array(json_object_get(body, input)) : json_is_string(json_object_get(body, input))))
        return INVALID(x, e, "%s: expected %s", input, is_chat(x) ? "an array" : "a string");
    if (!is_given(json_object_get(body, input))) {
        r = ollama_model_check(x, model, e);
        if (r < 0)
            return r;
        load = line(x, model, "", 0, true);
        json_object_set_new(load, "done_reason", json_string("load"));
        exchange_reply_json(x, 200, load);
        return 1;
    }
    r = rewrite(x, e, &ours, body, model);
    if (r < 0)
        return r;
    x->state = (void *)model;              /* the name that the client knows it by */
    r = chat_request_from_json(ret, ours, &err);
    return r == -EINVAL ? INVALID(x, e, "%s", err.msg) : r;
}

/* ---- The answer -------------------------------------------------------------------------------------------------- */

static json_t *answer_line(const struct exchange *x, const char *text, size_t len, bool done)
{
    return line(x, x->state, len ? text : "", len, done);
}

static int nsec_add(json_t *j, const char *name, uint64_t usec)
{
    return json_object_set_new(j, name, json_integer((json_int_t)usec * 1000));
}

/* What the last object tells besides. The model was loaded long ago. */
static json_t *ended(const struct exchange *x, json_t *j, const struct request_result *res)
{
    json_object_set_new(j, "done_reason", json_string(strcmp(res->finish, "length") == 0 ? "length" : "stop"));
    nsec_add(j, "total_duration", clock_usec() - x->started_usec);
    nsec_add(j, "load_duration", 0);
    json_object_set_new(j, "prompt_eval_count", json_integer(res->tokens_in));
    nsec_add(j, "prompt_eval_duration", res->prefill_usec);
    json_object_set_new(j, "eval_count", json_integer(res->tokens_out));
    nsec_add(j, "eval_duration", res->decode_usec);
    return j;
}

/* A call in Ollama's shape; one that the token limit cut off has no readable arguments. */
static json_t *call_json(size_t index, const char *id, const char *name, const char *arguments)
{
    json_t *parsed = json_parse(arguments, strlen(arguments), NULL);

    if (!json_is_object(parsed)) {
        json_decref(parsed);
        parsed = json_object();
    }
    return json_pack("{s:s, s:{s:i, s:s, s:o}}", "id", id, "function", "index", (int)index, "name", name,
                     "arguments", parsed);
}

static void calls_add(json_t *j, json_t *calls)
{
    json_object_set_new(json_object_get(j, "message"), "tool_calls", calls);
}

static json_t *answer(struct exchange *x, const struct request_result *res)
{
    json_t *j = answer_line(x, (char *)x->text.data, x->text.len, true), *calls, *call, *function;
    size_t i;

    if (json_array_size(x->calls) && is_chat(x)) {
        calls = json_array();
        json_array_foreach(x->calls, i, call) {
            function = json_object_get(call, "function");
            json_array_append_new(calls, call_json(i, text_of(call, "id"), text_of(function, "name"),
                                                   text_of(function, "arguments")));
        }
        calls_add(j, calls);
    }
    if (x->logprobs)
        json_object_set(j, "logprobs", x->logprobs);
    return ended(x, j, res);
}

static void write_line(struct exchange *x, json_t *j)
{
    cleanup(freep) char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;
    cleanup(buf_done) struct buf out = {.max = SIZE_MAX};

    json_decref(j);
    if (text && buf_printf(&out, "%s\n", text) == 0)
        exchange_write(x, out.data, out.len);
    else
        x->lost = true;
}

static void begin(struct exchange *x)
{
}

/* The call that was being written goes out, whole, in a line of its own. x->calls holds the calls begun. */
static void call_flush(struct exchange *x)
{
    size_t n = json_array_size(x->calls);
    const json_t *call = json_array_get(x->calls, n - 1);
    json_t *j;

    if (!n || json_is_true(json_object_get(call, "sent")))
        return;
    j = answer_line(x, "", 0, false);
    calls_add(j, json_pack("[o]", call_json(n - 1, text_of(call, "id"), text_of(call, "name"),
                                            x->arguments.len ? (char *)x->arguments.data : "")));
    write_line(x, j);
    json_object_set_new((json_t *)call, "sent", json_true());
    buf_clear(&x->arguments);
}

static void delta(struct exchange *x, const struct request_delta *d)
{
    json_t *j;

    switch (d->channel) {
    case ANSWER_TEXT:
        call_flush(x);
        j = answer_line(x, d->text, d->text_len, false);
        if (d->logprobs)
            json_object_set(j, "logprobs", d->logprobs);
        write_line(x, j);
        break;
    case ANSWER_TOOL_NAME:
        call_flush(x);
        x->calls = x->calls ? x->calls : json_array();
        x->lost |= json_array_append_new(x->calls, json_pack("{s:s, s:s%}", "id", d->call_id, "name", d->text,
                                                             d->text_len)) < 0;
        break;
    case ANSWER_TOOL_ARGUMENTS:
        x->lost |= buf_append(&x->arguments, d->text, d->text_len) < 0;
        break;
    }
}

static void end(struct exchange *x, const struct request_result *res)
{
    call_flush(x);
    write_line(x, ended(x, answer_line(x, "", 0, true), res));
}

static void fail(struct exchange *x, const struct request_error *e)
{
    write_line(x, ollama_error(e));
}

#define OLLAMA_STREAM \
    .stream_type = "application/x-ndjson", .parse = parse, .begin = begin, .delta = delta, .end = end, .fail = fail, \
    .answer = answer, .error = ollama_error
const struct dialect ollama_chat = {.name = "ollama-chat", OLLAMA_STREAM};
const struct dialect ollama_generate = {.name = "ollama-generate", OLLAMA_STREAM};
