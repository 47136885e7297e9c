/* Requests: what clients send is normalised, what is given makes the round trip, and faults name the member without a
 * word of the content. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include "base/chat.h"

#define HELLO "\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]"
#define WITH(m) "{" HELLO "," m "}"

static int parse(struct chat_request **ret, const char *s, struct err *err)
{
    cleanup(json_decrefp) json_t *body = json_parse(s, strlen(s), err);

    cr_assert_not_null(body, "the test's own JSON: %s", s);
    return chat_request_from_json(ret, body, err);
}

Test(chat, nothing_given)
{
    cleanup(chat_request_freep) struct chat_request *r = NULL;
    cleanup(json_decrefp) json_t *j = NULL;
    cleanup(freep) char *s = NULL;
    struct err err;

    cr_assert_eq(parse(&r, WITH("\"temperature\":null,\"stop\":null,\"stream_options\":null,\"unknown\":{}"), &err), 0);
    cr_assert(isnan(r->params.temperature) && isnan(r->params.top_p) && isnan(r->params.min_p));
    cr_assert(isnan(r->params.frequency_penalty) && isnan(r->params.presence_penalty));
    cr_assert(isnan(r->params.repeat_penalty));
    cr_assert(r->params.max_tokens == -1 && r->params.top_k == -1 && r->params.seed == -1);
    cr_assert(!r->params.logprobs && r->params.top_logprobs == 0 && r->params.n_stop == 0);
    cr_assert(!r->model && !r->stream && !r->include_usage);
    j = chat_request_to_json(r);
    s = json_canonical(j);
    cr_assert_str_eq(s, "{\"messages\":[{\"content\":\"hello\",\"role\":\"user\"}]}");
}

Test(chat, round_trip)
{
    static const char text[] =
        "{\"frequency_penalty\":-2.0,\"logprobs\":true,\"max_tokens\":17,"
        "\"messages\":[{\"content\":\"be brief\",\"role\":\"system\"},"
        "{\"content\":\"hi\",\"name\":\"ann\",\"role\":\"user\"},"
        "{\"content\":\"\",\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"arguments\":\"{}\",\"name\":\"f\"},"
        "\"id\":\"c1\",\"type\":\"function\"}]},{\"content\":\"42\",\"role\":\"tool\",\"tool_call_id\":\"c1\"}],"
        "\"min_p\":0.25,\"model\":\"auto\",\"presence_penalty\":2.0,"
        "\"repeat_penalty\":1.5,\"seed\":9223372036854775807,"
        "\"stop\":[\"a\",\"b\",\"c\",\"d\"],\"stream\":true,\"stream_options\":{\"include_usage\":true},"
        "\"temperature\":0.0,\"top_k\":0,\"top_logprobs\":20,\"top_p\":1.0}";
    cleanup(chat_request_freep) struct chat_request *r = NULL;
    cleanup(json_decrefp) json_t *j = NULL;
    cleanup(freep) char *s = NULL;
    struct err err;

    cr_assert_eq(parse(&r, text, &err), 0, "%s", err.msg);
    cr_assert_eq(r->params.n_stop, 4);
    cr_assert_eq(r->params.seed, INT64_MAX);
    cr_assert_eq(r->params.repeat_penalty, 1.5);
    cr_assert(r->stream && r->include_usage && r->params.logprobs);
    j = chat_request_to_json(r);
    s = json_canonical(j);
    cr_assert_str_eq(s, text);

    /* What is written to one tier is a copy: redacting it leaves the request alone. */
    json_string_set(json_object_get(json_array_get(json_object_get(j, "messages"), 1), "content"), "[redacted]");
    cr_assert_str_eq(chat_last_user(r->messages), "hi");
    cr_assert_eq(chat_content_bytes(r->messages), strlen("be briefhi{}42"));
}

