/* From a client's JSON to struct chat_request and back. Plain numbers are rows of one table, read and written by the
 * same two loops; what has a shape of its own (messages, stop, stream_options) has a function; tools and formats
 * are chat_tools.c's. Faults name the member by its path and never quote its text. */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include "base/buf.h"
#include "base/chat_tools.h"

static const struct { const char *name; size_t offset; double min, max; } numbers[] = {
    {"temperature",       offsetof(struct chat_params, temperature),       0.0, 2.0},
    {"top_p",             offsetof(struct chat_params, top_p),             0.0, 1.0},
    {"min_p",             offsetof(struct chat_params, min_p),             0.0, 1.0},
    {"frequency_penalty", offsetof(struct chat_params, frequency_penalty), -2.0, 2.0},
    {"presence_penalty",  offsetof(struct chat_params, presence_penalty),  -2.0, 2.0},
    {"repeat_penalty",    offsetof(struct chat_params, repeat_penalty),    0.1, 10.0},
};

static double *number_at(const struct chat_params *p, size_t i)
{
    return (double *)((uintptr_t)p + numbers[i].offset);
}

struct chat_request *chat_request_new(void)
{
    struct chat_request *r = calloc(1, sizeof(*r));

    if (!r)
        return NULL;
    r->params.max_tokens = r->params.top_k = -1;
    r->params.seed = -1;
    r->parallel_tool_calls = -1;
    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
        *number_at(&r->params, i) = NAN;
    return r;
}

struct chat_request *chat_task_new(enum chat_task task, json_t *input)
{
    struct chat_request *r = input ? chat_request_new() : NULL;

    if (!r) {
        json_decref(input);
        return NULL;
    }
    r->task = task;
    r->input = input;
    return r;
}

void chat_request_free(struct chat_request *r)
{
    if (!r)
        return;
    json_decref(r->input);
    for (size_t i = 0; i < r->params.n_stop; i++)
        free(r->params.stop[i]);
    json_decref(r->messages);
    chat_tools_done(r);
    free(r->model);
    free(r);
}

size_t chat_content_bytes(const json_t *messages)
{
    size_t i, k, n = 0;
    json_t *m, *call;

    json_array_foreach(messages, i, m) {
        n += json_string_length(json_object_get(m, "content"));
        json_array_foreach(json_object_get(m, "tool_calls"), k, call)
            n += json_string_length(json_object_get(json_object_get(call, "function"), "arguments"));
    }
    return n;
}

const char *chat_last_user(const json_t *messages)
{
    for (size_t i = json_array_size(messages); i-- > 0;) {
        const json_t *m = json_array_get(messages, i);
        const char *role = json_string_value(json_object_get(m, "role"));

        if (role && strcmp(role, "user") == 0)
            return json_string_value(json_object_get(m, "content"));
    }
    return NULL;
}

/* Is it a kind of part that OpenAI's API knows, and nothing here can read? Its name, static, or NULL. */
static const char *part_unsupported(const char *type)
{
    static const char *const kinds[] = {
        "image_url", "input_image", "image", "input_audio", "audio", "file", "input_file", "video_url", "refusal",
    };

    for (size_t i = 0; type && i < ARRAY_SIZE(kinds); i++)
        if (strcmp(type, kinds[i]) == 0)
            return kinds[i];
    return NULL;
}

/* Join an array of text parts into one string. */
static int parts_join(json_t **ret, const json_t *parts, size_t at, struct err *err)
{
    cleanup(buf_done) struct buf text = {.max = SIZE_MAX};
    json_t *part, *joined;
    size_t i;

    json_array_foreach(parts, i, part) {
        const char *type = json_string_value(json_object_get(part, "type"));
        const json_t *s = json_object_get(part, "text");
        int r;

        if (!json_is_object(part))
            return err_set(err, -EINVAL, "messages[%zu].content[%zu]: expected an object", at, i);
        if (part_unsupported(type))
            return err_set(err, -EINVAL, "messages[%zu].content[%zu].type: %s is not supported; only text is", at, i,
                           part_unsupported(type));
        if (!type || strcmp(type, "text") != 0)
            return err_set(err, -EINVAL, "messages[%zu].content[%zu].type: only text is supported", at, i);
        if (!json_is_string(s))
            return err_set(err, -EINVAL, "messages[%zu].content[%zu].text: expected a string", at, i);
        r = buf_append(&text, json_string_value(s), json_string_length(s));
        if (r < 0)
            return r;
    }
    joined = json_stringn(text.data ? (char *)text.data : "", text.len);
    if (!joined)
        return -ENOMEM;
    *ret = joined;
    return 0;
}

