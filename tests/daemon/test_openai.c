/* Chat Completions as its clients see them: whole answers and streams to the byte, errors before and after the first
 * byte, and what is refused by name. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include "base/clock.h"
#include "tests/daemon/fake.h"

#define SAY(text) "{\"messages\":[{\"role\":\"user\",\"content\":\"" text "\"}]}"
#define WITH(more, text) "{" more ",\"messages\":[{\"role\":\"user\",\"content\":\"" text "\"}]}"

static void start(void) { fake_start(NULL); }

TestSuite(openai, .init = start, .fini = fake_stop, .timeout = 60);

#define FRONT(object) "{\"id\":\"chatcmpl-" FAKE_ID "\",\"object\":\"" object "\",\"created\":1700000000,"
#define LOCAL "\"model\":\"tern-nano\",\"system_fingerprint\":\"tern-" TERN_VERSION "\","
#define CLOUD "\"model\":\"big-model\",\"system_fingerprint\":\"tern-" TERN_VERSION "\","
#define CHUNK(model, delta, probs, finish, usage) \
    "data: " FRONT("chat.completion.chunk") model "\"choices\":[{\"index\":0,\"delta\":" delta ",\"logprobs\":" probs \
    ",\"finish_reason\":" finish "}]" usage "}\n\n"
#define ROLE "{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null}"
#define PROBS "{\"content\":[{\"token\":\"t\",\"logprob\":-0.5,\"bytes\":[116],\"top_logprobs\":[]}],\"refusal\":null}"

Test(openai, whole_answer)
{
    cleanup(freep) char *answer = NULL;

    cr_assert_eq(chat("x-tern-label: secret\r\nx-tern-mode: local-only\r\nx-tern-deadline-ms: 1500\r\n",
                      WITH("\"model\":\"auto\",\"temperature\":0.5,\"seed\":7,\"max_completion_tokens\":9,"
                           "\"stop\":[\"a\",\"b\"]", "hi"),
                      &answer), 200);
    cr_expect_str_eq(body_of(answer), FRONT("chat.completion") LOCAL
                     "\"choices\":[{\"index\":0,\"message\":"
                     "{\"role\":\"assistant\",\"content\":\"Hel\\\"l\\no ✓\",\"refusal\":null},"
                     "\"logprobs\":null,\"finish_reason\":\"stop\"}],"
                     "\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,\"total_tokens\":7,"
                     "\"prompt_tokens_details\":{\"cached_tokens\":3}}}");
    cr_expect_str_eq(header_of(answer, "Content-Type"), "application/json");
    cr_expect_str_eq(header_of(answer, "x-request-id"), FAKE_ID);
    cr_expect_str_eq(header_of(answer, "x-tern-decision-id"), FAKE_ID);
    cr_expect_str_eq(header_of(answer, "x-tern-route"), "local");
    cr_expect_str_eq(header_of(answer, "x-tern-reason"), "confident");
    cr_expect_str_eq(header_of(answer, "x-tern-model"), "tern-nano");
    cr_expect_str_eq(header_of(answer, "x-tern-confidence"), "0.7500");
    cr_expect_str_eq(header_of(answer, "x-tern-cost-usd"), "0.000000");
    cr_expect_null(header_of(answer, "x-tern-degraded"));
    cr_expect_str_eq(fake.label, "secret");
    cr_expect_str_eq(fake.mode, "local-only");
    cr_expect_str_eq(fake.model, "auto");
    cr_expect_str_eq(fake.peer, "127.0.0.1");
    cr_expect_eq(fake.deadline_usec, 1500000);
    cr_expect_eq(fake.params.seed, 7);
    cr_expect_eq(fake.params.max_tokens, 9);
    cr_expect_eq(fake.params.n_stop, 2);
}

Test(openai, cloud_and_degraded_answers)
{
    char *answer;

    cr_assert_eq(chat("", SAY("cloud"), &answer), 200);
    cr_expect_str_eq(header_of(answer, "x-tern-route"), "cloud");
    cr_expect_str_eq(header_of(answer, "x-tern-cost-usd"), "0.000123");
    cr_expect_null(header_of(answer, "x-tern-confidence"));
    free(answer);
    cr_assert_eq(chat("", SAY("degraded"), &answer), 200);
    cr_expect_str_eq(header_of(answer, "x-tern-degraded"), "true");
    free(answer);
}

Test(openai, logprobs)
{
    cleanup(freep) char *answer = NULL;
    cleanup(json_decrefp) json_t *j = NULL;
    const json_t *probs;

    cr_assert_eq(chat("", WITH("\"logprobs\":true,\"top_logprobs\":3", "hi"), &answer), 200);
    j = json_loads(body_of(answer), 0, NULL);
    probs = json_object_get(json_array_get(json_object_get(j, "choices"), 0), "logprobs");
    cr_expect_eq(json_array_size(json_object_get(probs, "content")), 2);
    cr_expect(json_is_null(json_object_get(probs, "refusal")));
    cr_expect_eq(fake.params.top_logprobs, 3);
}

Test(openai, stream_to_the_byte)
{
    cleanup(freep) char *answer = NULL;

    cr_assert_eq(chat("", WITH("\"stream\":true", "hi"), &answer), 200);
    cr_expect_str_eq(header_of(answer, "Content-Type"), "text/event-stream; charset=utf-8");
    cr_expect_str_eq(header_of(answer, "x-tern-route"), "local");
    cr_expect_str_eq(header_of(answer, "x-tern-confidence"), "0.7500");
    cr_expect_str_eq(header_of(answer, "x-tern-cost-usd"), "0.000000");
    cr_expect_str_eq(dechunk(answer),
                     CHUNK(LOCAL, ROLE, "null", "null", "")
                     CHUNK(LOCAL, "{\"content\":\"Hel\\\"l\\n\"}", "null", "null", "")
                     CHUNK(LOCAL, "{\"content\":\"o ✓\"}", "null", "null", "")
                     CHUNK(LOCAL, "{}", "null", "\"stop\"", "")
                     "data: [DONE]\n\n");
}

#define CALL_A "\"id\":\"call_a\",\"type\":\"function\",\"function\":{\"name\":\"look\","
#define CALL_B "\"id\":\"call_b\",\"type\":\"function\",\"function\":{\"name\":\"stop\",\"arguments\":\"\"}}"

Test(openai, calls_whole)
{
    char *answer;

    cr_assert_eq(chat("", WITH("\"tools\":[{\"type\":\"function\","
        "\"function\":{\"name\":\"look\"}}]", "calls"), &answer), 200);
    cr_expect_str_eq(body_of(answer), FRONT("chat.completion") LOCAL
                     "\"choices\":[{\"index\":0,\"message\":"
                     "{\"role\":\"assistant\",\"content\":\"Wait.\",\"refusal\":null,\"tool_calls\":[{" CALL_A
                     "\"arguments\":\"{\\\"at\\\":\\\"sky\\\"}\"}},{" CALL_B "]},"
                     "\"logprobs\":null,\"finish_reason\":\"tool_calls\"}],"
                     "\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,\"total_tokens\":7,"
                     "\"prompt_tokens_details\":{\"cached_tokens\":3}}}");
    cr_expect_eq(json_array_size(json_object_get(fake.chat, "tools")), 1);
    free(answer);
    cr_assert_eq(chat("", SAY("call"), &answer), 200);
    cr_expect(strstr(answer, "\"content\":null"));
    free(answer);
}

Test(openai, calls_streamed)
{
    cleanup(freep) char *answer = NULL;

    cr_assert_eq(chat("", WITH("\"stream\":true", "calls"), &answer), 200);
    cr_expect_str_eq(dechunk(answer),
                     CHUNK(LOCAL, ROLE, "null", "null", "")
                     CHUNK(LOCAL, "{\"content\":\"Wait.\"}", "null", "null", "")
                     CHUNK(LOCAL, "{\"tool_calls\":[{\"index\":0," CALL_A "\"arguments\":\"\"}}]}", "null", "null", "")
                     CHUNK(LOCAL, "{\"tool_calls\":[{\"index\":0,"
                         "\"function\":{\"arguments\":\"{\\\"at\\\":\"}}]}", "null",
                           "null", "")
                     CHUNK(LOCAL, "{\"tool_calls\":[{\"index\":0,"
                         "\"function\":{\"arguments\":\"\\\"sky\\\"}\"}}]}", "null",
                           "null", "")
                     CHUNK(LOCAL, "{\"tool_calls\":[{\"index\":1," CALL_B "]}", "null", "null", "")
                     CHUNK(LOCAL, "{}", "null", "\"tool_calls\"", "")
                     "data: [DONE]\n\n");
}

Test(openai, stream_with_usage_and_logprobs)
{
    cleanup(freep) char *answer = NULL;

    cr_assert_eq(chat("", WITH("\"stream\":true,\"logprobs\":true,\"stream_options\":{\"include_usage\":true}", "hi"),
                      &answer), 200);
    cr_expect_str_eq(dechunk(answer),
                     CHUNK(LOCAL, ROLE, "null", "null", ",\"usage\":null")
                     CHUNK(LOCAL, "{\"content\":\"Hel\\\"l\\n\"}", PROBS, "null", ",\"usage\":null")
                     CHUNK(LOCAL, "{\"content\":\"o ✓\"}", PROBS, "null", ",\"usage\":null")
                     CHUNK(LOCAL, "{}", "null", "\"stop\"", ",\"usage\":null")
                     "data: " FRONT("chat.completion.chunk") LOCAL "\"choices\":[],"
                     "\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,\"total_tokens\":7,"
                     "\"prompt_tokens_details\":{\"cached_tokens\":3}}}\n\n"
                     "data: [DONE]\n\n");
}

/* What a cloud's answer cost is known only at its end. */
Test(openai, stream_from_a_cloud)
{
    cleanup(freep) char *answer = NULL;

    cr_assert_eq(chat("", WITH("\"stream\":true", "cloud"), &answer), 200);
    cr_expect_null(header_of(answer, "x-tern-cost-usd"));
    cr_expect_str_eq(dechunk(answer),
                     CHUNK(CLOUD, ROLE, "null", "null", "")
                     CHUNK(CLOUD, "{\"content\":\"Hel\\\"l\\n\"}", "null", "null", "")
                     CHUNK(CLOUD, "{\"content\":\"o ✓\"}", "null", "null", "")
                     CHUNK(CLOUD, "{}", "null", "\"stop\"", "")
                     ": x-tern-cost-usd 0.000123\n\n"
                     "data: [DONE]\n\n");
}

