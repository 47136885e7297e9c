/* Anthropic's Messages API, as stub_cloud speaks it at …/messages: bodies are held against its rules, and the modes
 * of cloud.c's head are its own streams. */
#include <ctype.h>
#include <string.h>
#include "tests/stub/stub.h"

static const char *text_of(const json_t *j, const char *key)
{
    const char *s = json_string_value(json_object_get(j, key));

    return s ? s : "";
}

static bool is(const json_t *j, const char *key, const char *value) { return strcmp(text_of(j, key), value) == 0; }

static bool is_blank(const char *s)
{
    while (isspace((unsigned char)*s))
        s++;
    return !*s;
}

/* The calls of the turn before that no result has answered, by id. */
static const char *block_read(json_t *messages, json_t *open, const char *role, const json_t *block)
{
    cleanup(freep) char *input = json_dumps(json_object_get(block, "input"), JSON_COMPACT);
    const char *id = text_of(block, "tool_use_id");

    if (is(block, "type", "text") && !is_blank(text_of(block, "text"))) {
        json_array_append_new(messages, json_pack("{s:s, s:s}", "role", role, "content", text_of(block, "text")));
        return NULL;
    }
    if (is(block, "type", "tool_use") && *role == 'a' && json_is_object(json_object_get(block, "input"))) {
        json_object_set_new(open, text_of(block, "id"), json_true());
        json_array_append_new(messages, json_pack("{s:s, s:n, s:[{s:s, s:s, s:{s:s, s:s}}]}", "role", role, "content",
            "tool_calls", "id", text_of(block, "id"), "type", "function", "function", "name", text_of(block, "name"),
            "arguments", input));
        return NULL;
    }
    if (!is(block, "type", "tool_result") || *role != 'u')
        return "a block that is not text, tool_use or tool_result, or is empty";
    if (json_object_del(open, id) < 0)
        return "a tool_result for no tool_use";
    json_array_append_new(messages, json_pack("{s:s, s:s, s:s}", "role", "tool", "tool_call_id", id, "content",
                                              text_of(block, "content")));
    return NULL;
}

static const char *turns_read(json_t *messages, const json_t *turns)
{
    cleanup(json_decrefp) json_t *open = json_object();
    const json_t *turn, *block;
    size_t i, k;

    if (!json_array_size(turns))
        return "no messages";
    json_array_foreach(turns, i, turn) {
        const char *role = text_of(turn, "role"), *why = NULL;

        if (strcmp(role, i % 2 ? "assistant" : "user") != 0)
            return "roles must alternate, the user first";
        if (!json_array_size(json_object_get(turn, "content")))
            return "empty content";
        json_array_foreach(json_object_get(turn, "content"), k, block) {
            why = block_read(messages, open, role, block);
            if (why)
                return why;
        }
        if (*role == 'u' && json_object_size(open))
            return "a tool_use without its tool_result in the next message";
    }
    return NULL;
}

static void tools_read(json_t *ours, const json_t *body)
{
    const json_t *choice = json_object_get(body, "tool_choice"), *tool;
    json_t *tools = json_array();
    size_t i;

    json_array_foreach(json_object_get(body, "tools"), i, tool)
        json_array_append_new(tools, json_pack("{s:s, s:{s:s, s:O?}}", "type", "function", "function", "name",
                                               text_of(tool, "name"), "parameters", json_object_get(tool, "input_schema")));
    json_object_set_new(ours, "tools", tools);
    if (is(choice, "type", "none"))
        json_object_set_new(ours, "tool_choice", json_string("none"));
    if (is(choice, "type", "tool"))
        json_object_set_new(ours, "tool_choice", json_pack("{s:s, s:{s:s}}", "type", "function", "function", "name",
                                                           text_of(choice, "name")));
    json_object_set_new(ours, "parallel_tool_calls",
                        json_boolean(!json_is_true(json_object_get(choice, "disable_parallel_tool_use"))));
}

json_t *anthropic_read(const struct request *q, const char **ret_why)
{
    const json_t *format = json_object_get(json_object_get(q->body, "output_config"), "format");
    json_t *ours = json_object(), *messages = json_array();

    json_object_set_new(ours, "messages", messages);
    *ret_why = !*header(q, "anthropic-version") ? "no anthropic-version" :
               !json_is_integer(json_object_get(q->body, "max_tokens")) ? "no max_tokens" :
               turns_read(messages, json_object_get(q->body, "messages"));
    if (*ret_why) {
        json_decref(ours);
        return NULL;
    }
    tools_read(ours, q->body);
    if (json_is_object(format))
        json_object_set_new(ours, "response_format", json_pack("{s:s, s:{s:O}}", "type", "json_schema", "json_schema",
                                                               "schema", json_object_get(format, "schema")));
    return ours;
}

void anthropic_error(struct conn *c, int status, const char *extra, const char *type, const char *message)
{
    answer_json(c, status, extra, json_pack("{s:s, s:{s:s, s:s}, s:s}", "type", "error", "error", "type", type,
                                            "message", message, "request_id", "req_stub"));
}

/* ---- Answers ---- */

