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
    cr_assert_eq(chat_content_bytes(r->messages), strlen("be briefhi42"));
}

Test(chat, normalised)
{
    cleanup(chat_request_freep) struct chat_request *r = NULL;
    const char *text = "{\"messages\":[{\"role\":\"developer\",\"content\":[]},"
        "{\"role\":\"user\",\"content\":["
        "{\"type\":\"text\",\"text\":\"one \"},{\"type\":\"text\",\"text\":\"\"},"
        "{\"type\":\"text\",\"text\":\"two\"}]},"
        "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{}]},{\"role\":\"assistant\",\"tool_calls\":[{}]}],"
        "\"max_tokens\":5,\"max_completion_tokens\":6,\"stop\":\"x\",\"top_logprobs\":3,\"seed\":-1,\"stream\":false}";
    cleanup(json_decrefp) json_t *body = json_parse(text, strlen(text), NULL);
    cleanup(freep) char *before = json_canonical(body), *after = NULL, *s = NULL;
    struct err err;

    cr_assert_eq(chat_request_from_json(&r, body, &err), 0, "%s", err.msg);
    s = json_canonical(r->messages);
    cr_assert_str_eq(s, "[{\"content\":\"\",\"role\":\"system\"},{\"content\":\"one two\",\"role\":\"user\"},"
                        "{\"content\":\"\",\"role\":\"assistant\",\"tool_calls\":[{}]},"
                        "{\"content\":\"\",\"role\":\"assistant\",\"tool_calls\":[{}]}]");
    cr_assert_eq(r->params.max_tokens, 6);
    cr_assert_eq(r->params.n_stop, 1);
    cr_assert_eq(r->params.top_logprobs, 0);
    cr_assert_eq(r->params.seed, -1);
    cr_assert_str_eq(chat_last_user(r->messages), "one two");
    after = json_canonical(body);
    cr_assert_str_eq(before, after, "the caller's body was changed");
}

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
        {MESSAGE("{\"role\":\"user\",\"content\":null,\"tool_calls\":[{}]}"),
         "messages[1].content: expected a string or an array of text parts"},
        {MESSAGE("{\"role\":\"assistant\",\"content\":null}"),
         "messages[1].content: expected a string or an array of text parts"},
        {MESSAGE("{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[]}"),
         "messages[1].content: expected a string or an array of text parts"},
        {MESSAGE("{\"role\":\"assistant\",\"content\":7,\"tool_calls\":[{}]}"),
         "messages[1].content: expected a string or an array of text parts"},
        {MESSAGE("{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":{}}"),
         "messages[1].tool_calls: expected an array"},
        {MESSAGE("{\"role\":\"user\",\"content\":\"\",\"name\":{}}"), "messages[1].name: expected a string"},
        {MESSAGE("{\"role\":\"tool\",\"content\":\"\",\"tool_call_id\":1}"),
         "messages[1].tool_call_id: expected a string"},
        {MESSAGE("{\"role\":\"user\",\"content\":[\"secret\"]}"), "messages[1].content[0]: expected an object"},
        {MESSAGE("{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"secret\"},{\"type\":\"image_url\"}]}"),
         "messages[1].content[1].type: only text is supported"},
        {MESSAGE("{\"role\":\"user\",\"content\":[{\"text\":\"secret\"}]}"),
         "messages[1].content[0].type: only text is supported"},
        {MESSAGE("{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}"),
         "messages[1].content[0].text: expected a string"},
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

Test(chat, no_user)
{
    cleanup(chat_request_freep) struct chat_request *r = NULL;

    cr_assert_eq(parse(&r, "{\"messages\":[{\"role\":\"system\",\"content\":\"a\"}]}", NULL), 0);
    cr_assert_null(chat_last_user(r->messages));
    cr_assert_null(chat_last_user(NULL));
    cr_assert_eq(chat_content_bytes(NULL), 0);
    chat_request_free(NULL);
}
