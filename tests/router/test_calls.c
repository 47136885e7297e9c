/* Calls of tools through the router: from the engine, from clouds of many kinds, and back in a conversation that moves
 * between tiers. */
#include <stdio.h>
#include <string.h>
#include "world.h"

static struct world w;
static struct client c;

static void ask(const struct ask_for *a)
{
    client_done(&c);
    c = (struct client) {0};
    cr_assert_eq(client_start(&c, &w, a), 0, "%s", c.message);
    WAIT_OVER(&w, &c);
    WAIT_FOR(&w, router_idle(w.router));
}

static void end(void)
{
    client_done(&c);
    world_done(&w);
}

#define SAYS(delta) "{\"choices\":[{\"index\":0,\"delta\":{" delta "},\"finish_reason\":null}]}"
#define CALL(rest) SAYS("\"tool_calls\":[{" rest "}]")
#define BEGIN(index, id, name, arguments) \
    CALL("\"index\":" index ",\"id\":\"" id "\",\"type\":\"function\",\"function\":{\"name\":\"" name "\"," \
        "\"arguments\":\"" arguments "\"}")
#define MORE(index, arguments) CALL("\"index\":" index ",\"function\":{\"arguments\":\"" arguments "\"}")
#define FINISH(reason) "{\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"" reason "\"}]}"
#define END FINISH("tool_calls")

static const struct { const char *what, *text, *finish; const char *const said[8]; } clouds[] = {
    {"as OpenAI does", "Wait.[look a]{1}[stop b]", "tool_calls",
     {SAYS("\"role\":\"assistant\",\"content\":\"Wait.\""), BEGIN("0", "a", "look", ""), MORE("0", "{1"), MORE("0",
         "}"),
      BEGIN("1", "b", "stop", ""), END}},
    {"whole calls in one chunk each, all of index 0", "[look a]{1}[look b]{2}", "tool_calls",
     {BEGIN("0", "a", "look", "{1}"), BEGIN("0", "b", "look", "{2}"), FINISH("stop")}},
    {"two in one chunk, without index", "[look a]{1}[stop b]{2}", "tool_calls",
     {SAYS("\"content\":null,\"tool_calls\":[{\"id\":\"a\",\"function\":{\"name\":\"look\",\"arguments\":\"{1}\"}},"
           "{\"id\":\"b\",\"function\":{\"name\":\"stop\",\"arguments\":\"{2}\"}}]"), END}},
    {"id and name again in every chunk", "[look a]{1}", "tool_calls",
     {BEGIN("0", "a", "look", "{"), BEGIN("0", "a", "look", "1}"), END}},
    {"no ids", "[look new]{1}[look new]", "tool_calls",
     {CALL("\"function\":{\"name\":\"look\",\"arguments\":\"{1}\"}"), CALL("\"id\":\"\","
      "\"function\":{\"name\":\"look\"}"), END}},
    {"words after a call", "[look a]{1}so", "tool_calls", {BEGIN("0", "a", "look", "{1}"),
        SAYS("\"content\":\"so\""), END}},
    {"whole", "Wait.[look a]{1}[stop b]", "tool_calls",
     {"{\"choices\":[{\"message\":{\"content\":\"Wait.\",\"tool_calls\":[{\"id\":\"a\",\"type\":\"function\","
      "\"function\":"
      "{\"name\":\"look\",\"arguments\":\"{1}\"}},{\"id\":\"b\",\"type\":\"function\",\"function\":{\"name\":\"stop\","
      "\"arguments\":\"\"}}]},\"finish_reason\":\"tool_calls\"}]}"}},
    {"cut by length", "[look a]{", "tool_calls", {BEGIN("0", "a", "look", "{"), FINISH("stop")}},
    {"a refusal", "I will not.", "content_filter", {SAYS("\"content\":null,\"refusal\":\"I will "
     "not.\""), FINISH("content_filter")}},
    {"arguments without a call", NULL, NULL, {MORE("0", "{")}},
    {"a call without a name", NULL, NULL, {CALL("\"index\":0,\"id\":\"a\",\"function\":{\"arguments\":\"{\"}")}},
    {"back to an earlier call", NULL, NULL, {BEGIN("0", "a", "look", ""), BEGIN("1", "b", "stop", ""), MORE("0", "{")}},
    {"arguments as an object", NULL, NULL, {CALL("\"index\":0,\"id\":\"a\",\"function\":{\"name\":\"f\","
     "\"arguments\":{}}")}},
    {"calls as an object", NULL, NULL, {SAYS("\"tool_calls\":{}")}},
};