/* Nothing is sent before the first byte is decided, so a failure still has its status. */
Test(openai, failing_before_the_first_byte)
{
    static const int statuses[] = {400, 404, 408, 429, 500, 502, 503, 504};

    for (size_t i = 0; i < ARRAY_SIZE(statuses) * 2; i++) {
        cleanup(freep) char *answer = NULL;
        cleanup(json_decrefp) json_t *j = NULL;
        char body[256];

        snprintf(body, sizeof(body), "{\"stream\":%s,\"messages\":[{\"role\":\"user\",\"content\":\"fail %d\"}]}",
                 i % 2 ? "true" : "false", statuses[i / 2]);
        cr_expect_eq(chat("", body, &answer), statuses[i / 2]);
        cr_expect_str_eq(body_of(answer), "{\"error\":{\"message\":\"as asked\",\"type\":\"server_error\","
                         "\"param\":null,\"code\":\"scripted\"}}");
        cr_expect_str_eq(header_of(answer, "Content-Type"), "application/json");
        cr_expect_str_eq(header_of(answer, "Retry-After"), "7");
        cr_expect_str_eq(header_of(answer, "x-tern-decision-id"), FAKE_ID);
        cr_expect_null(header_of(answer, "x-tern-route"));
    }
}

Test(openai, refused_at_once)
{
    cleanup(freep) char *answer = NULL;

    cr_expect_eq(chat("", WITH("\"stream\":true", "refuse"), &answer), 503);
    cr_expect_str_eq(header_of(answer, "Retry-After"), "2");
    cr_expect_str_eq(header_of(answer, "x-request-id"), FAKE_ID);
    cr_expect(strstr(answer, "queue_full"));
}