/* Takes j, whose type is the event's name. One event is one HTTP chunk. */
static void event(struct conn *c, json_t *j)
{
    cleanup(freep) char *text = json_dumps(j, JSON_COMPACT);
    const char *name = text_of(j, "type");
    cleanup(buf_done) struct buf b = {.max = 64u << 20};

    if (buf_printf(&b, "%zx\r\nevent: %s\ndata: %s\n\n\r\n", strlen(text) + strlen(name) + 16, name, text) == 0)
        conn_write(c, b.data, b.len);
    json_decref(j);
}

static json_t *message(const struct request *q, json_t *content, const char *reason, int out)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:o, s:s?, s:n, s:{s:i, s:i, s:i, s:i}}", "id", "msg_stub", "type", "message",
                     "role", "assistant", "model", request_model(q), "content", content, "stop_reason", reason,
                     "stop_sequence", "usage", "input_tokens", 9, "cache_read_input_tokens", 2,
                     "cache_creation_input_tokens", 0, "output_tokens", out);
}

static json_t *tool_use(const json_t *call, bool whole)
{
    const json_t *f = json_object_get(call, "function");
    const char *arguments = text_of(f, "arguments");

    return json_pack("{s:s, s:s, s:s, s:o}", "type", "tool_use", "id", text_of(call, "id"), "name", text_of(f, "name"),
                     "input", whole ? json_parse(arguments, strlen(arguments), NULL) : json_object());
}

static void block_start(struct conn *c, int index, json_t *block)
{
    event(c, json_pack("{s:s, s:i, s:o}", "type", "content_block_start", "index", index, "content_block", block));
}

static void block_stop(struct conn *c, int index)
{
    event(c, json_pack("{s:s, s:i}", "type", "content_block_stop", "index", index));
}

static void block_delta(struct conn *c, int index, const char *type, const char *member, const char *text, size_t n)
{
    event(c, json_pack("{s:s, s:i, s:{s:s, s:s%}}", "type", "content_block_delta", "index", index, "delta", "type", type,
                       member, text, n));
}

/* The words of a stream; true when the mode ends it there. */
static bool words(struct conn *c, const struct request *q, const char *text)
{
    int gap = mode_is(q, "slow-chunks", NULL) ? 200 : 0, limit = 1, n_words = 0;
    bool limited = mode_is(q, "cut-after", &limit) || mode_is(q, "stop-after", &limit) || mode_is(q, "error-after", &limit);

    mode_is(q, "slow-chunks", &gap);
    block_start(c, 0, json_pack("{s:s, s:s}", "type", "text", "text", ""));
    event(c, json_pack("{s:s}", "type", "ping"));
    for (size_t n; !c->failed && !(limited && n_words == limit) && (n = word_len(text)) > 0; text += n, n_words++) {
        conn_wait(c, gap);
        block_delta(c, 0, "text_delta", "text", text, n);
    }
    if (mode_is(q, "error-after", NULL))
        event(c, json_pack("{s:s, s:{s:s, s:s}}", "type", "error", "error", "type", "overloaded_error", "message",
                           "Overloaded"));
    if (mode_is(q, "cut-after", NULL))
        c->failed = true;
    else if (!limited)
        block_stop(c, 0);
    return limited;
}

static void stream_calls(struct conn *c, const json_t *calls)
{
    const json_t *call;
    size_t i;

    json_array_foreach(calls, i, call) {
        const char *rest = text_of(json_object_get(call, "function"), "arguments");

        block_start(c, (int)i, tool_use(call, false));
        block_delta(c, (int)i, "input_json_delta", "partial_json", "", 0);
        for (size_t n; *rest; rest += n) {
            n = MIN(strlen(rest), 5u);
            block_delta(c, (int)i, "input_json_delta", "partial_json", rest, n);
        }
        block_stop(c, (int)i);
    }
}

static void say_stream(struct conn *c, const struct request *q, const char *text, const json_t *calls)
{
    int head = 1000;

    stream_begin(c);
    if (mode_is(q, "slow-head", &head))
        conn_wait(c, head);
    event(c, json_pack("{s:s, s:o}", "type", "message_start", "message", message(q, json_array(), NULL, 1)));
    if (calls)
        stream_calls(c, calls);
    else if (words(c, q, text)) {
        if (!c->failed)
            stream_end(c);
        return;
    }
    event(c, json_pack("{s:s, s:{s:s, s:n}, s:{s:i}}", "type", "message_delta", "delta", "stop_reason",
                       calls ? "tool_use" : "end_turn", "stop_sequence", "usage", "output_tokens", words_in(text)));
    if (!mode_is(q, "no-done", NULL))
        event(c, json_pack("{s:s}", "type", "message_stop"));
    if (mode_is(q, "hang-done", NULL))
        conn_wait(c, -1);
    stream_end(c);
}

void anthropic_say(struct conn *c, const struct request *q, const char *text, const json_t *calls)
{
    json_t *content = json_array();
    const json_t *call;
    size_t i;

    if (stream_wanted(q) && !mode_is(q, "json", NULL)) {
        json_decref(content);
        say_stream(c, q, text, calls);
        return;
    }
    if (!calls)
        json_array_append_new(content, json_pack("{s:s, s:s}", "type", "text", "text", text));
    json_array_foreach(calls, i, call)
        json_array_append_new(content, tool_use(call, true));
    answer_json(c, 200, "", message(q, content, calls ? "tool_use" : "end_turn", words_in(text)));
}