/* The message's content as one string, a new reference. Only an assistant that calls tools may say nothing. */
static int content_read(json_t **ret, const json_t *message, bool may_be_null, size_t at, struct err *err)
{
    json_t *content = json_object_get(message, "content");

    if (json_is_string(content)) {
        *ret = json_incref(content);
        return 0;
    }
    if (json_is_array(content))
        return parts_join(ret, content, at, err);
    if ((content && !json_is_null(content)) || !may_be_null)
        return err_set(err, -EINVAL, "messages[%zu].content: expected a string or an array of text parts", at);
    *ret = json_string("");
    return *ret ? 0 : -ENOMEM;
}

static const char *role_read(const json_t *message)
{
    static const char *const roles[] = {"system", "user", "assistant", "tool"};
    const char *s = json_string_value(json_object_get(message, "role"));

    if (!s)
        return NULL;
    if (strcmp(s, "developer") == 0)
        return "system";
    for (size_t i = 0; i < ARRAY_SIZE(roles); i++)
        if (strcmp(s, roles[i]) == 0)
            return roles[i];
    return NULL;
}

/* A normalised copy of one message. */
static int message_read(json_t **ret, json_t *message, size_t at, struct err *err)
{
    cleanup(json_decrefp) json_t *m = json_object(), *calls = NULL;
    const char *role, *name = NULL, *id = NULL;
    json_t *content = NULL;
    struct err why;
    int r;

    if (!m)
        return -ENOMEM;
    if (!json_is_object(message))
        return err_set(err, -EINVAL, "messages[%zu]: expected an object", at);
    role = role_read(message);
    if (!role)
        return err_set(err, -EINVAL, "messages[%zu].role: expected system, developer, user, assistant or tool", at);
    if (json_read_string(message, "name", &name, &why) < 0 || json_read_string(message, "tool_call_id", &id, &why) < 0)
        return err_set(err, -EINVAL, "messages[%zu].%s", at, why.msg);
    if (strcmp(role, "tool") == 0 && (!id || !*id || strlen(id) > CHAT_MAX_CALL_ID))
        return err_set(err, -EINVAL, "messages[%zu].tool_call_id: expected a string of 1 to %d bytes", at,
                       CHAT_MAX_CALL_ID);
    r = chat_calls_read(&calls, message, at, err);
    if (r < 0)
        return r;
    if (calls && strcmp(role, "assistant") != 0)
        return err_set(err, -EINVAL, "messages[%zu].tool_calls: only the assistant calls tools", at);
    r = content_read(&content, message, calls, at, err);
    if (r < 0)
        return r;

    r = json_object_set_new(m, "role", json_string(role)) | json_object_set_new(m, "content", content);
    if (name)
        r |= json_object_set_new(m, "name", json_string(name));
    if (strcmp(role, "tool") == 0)
        r |= json_object_set_new(m, "tool_call_id", json_string(id));
    if (calls)
        r |= json_object_set(m, "tool_calls", calls);
    if (r < 0)
        return -ENOMEM;
    *ret = TAKE(m);
    return 0;
}

static int messages_read(struct chat_request *r, const json_t *body, struct err *err)
{
    json_t *messages = json_object_get(body, "messages"), *m, *copy;
    size_t i;

    if (!json_is_array(messages) || json_array_size(messages) == 0)
        return err_set(err, -EINVAL, "messages: expected an array of at least one message");
    if (json_array_size(messages) > CHAT_MAX_MESSAGES)
        return err_set(err, -EINVAL, "messages: expected at most %d messages", CHAT_MAX_MESSAGES);
    r->messages = json_array();
    if (!r->messages)
        return -ENOMEM;
    json_array_foreach(messages, i, m) {
        int x = message_read(&copy, m, i, err);
        if (x < 0)
            return x;
        if (json_array_append_new(r->messages, copy) < 0)
            return -ENOMEM;
    }
    return 0;
}

static int stop_add(struct chat_params *p, const json_t *s, struct err *err)
{
    if (!json_is_string(s) || json_string_length(s) == 0)
        return err_set(err, -EINVAL, "stop: expected a string that is not empty, or an array of up to %d of them",
                       CHAT_MAX_STOPS);
    p->stop[p->n_stop] = strdup(json_string_value(s));
    if (!p->stop[p->n_stop])
        return -ENOMEM;
    p->n_stop++;
    return 0;
}