/* After the first byte: an error event, then the connection closes, and no [DONE] pretends that all is well. */
Test(openai, failing_mid_stream)
{
    cleanup(freep) char *answer = NULL, *whole = NULL;

    cr_assert_eq(chat("", WITH("\"stream\":true", "cut"), &answer), 200);
    cr_expect_str_eq(dechunk(answer),
                     CHUNK(LOCAL, ROLE, "null", "null", "")
                     CHUNK(LOCAL, "{\"content\":\"Hel\\\"l\\n\"}", "null", "null", "")
                     "data: {\"error\":{\"message\":\"the cloud's answer broke off\",\"type\":\"server_error\","
                     "\"param\":null,\"code\":\"upstream_cut\"}}\n\n");
    /* The same failure is a status where nothing was streamed. */
    cr_expect_eq(chat("", SAY("cut"), &whole), 502);
    cr_expect_null(strstr(whole, "Hel"));
}

Test(openai, mid_stream_failure_closes_a_kept_connection)
{
    bool closed;
    int fd = dial();

    put_chat(fd, "", WITH("\"stream\":true", "cut"));
    free(get(fd, NULL, 2000, NULL, &closed));
    cr_expect(closed);
    close(fd);
}

Test(openai, a_silent_stream_is_kept_alive, .timeout = 60)
{
    cleanup(freep) char *first = NULL, *ping = NULL;
    uint64_t began;
    int fd = dial();

    put_chat(fd, "", WITH("\"stream\":true", "begin"));
    first = get(fd, "assistant", 2000, NULL, NULL);
    began = clock_usec();
    ping = get(fd, ": ping\n\n", 25000, NULL, NULL);
    cr_expect(strstr(ping, ": ping\n\n"));
    cr_expect(clock_usec() - began > 4 * USEC_PER_SEC && clock_usec() - began < 12 * USEC_PER_SEC);
    close(fd);
    pump();
}