#define CALL "{\"id\":\"c1\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}"
#define CALL_READ "{\"function\":{\"arguments\":\"{}\",\"name\":\"f\"},\"id\":\"c1\",\"type\":\"function\"}"

Test(chat, normalised)
{
    cleanup(chat_request_freep) struct chat_request *r = NULL;
    const char *text = "{\"messages\":[{\"role\":\"developer\",\"content\":[]},"
        "{\"role\":\"user\",\"content\":["
        "{\"type\":\"text\",\"text\":\"one \"},{\"type\":\"text\",\"text\":\"\"},"
        "{\"type\":\"text\",\"text\":\"two\"}]},"
        "{\"role\":\"assistant\",\"content\":null,\"audio\":null,\"tool_calls\":[" CALL "]},"
        "{\"role\":\"assistant\",\"refusal\":null,\"tool_calls\":[" CALL "]},"
        "{\"role\":\"tool\",\"content\":[{\"type\":\"text\",\"text\":\"42\"}],\"tool_call_id\":\"c1\"}],"
        "\"max_tokens\":5,\"max_completion_tokens\":6,\"stop\":\"x\",\"top_logprobs\":3,\"seed\":-1,\"stream\":false}";
    cleanup(json_decrefp) json_t *body = json_parse(text, strlen(text), NULL);
    cleanup(freep) char *before = json_canonical(body), *after = NULL, *s = NULL;
    struct err err;

    cr_assert_eq(chat_request_from_json(&r, body, &err), 0, "%s", err.msg);
    s = json_canonical(r->messages);
    cr_assert_str_eq(s, "[{\"content\":\"\",\"role\":\"system\"},{\"content\":\"one two\",\"role\":\"user\"},"
                        "{\"content\":\"\",\"role\":\"assistant\",\"tool_calls\":[" CALL_READ "]},"
                        "{\"content\":\"\",\"role\":\"assistant\",\"tool_calls\":[" CALL_READ "]},"
                        "{\"content\":\"42\",\"role\":\"tool\",\"tool_call_id\":\"c1\"}]");
    cr_assert_eq(r->params.max_tokens, 6);
    cr_assert_eq(r->params.n_stop, 1);
    cr_assert_eq(r->params.top_logprobs, 0);
    cr_assert_eq(r->params.seed, -1);
    cr_assert_str_eq(chat_last_user(r->messages), "one two");
    after = json_canonical(body);
    cr_assert_str_eq(before, after, "the caller's body was changed");
}

#define NAME_EXPECTED "expected 1 to 64 letters, digits, '_' or '-'"
#define CALLS(c) "{\"role\":\"assistant\",\"tool_calls\":[" c "]}"
#define TOOL(name, parameters) \
    "{\"type\":\"function\",\"function\":{\"name\":\"" name "\",\"parameters\":" parameters "}}"
#define NAMED(name) "{\"type\":\"function\",\"function\":{\"name\":\"" name "\"}}"
#define MESSAGE(m) "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}," m "]}"