static int stop_read(struct chat_params *p, const json_t *body, struct err *err)
{
    const json_t *stop = json_object_get(body, "stop"), *s;
    size_t i;

    if (!stop || json_is_null(stop))
        return 0;
    if (!json_is_array(stop))
        return stop_add(p, stop, err);
    if (json_array_size(stop) > CHAT_MAX_STOPS)
        return err_set(err, -EINVAL, "stop: expected at most %d strings", CHAT_MAX_STOPS);
    json_array_foreach(stop, i, s) {
        int r = stop_add(p, s, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int read_small(const json_t *body, const char *key, int min, int max, int *ret, struct err *err)
{
    int64_t v;
    int r = json_read_int(body, key, min, max, &v, err);

    if (r > 0)
        *ret = (int)v;
    return r;
}

static int params_read(struct chat_params *p, const json_t *body, struct err *err)
{
    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
        if (json_read_number(body, numbers[i].name, numbers[i].min, numbers[i].max, number_at(p, i), err) < 0)
            return -EINVAL;
    /* Where both are given the newer name, read last, wins. */
    if (read_small(body, "max_tokens", 1, INT_MAX, &p->max_tokens, err) < 0 ||
        read_small(body, "max_completion_tokens", 1, INT_MAX, &p->max_tokens, err) < 0 ||
        read_small(body, "top_k", 0, INT_MAX, &p->top_k, err) < 0 ||
        json_read_int(body, "seed", -1, INT64_MAX, &p->seed, err) < 0 ||
        json_read_bool(body, "logprobs", &p->logprobs, err) < 0 ||
        read_small(body, "top_logprobs", 0, CHAT_MAX_TOP_LOGPROBS, &p->top_logprobs, err) < 0)
        return -EINVAL;
    if (!p->logprobs)
        p->top_logprobs = 0;
    return stop_read(p, body, err);
}

static int stream_read(struct chat_request *r, const json_t *body, struct err *err)
{
    const json_t *options = json_object_get(body, "stream_options");
    struct err why;

    if (json_read_bool(body, "stream", &r->stream, err) < 0)
        return -EINVAL;
    if (options && !json_is_null(options) && !json_is_object(options))
        return err_set(err, -EINVAL, "stream_options: expected an object");
    if (json_read_bool(options, "include_usage", &r->include_usage, &why) < 0)
        return err_set(err, -EINVAL, "stream_options.%s", why.msg);
    return 0;
}

int chat_request_from_json(struct chat_request **ret, const json_t *body, struct err *err)
{
    cleanup(chat_request_freep) struct chat_request *req = NULL;
    const char *model = NULL;
    int r;

    if (!json_is_object(body))
        return err_set(err, -EINVAL, "expected a JSON object");
    req = chat_request_new();
    if (!req)
        return -ENOMEM;

    r = json_read_string(body, "model", &model, err);
    if (r < 0)
        return r;
    req->model = model ? strdup(model) : NULL;
    if (model && !req->model)
        return -ENOMEM;
    r = messages_read(req, body, err);
    if (r < 0)
        return r;
    r = params_read(&req->params, body, err);
    if (r < 0)
        return r;
    r = stream_read(req, body, err);
    if (r < 0)
        return r;
    r = chat_tools_read(req, body, err);
    if (r < 0)
        return r;

    *ret = TAKE(req);
    return 0;
}

static int stops_write(json_t *body, const struct chat_params *p)
{
    json_t *stop;

    if (p->n_stop == 0)
        return 0;
    stop = json_array();
    for (size_t i = 0; i < p->n_stop; i++)
        if (json_array_append_new(stop, json_string(p->stop[i])) < 0) {
            json_decref(stop);
            return -ENOMEM;
        }
    return json_object_set_new(body, "stop", stop);
}

static int params_write(json_t *body, const struct chat_params *p)
{
    int r = 0;

    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
        if (!isnan(*number_at(p, i)))
            r |= json_object_set_new(body, numbers[i].name, json_real(*number_at(p, i)));
    if (p->max_tokens >= 0)
        r |= json_object_set_new(body, "max_tokens", json_integer(p->max_tokens));
    if (p->top_k >= 0)
        r |= json_object_set_new(body, "top_k", json_integer(p->top_k));
    if (p->seed >= 0)
        r |= json_object_set_new(body, "seed", json_integer(p->seed));
    if (p->logprobs) {
        r |= json_object_set_new(body, "logprobs", json_true());
        r |= json_object_set_new(body, "top_logprobs", json_integer(p->top_logprobs));
    }
    return r | stops_write(body, p);
}

json_t *chat_request_to_json(const struct chat_request *req)
{
    cleanup(json_decrefp) json_t *body = json_object();
    int r;

    if (!body)
        return NULL;
    /* A copy, so that redacting what is sent upstream leaves the request as it was. */
    r = json_object_set_new(body, "messages", json_deep_copy(req->messages));
    r |= params_write(body, &req->params);
    r |= chat_tools_write(body, req);
    if (req->model)
        r |= json_object_set_new(body, "model", json_string(req->model));
    if (req->stream)
        r |= json_object_set_new(body, "stream", json_true());
    if (req->include_usage)
        r |= json_object_set_new(body, "stream_options", json_pack("{s:b}", "include_usage", 1));
    return r < 0 ? NULL : TAKE(body);
}