/* ---- What is refused by name ------------------------------------------------------------------------------------- */

static const struct { const char *body, *param, *code; } refused[] = {
    {WITH("\"n\":2", "hi"), "n", "unsupported_value"},
    {WITH("\"n\":\"1\"", "hi"), "n", "unsupported_value"},
    {WITH("\"tools\":[{\"type\":\"web_search\"}]", "hi"), "tools[0].type", "invalid_value"},
    {WITH("\"functions\":[{\"name\":\"f\"}]", "hi"), "functions", "unsupported_parameter"},
    {WITH("\"tool_choice\":\"required\"", "hi"), "tool_choice", "invalid_value"},
    {WITH("\"tool_choice\":{\"type\":\"function\"}", "hi"), "tool_choice", "invalid_value"},
    {WITH("\"response_format\":{\"type\":\"json_schema\","
     "\"json_schema\":{}}", "hi"), "response_format.json_schema.name",
     "invalid_value"},
    {WITH("\"response_format\":\"text\"", "hi"), "response_format.type", "invalid_value"},
    {WITH("\"logit_bias\":{\"5\":1}", "hi"), "logit_bias", "unsupported_parameter"},
    {WITH("\"temperature\":3", "hi"), "temperature", "invalid_value"},
    {WITH("\"max_tokens\":0", "hi"), "max_tokens", "invalid_value"},
    {WITH("\"stream\":\"yes\"", "hi"), "stream", "invalid_value"},
    {WITH("\"model\":5", "hi"), "model", "invalid_value"},
    {WITH("\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\"]", "hi"), "stop", "invalid_value"},
    {"{\"messages\":[]}", "messages", "invalid_value"},
    {"{\"messages\":[{\"role\":\"wizard\",\"content\":\"hi\"}]}", "messages[0].role", "invalid_value"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}", "messages[0].content[0].type",
     "invalid_value"},
};

Test(openai, refused_by_name)
{
    for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
        cleanup(freep) char *answer = NULL;
        cleanup(json_decrefp) json_t *j = NULL;
        const json_t *e;

        cr_expect_eq(chat("", refused[i].body, &answer), 400, "%s", refused[i].body);
        j = json_loads(body_of(answer), 0, NULL);
        e = json_object_get(j, "error");
        cr_assert(e, "%s", answer);
        cr_expect_str_eq(json_string_value(json_object_get(e, "type")), "invalid_request_error");
        cr_expect_str_eq(json_string_value(json_object_get(e, "param")), refused[i].param, "%s", refused[i].body);
        cr_expect_str_eq(json_string_value(json_object_get(e, "code")), refused[i].code, "%s", refused[i].body);
    }
    cr_expect_eq(fake.started, 0);
}

/* What SDKs send without meaning anything by it. */
Test(openai, harmless_members)
{
    static const char *const bodies[] = {
        WITH("\"n\":1", "hi"),
        WITH("\"n\":null", "hi"),
        WITH("\"tools\":[]", "hi"),
        WITH("\"tools\":null,\"tool_choice\":\"auto\"", "hi"),
        WITH("\"tool_choice\":\"none\"", "hi"),
        WITH("\"response_format\":{\"type\":\"text\"}", "hi"),
        WITH("\"logit_bias\":{}", "hi"),
        WITH("\"user\":\"me\",\"store\":false,\"metadata\":{}", "hi"),
        WITH("\"stream\":false,\"stream_options\":null", "hi"),
        "{\"messages\":[{\"role\":\"developer\",\"content\":\"be brief\"},"
        "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"hi\"}]}]}",
    };

    for (size_t i = 0; i < ARRAY_SIZE(bodies); i++)
        cr_expect_eq(chat("", bodies[i], NULL), 200, "%s", bodies[i]);
}