Test(chat, refused)
{
    static const struct { const char *body, *msg; } bad[] = {
        {"[]", "expected a JSON object"},
        {"{}", "messages: expected an array of at least one message"},
        {"{\"messages\":[]}", "messages: expected an array of at least one message"},
        {"{\"messages\":{}}", "messages: expected an array of at least one message"},
        {MESSAGE("\"secret\""), "messages[1]: expected an object"},
        {MESSAGE("{\"content\":\"secret\"}"),
         "messages[1].role: expected system, developer, user, assistant or tool"},
        {MESSAGE("{\"role\":\"secret\",\"content\":\"\"}"),
         "messages[1].role: expected system, developer, user, assistant or tool"},
        {MESSAGE("{\"role\":5,\"content\":\"\"}"),
         "messages[1].role: expected system, developer, user, assistant or tool"},
        {MESSAGE("{\"role\":\"user\"}"), "messages[1].content: expected a string or an array of text parts"},
        {MESSAGE("{\"role\":\"user\",\"content\":null}"),
         "messages[1].content: expected a string or an array of text parts"},
        {MESSAGE("{\"role\":\"assistant\",\"content\":null}"),
         "messages[1].content: expected a string or an array of text parts"},
        {MESSAGE("{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[]}"),
         "messages[1].content: expected a string or an array of text parts"},
        {MESSAGE("{\"role\":\"assistant\",\"content\":7,\"tool_calls\":[" CALL "]}"),
         "messages[1].content: expected a string or an array of text parts"},
        {MESSAGE("{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":{}}"),
         "messages[1].tool_calls: expected an array of at most 128 calls"},
        {MESSAGE("{\"role\":\"user\",\"content\":\"\",\"name\":{}}"), "messages[1].name: expected a string"},
        {MESSAGE("{\"role\":\"tool\",\"content\":\"\",\"tool_call_id\":1}"),
         "messages[1].tool_call_id: expected a string"},
        {MESSAGE("{\"role\":\"user\",\"content\":[\"secret\"]}"), "messages[1].content[0]: expected an object"},
        {MESSAGE("{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"secret\"},{\"type\":\"image_url\"}]}"),
         "messages[1].content[1].type: image_url is not supported; only text is"},
        {MESSAGE("{\"role\":\"user\",\"content\":[{\"text\":\"secret\"}]}"),
         "messages[1].content[0].type: only text is supported"},
        {MESSAGE("{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}"),
         "messages[1].content[0].text: expected a string"},
        {MESSAGE("{\"role\":\"user\",\"content\":\"\",\"tool_calls\":[" CALL "]}"),
         "messages[1].tool_calls: only the assistant calls tools"},
        {MESSAGE("{\"role\":\"tool\",\"content\":\"\"}"),
         "messages[1].tool_call_id: expected a string of 1 to 256 bytes"},
        {MESSAGE("{\"role\":\"tool\",\"content\":null,\"tool_call_id\":\"c\"}"),
         "messages[1].content: expected a string or an array of text parts"},
        {MESSAGE(CALLS("7")), "messages[1].tool_calls[0]: expected an object"},
        {MESSAGE(CALLS("{}")), "messages[1].tool_calls[0].id: expected a string of 1 to 256 bytes"},
        {MESSAGE(CALLS("{\"id\":\"c\",\"type\":\"custom\"}")), "messages[1].tool_calls[0].type: expected function"},
        {MESSAGE(CALLS("{\"id\":\"c\",\"function\":{\"name\":\"a secret\"}}")),
         "messages[1].tool_calls[0].function.name: " NAME_EXPECTED},
        {MESSAGE(CALLS("{\"id\":\"c\",\"function\":{\"name\":\"f\",\"arguments\":{}}}")),
         "messages[1].tool_calls[0].function.arguments: expected a string"},
        {WITH("\"tools\":{}"), "tools: expected an array of at most 128 tools"},
        {WITH("\"tools\":[{\"type\":\"web_search\"}]"),
         "tools[0].type: expected function; no other tools are supported"},
        {WITH("\"tools\":[{\"type\":\"function\"}]"), "tools[0].function: expected an object"},
        {WITH("\"tools\":[" TOOL("secret name", "{}") "]"), "tools[0].function.name: " NAME_EXPECTED},
        {WITH("\"tools\":[" TOOL("f", "{}") "," TOOL("f", "{}") "]"),
         "tools[1].function.name: expected another name than the tools before it"},
        {WITH("\"tools\":[" TOOL("f", "[]") "]"), "tools[0].function.parameters: expected an object"},
        {WITH("\"tools\":[" TOOL("f", "{},\"description\":5") "]"), "tools[0].function.description: expected a string"},
        {WITH("\"tools\":[" TOOL("f", "{},\"strict\":5") "]"), "tools[0].function.strict: expected true or false"},
        {WITH("\"tool_choice\":\"required\""), "tool_choice: required needs tools"},
        {WITH("\"tool_choice\":\"secret\""), "tool_choice: expected auto, none, required or a function"},
        {WITH("\"tools\":[" TOOL("f", "{}") "],\"tool_choice\":" NAMED("g")),
         "tool_choice.function.name: expected the name of one of the tools"},
        {WITH("\"parallel_tool_calls\":1"), "parallel_tool_calls: expected true or false"},
        {WITH("\"response_format\":\"json\""), "response_format.type: expected text, json_object or json_schema"},
        {WITH("\"response_format\":{\"type\":\"json_schema\"}"), "response_format.json_schema: expected an object"},
        {WITH("\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"schema\":{}}}"),
         "response_format.json_schema.name: " NAME_EXPECTED},
        {WITH("\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"n\"}}"),
         "response_format.json_schema.schema: expected an object"},
        {WITH("\"model\":1"), "model: expected a string"},
        {WITH("\"temperature\":2.1"), "temperature: expected a number from 0 to 2"},
        {WITH("\"temperature\":-0.1"), "temperature: expected a number from 0 to 2"},
        {WITH("\"temperature\":\"secret\""), "temperature: expected a number from 0 to 2"},
        {WITH("\"top_p\":1.01"), "top_p: expected a number from 0 to 1"},
        {WITH("\"min_p\":-1"), "min_p: expected a number from 0 to 1"},
        {WITH("\"frequency_penalty\":3"), "frequency_penalty: expected a number from -2 to 2"},
        {WITH("\"presence_penalty\":-3"), "presence_penalty: expected a number from -2 to 2"},
        {WITH("\"repeat_penalty\":0"), "repeat_penalty: expected a number from 0.1 to 10"},
        {WITH("\"max_tokens\":0"), "max_tokens: expected an integer from 1 to 2147483647"},
        {WITH("\"max_tokens\":2147483648"), "max_tokens: expected an integer from 1 to 2147483647"},
        {WITH("\"max_completion_tokens\":1.5"), "max_completion_tokens: expected an integer from 1 to 2147483647"},
        {WITH("\"top_k\":-1"), "top_k: expected an integer from 0 to 2147483647"},
        {WITH("\"seed\":-2"), "seed: expected an integer from -1 to 9223372036854775807"},
        {WITH("\"logprobs\":1"), "logprobs: expected true or false"},
        {WITH("\"top_logprobs\":21"), "top_logprobs: expected an integer from 0 to 20"},
        {WITH("\"stop\":\"\""), "stop: expected a string that is not empty, or an array of up to 4 of them"},
        {WITH("\"stop\":[\"secret\",5]"), "stop: expected a string that is not empty, or an array of up to 4 of them"},
        {WITH("\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\"]"), "stop: expected at most 4 strings"},
        {WITH("\"stream\":\"yes\""), "stream: expected true or false"},
        {WITH("\"stream_options\":[]"), "stream_options: expected an object"},
        {WITH("\"stream_options\":{\"include_usage\":1}"), "stream_options.include_usage: expected true or false"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct chat_request *r = (void *)bad;
        struct err err = {0};
        cr_assert_eq(parse(&r, bad[i].body, &err), -EINVAL, "%s", bad[i].body);
        cr_assert_str_eq(err.msg, bad[i].msg);
        cr_assert_eq(r, (void *)bad, "touched on failure");
        cr_assert_eq(parse(&r, bad[i].body, NULL), -EINVAL);
    }
}

/* What is given of tools and formats, as it is read and written back. */
Test(chat, tools_and_formats)
{
    static const struct {
        const char *given, *read;
        enum chat_tool_choice choice;
        enum chat_format_type format;
    } ok[] = {
        {"\"tools\":null,\"tool_choice\":\"none\",\"parallel_tool_calls\":false,"
         "\"response_format\":{\"type\":\"text\"}",
         "{" HELLO "}", CHAT_TOOL_NONE, CHAT_FORMAT_TEXT},
        {"\"tools\":[]", "{" HELLO "}", CHAT_TOOL_AUTO, CHAT_FORMAT_TEXT},
        {"\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"extra\":1,\"strict\":null}}],"
         "\"tool_choice\":\"auto\"",
         "{" HELLO ",\"tools\":[" TOOL("f", "{\"properties\":{},\"type\":\"object\"}") "]}",
         CHAT_TOOL_AUTO, CHAT_FORMAT_TEXT},
        {"\"parallel_tool_calls\":false,\"tool_choice\":" NAMED("g") ","
         "\"tools\":[" TOOL("f", "{}") "," TOOL("g", "{}") "]",
         "{" HELLO ",\"parallel_tool_calls\":false,\"tool_choice\":" NAMED("g") ",\"tools\":[" TOOL("f", "{}") ","
         TOOL("g", "{}") "]}", CHAT_TOOL_NAMED, CHAT_FORMAT_TEXT},
        {"\"tool_choice\":\"required\",\"tools\":[" TOOL("f", "{\"a\":[1.5,null]},\"strict\":true,"
         "\"description\":\"d\"") "]",
         "{" HELLO ",\"tool_choice\":\"required\",\"tools\":[{\"function\":{\"description\":\"d\",\"name\":\"f\","
         "\"parameters\":{\"a\":[1.5,null]},\"strict\":true},\"type\":\"function\"}]}",
         CHAT_TOOL_REQUIRED, CHAT_FORMAT_TEXT},
        {"\"response_format\":{\"type\":\"json_object\",\"x\":1}",
         "{" HELLO ",\"response_format\":{\"type\":\"json_object\"}}", CHAT_TOOL_AUTO, CHAT_FORMAT_JSON_OBJECT},
        {"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"n\","
         "\"schema\":{\"type\":\"object\"},"
         "\"description\":\"d\"}}",
         "{" HELLO ",\"response_format\":{\"json_schema\":{\"description\":\"d\",\"name\":\"n\","
         "\"schema\":{\"type\":\"object\"},\"strict\":false},\"type\":\"json_schema\"}}",
         CHAT_TOOL_AUTO, CHAT_FORMAT_JSON_SCHEMA},
    };

    for (size_t i = 0; i < ARRAY_SIZE(ok); i++) {
        cleanup(chat_request_freep) struct chat_request *r = NULL, *again = NULL;
        cleanup(json_decrefp) json_t *j = NULL, *wanted = json_loads(ok[i].read, 0, NULL), *twice = NULL;
        cleanup(freep) char *body = NULL, *s = NULL, *w = json_canonical(wanted);
        struct err err = {0};

        cr_assert(asprintf(&body, "{" HELLO ",%s}", ok[i].given) > 0);
        cr_assert_eq(parse(&r, body, &err), 0, "%s: %s", ok[i].given, err.msg);
        cr_assert_eq(r->tool_choice, ok[i].choice);
        cr_assert_eq(r->format.type, ok[i].format);
        cr_assert_eq(!r->tool_name, r->tool_choice != CHAT_TOOL_NAMED);
        j = chat_request_to_json(r);
        s = json_canonical(j);
        cr_assert_str_eq(s, w);
        cr_assert_eq(chat_request_from_json(&again, j, &err), 0, "%s", err.msg);
        twice = chat_request_to_json(again);
        cr_assert(json_equal(j, twice));
    }
}

Test(chat, no_user)
{
    cleanup(chat_request_freep) struct chat_request *r = NULL;

    cr_assert_eq(parse(&r, "{\"messages\":[{\"role\":\"system\",\"content\":\"a\"}]}", NULL), 0);
    cr_assert_null(chat_last_user(r->messages));
    cr_assert_null(chat_last_user(NULL));
    cr_assert_eq(chat_content_bytes(NULL), 0);
    chat_request_free(NULL);
}