static void check_cloud(size_t i)
{
    if (!clouds[i].text) {
        cr_expect_eq(c.n_fail, 1, "%s", clouds[i].what);
        cr_expect_str_eq(c.code, c.n_begin ? "upstream_cut" : "upstream_failed", "%s", clouds[i].what);
        return;
    }
    cr_assert_eq(c.n_end, 1, "%s: %s", clouds[i].what, c.message);
    cr_expect_str_eq((char *)c.text.data, clouds[i].text, "%s: %s", clouds[i].what, (char *)c.text.data);
    cr_expect_str_eq(c.finish, clouds[i].finish, "%s", clouds[i].what);
}

Test(calls, from_clouds)
{
    for (size_t i = 0; i < ARRAY_SIZE(clouds); i++) {
        world_init(&w, NULL);
        w.cloud_play = (struct cloud_play) {.said = clouds[i].said};
        ask(&(struct ask_for) {.model = "acme"});
        check_cloud(i);
        ask(&(struct ask_for) {.model = "acme", .stream = true});
        /* What was released before the fault stays; the fault is told all the same. */
        check_cloud(i);
        end();
    }
}

#define TOOLS "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"l\",\"parameters\":{\"type\":\"object\"," \
    "\"properties\":{},\"required\":[],\"additionalProperties\":false}}}]"

Test(calls, from_the_engine)
{
    world_init(&w, NULL);
    w.engine_play.call = true;
    for (int stream = 0; stream < 2; stream++) {
        ask(&(struct ask_for) {.body = stream ? "{\"model\":\"local\",\"stream\":true," TOOLS ","
            "\"messages\":[{\"role\":\"user\","
                               "\"content\":\"hi\"}]}" : "{\"model\":\"local\"," TOOLS ","
                               "\"messages\":[{\"role\":\"user\","
                               "\"content\":\"hi\"}]}"});
        cr_expect_eq(c.route, ROUTE_LOCAL);
        cr_expect_str_eq((char *)c.text.data, "[l new]lllll", "%s", (char *)c.text.data);
        cr_expect_str_eq(c.finish, "tool_calls");
    }
    end();
}

/* What the local model cannot be held to goes to the cloud where it may, and is refused by name where it may not. */
Test(calls, beyond_the_local_model)
{
#define ODD "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"response_format\":{\"type\":\"json_schema\"," \
    "\"json_schema\":{\"name\":\"n\",\"schema\":{\"type\":\"object\",\"unevaluatedProperties\":false}}}}"
    world_init(&w, NULL);
    ask(&(struct ask_for) {.body = ODD});
    cr_expect_eq(c.route, ROUTE_CLOUD);
    cr_expect_str_eq(c.reason, "does-not-fit");
    cr_expect(json_object_get(w.last_body, "response_format"));
    ask(&(struct ask_for) {.body = ODD, .mode = "local-only"});
    cr_expect_eq(c.http_status, 400);
    cr_expect_str_eq(c.code, "unsupported_value");
    cr_expect(strstr(c.message, "unevaluatedProperties"), "%s", c.message);
    ask(&(struct ask_for) {.body = ODD, .label = "private"});
    cr_expect_str_eq(c.code, "unsupported_value");
    end();
}

/* A call that one tier made and the result of it, as the other tier is told of them. */
Test(calls, back_to_a_cloud)
{
    static const char wanted[] = "[{\"content\":\"hi\",\"role\":\"user\"},{\"content\":null,"
        "\"role\":\"assistant\",\"tool_calls\":"
        "[{\"function\":{\"arguments\":\"{}\",\"name\":\"l\"},\"id\":\"a\",\"type\":\"function\"}]},"
        "{\"content\":\"42\","
        "\"role\":\"tool\",\"tool_call_id\":\"a\"}]";
    cleanup(freep) char *messages = NULL;

    world_init(&w, NULL);
    ask(&(struct ask_for) {.body = "{\"model\":\"acme\"," TOOLS ",\"tool_choice\":\"required\","
        "\"parallel_tool_calls\":false,"
        "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":null,"
        "\"refusal\":null,"
        "\"tool_calls\":[{\"id\":\"a\",\"type\":\"function\",\"index\":0,\"function\":{\"name\":\"l\","
        "\"arguments\":\"{}\"}}]},"
        "{\"role\":\"tool\",\"tool_call_id\":\"a\",\"content\":\"42\"}]}"});
    messages = json_canonical(json_object_get(w.last_body, "messages"));
    cr_expect_str_eq(messages, wanted, "%s", messages);
    cr_expect_eq(json_array_size(json_object_get(w.last_body, "tools")), 1);
    cr_expect_str_eq(json_string_value(json_object_get(w.last_body, "tool_choice")), "required");
    cr_expect(json_is_false(json_object_get(w.last_body, "parallel_tool_calls")));
    end();
}
