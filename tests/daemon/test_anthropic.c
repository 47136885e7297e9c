/* Anthropic's Messages API as its clients see it, and what the router is handed of it: requests as JSON against JSON,
 * answers and streams to the byte, refusals by name. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include "router/upstream.h"
#include "tests/daemon/fake.h"

#define PATH "/v1/messages"
#define SAY(text) "{'model':'auto','max_tokens':9,'messages':[{'role':'user','content':'" text "'}]}"
#define STREAM(text) "{'model':'auto','max_tokens':9,'stream':true,'messages':[{'role':'user','content':'" text "'}]}"
#define WITH(more) "{'model':'auto','max_tokens':9,'messages':[{'role':'user','content':'hi'}]," more "}"
#define MESSAGES(...) "{'model':'auto','max_tokens':9,'messages':[" __VA_ARGS__ "]}"

static void start(void) { fake_start(NULL); }

TestSuite(anthropic, .init = start, .fini = fake_stop, .timeout = 60);

/* ---- Requests ---- */

#define FUNCTION(name, more) "{'type':'function','function':{'name':'" name "'" more "}}"
#define CALL(id, name, arguments) \
    "{'id':'" id "','type':'function','function':{'name':'" name "','arguments':'" arguments "'}}"
#define HI "{'role':'user','content':'hi'}"

static const struct { const char *what, *sent, *chat; } requests[] = {
    {"a string", SAY("hi"), "{'model':'auto','max_tokens':9,'messages':[" HI "]}"},
    {"parameters", WITH("'temperature':0.5,'top_p':0.25,'top_k':4,'stop_sequences':['a','b'],"
                        "'metadata':{'user_id':'u'},'service_tier':'auto','thinking':{'type':'disabled'},"
     "'stream':true"),
     "{'model':'auto','max_tokens':9,'temperature':0.5,'top_p':0.25,'top_k':4,'stop':['a','b'],'stream':true,"
     "'messages':[" HI "]}"},
    {"blocks", "{'model':'m','max_tokens':9,'system':[{'type':'text','text':'one',"
               "'cache_control':{'type':'ephemeral'}},{'type':'text','text':'two'}],'messages':[{'role':'user',"
               "'content':[{'type':'text','text':'a'},{'type':'text','text':'b'}]},{'role':'assistant',"
               "'content':[{'type':'thinking','thinking':'hm','signature':'s'},{'type':'text','text':'c'},"
     "{'type':'text','text':'d'}]},{'role':'user','content':'hi'}]}",
     "{'model':'m','max_tokens':9,'messages':[{'role':'system','content':'one\\ntwo'},{'role':'user',"
     "'content':'a\\nb'},{'role':'assistant','content':'cd'}," HI "]}"},
    {"calls and results", MESSAGES(HI ",{'role':'assistant','content':[{'type':'text','text':'so'},{'type':'tool_use',"
     "'id':'t1','name':'look','input':{'n':1}},{'type':'tool_use','id':'t2','name':'look','input':{}}]},"
     "{'role':'user','content':[{'type':'tool_result','tool_use_id':'t2','content':'two'},{'type':'text','text':'hi'},"
     "{'type':'tool_result','tool_use_id':'t1','content':[{'type':'text','text':'o'},{'type':'text','text':'ne'}]}]}"),
     "{'model':'auto','max_tokens':9,'messages':[" HI ",{'role':'assistant','content':'so','tool_calls':["
     CALL("t1", "look", "{\\'n\\':1}") "," CALL("t2", "look", "{}") "]},{'role':'tool','tool_call_id':'t2',"
     "'content':'two'},{'role':'tool','tool_call_id':'t1','content':'o\\nne'}," HI "]}"},
    {"results alone", MESSAGES(HI ",{'role':'assistant','content':[{'type':'tool_use','id':'t1','name':'look',"
     "'input':{}}]},{'role':'user','content':[{'type':'tool_result','tool_use_id':'t1'}]}"),
     "{'model':'auto','max_tokens':9,'messages':[" HI ",{'role':'assistant','content':'','tool_calls':["
     CALL("t1", "look", "{}") "]},{'role':'tool','tool_call_id':'t1','content':''}]}"},
    {"tools", WITH("'tools':[{'name':'look','description':'d','input_schema':{'type':'object'}},{'type':'custom',"
                   "'name':'b','input_schema':{'type':'object'},'strict':true}],'tool_choice':{'type':'any',"
                   "'disable_parallel_tool_use':true}"),
     "{'model':'auto','max_tokens':9,'messages':[" HI "],'tool_choice':'required','parallel_tool_calls':false,'tools':["
     FUNCTION("look", ",'description':'d','parameters':{'type':'object'}") ","
     FUNCTION("b", ",'strict':true,'parameters':{'type':'object'}") "]}"},
    {"one tool", WITH("'tools':[{'name':'look','input_schema':{'type':'object'}}],'tool_choice':{'type':'tool',"
     "'name':'look'}"),
     "{'model':'auto','max_tokens':9,'messages':[" HI "],'tool_choice':" FUNCTION("look", "") ",'tools':["
     FUNCTION("look", ",'parameters':{'type':'object'}") "]}"},
    {"no tool", WITH("'tools':[{'name':'look','input_schema':{'type':'object'}}],'tool_choice':{'type':'none'}"),
     "{'model':'auto','max_tokens':9,'messages':[" HI "],'tool_choice':'none','tools':["
     FUNCTION("look", ",'parameters':{'type':'object'}") "]}"},
    {"a schema", WITH("'output_config':{'effort':'low','format':{'type':'json_schema','schema':{'type':'object'}}}"),
     "{'model':'auto','max_tokens':9,'messages':[" HI "],'response_format':{'type':'json_schema','json_schema':{'name':"
     "'answer','strict':true,'schema':{'type':'object'}}}}"},
};

Test(anthropic, what_the_router_is_handed)
{
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        char *answer;

        cr_assert_eq(post(PATH, requests[i].sent, &answer), 200, "%s: %s", requests[i].what, answer);
        json_same(json_incref(fake.chat), json_of(requests[i].chat), requests[i].what);
        cr_assert_str_eq(fake.dialect, "anthropic-messages");
        free(answer);
    }
}

/* A conversation that goes to Anthropic's API and comes back through ours is the same one, ids and tools included. */
Test(anthropic, a_conversation_goes_there_and_back)
{
    static const char *const conversations[] = {
        "{'model':'auto','max_tokens':9,'messages':[{'role':'system','content':'s'}," HI "],'temperature':0.5,"
        "'stop':['x']}",
        "{'model':'auto','max_tokens':9,'messages':[" HI ",{'role':'assistant','content':'so','tool_calls':["
        CALL("call_1", "look", "{\\'n\\':1}") "," CALL("toolu_2", "look", "{}") "]},{'role':'tool',"
        "'tool_call_id':'call_1','content':'one'},{'role':'tool','tool_call_id':'toolu_2','content':'two'},"
        "{'role':'assistant','content':'well'},"
        HI "],'tool_choice':'required','parallel_tool_calls':false,'tools':["
        FUNCTION("look", ",'description':'d','parameters':{'type':'object','properties':{}}") "]}",
        "{'model':'auto','max_tokens':9,'messages':[" HI "],'response_format':{'type':'json_schema',"
        "'json_schema':{'name':'answer','strict':true,'schema':{'type':'object'}}}}",
    };

    for (size_t i = 0; i < ARRAY_SIZE(conversations); i++) {
        json_t *chat_json = json_of(conversations[i]), *body = anthropic_body(chat_json, "auto");
        cleanup(freep) char *text = json_dumps(body, 0), *answer = NULL, *asked = json_dumps(chat_json, 0),
            *again = NULL;

        cr_assert_eq(chat("", asked, &again), 200, "%s", again);          /* through OpenAI's */
        json_same(json_incref(fake.chat), json_incref(chat_json), "through Chat Completions");
        cr_assert_eq(post(PATH, text, &answer), 200, "%s", answer);
        json_object_set_new(chat_json, "stream", json_true());            /* as every body upstream */
        json_same(json_incref(fake.chat), chat_json, "through Messages");
        json_decref(body);
    }
}

Test(anthropic, tokens_are_counted)
{
    cleanup(freep) char *answer = NULL;

    cr_assert_eq(post(PATH "/count_tokens", "{'model':'auto','messages':[" HI "]}", &answer), 200);
    cr_assert_str_eq(body_of(answer), "{\"input_tokens\":5}");
    cr_assert_str_eq(fake.dialect, "anthropic-count");
}

/* ---- Refusals ---- */

#define BLOCKS(...) MESSAGES("{'role':'user','content':[" __VA_ARGS__ "]}")

static const struct { const char *sent, *says; } refusals[] = {
    {"{'max_tokens':9,'messages':[" HI "]}", "model: expected a string"},
    {"{'model':'m','messages':[" HI "]}", "max_tokens: "},
    {"{'model':'m','max_tokens':0,'messages':[" HI "]}", "max_tokens: "},
    {"{'model':'m','max_tokens':9}", "messages: expected an array"},
    {MESSAGES(""), "messages: expected an array"},
    {MESSAGES("7"), "messages.0.content: expected"},
    {MESSAGES("{'role':'user'}"), "messages.0.content: expected"},
    {MESSAGES("{'role':'user','content':7}"), "messages.0.content: expected"},
    {MESSAGES("{'role':'system','content':'x'}"), "messages.0.role: expected user or assistant"},
    {MESSAGES(HI ",{'role':'assistant','content':'so'}"), "messages: the last one must be the user's"},
    {BLOCKS("7"), "messages.0.content.0.type: expected text"},
    {BLOCKS("{'type':'text'}"), "messages.0.content.0.text: expected a string"},
    {BLOCKS("{'type':'text','text':'a'},{'type':'image','source':{}}"),
     "messages.0.content.1.type: image is not supported"},
    {BLOCKS("{'type':'document'}"), "messages.0.content.0.type: document is not supported"},
    {BLOCKS("{'type':'tool_use','id':'a','name':'b','input':{}}"),
     "messages.0.content.0.type: tool_use is not supported"},
    {BLOCKS("{'type':'tool_result','tool_use_id':'nobody'}"), "messages.0.content.0.tool_use_id: expected the id"},
    {MESSAGES("{'role':'assistant','content':[{'type':'tool_use','id':'a','name':'b'}]}," HI),
     "messages.0.content.0.input: "},
    {MESSAGES("{'role':'assistant','content':[{'type':'tool_use','name':'b','input':{}}]}," HI),
     "messages.0.content.0: expected"},
    {MESSAGES("{'role':'assistant','content':[{'type':'tool_use','id':'a','name':'b','input':{}}]},{'role':'user',"
              "'content':[{'type':'tool_result','tool_use_id':'a','content':[{'type':'image'}]}]}"),
              "messages.1.content.0.content.0.type: image"},
    {WITH("'system':7"), "system: expected a string"},
    {WITH("'system':[{'type':'image'}]"), "system.0.type: image"},
    {WITH("'tools':7"), "tools: expected an array"},
    {WITH("'tools':[{'type':'web_search_20250305','name':'web_search'}]"), "tools.0.type: only custom"},
    {WITH("'tools':[{'name':'x'}]"), "tools.0: expected a name and an input_schema"},
    {WITH("'tools':[{'name':'no spaces','input_schema':{}}]"), "tools[0]."},
    {WITH("'tool_choice':{'type':'some'}"), "tool_choice.type: "},
    {WITH("'tool_choice':{'type':'any'}"), "tool_choice: "},
    {WITH("'tool_choice':{'type':'auto','disable_parallel_tool_use':7}"), "tool_choice.disable_parallel_tool_use: "},
    {WITH("'stop_sequences':['a','b','c','d','e']"), "stop_sequences: expected an array of at most 4"},
    {WITH("'stop_sequences':['']"), "stop_sequences: "},
    {WITH("'stop_sequences':[7]"), "stop_sequences: "},
    {WITH("'temperature':3"), "temperature: expected a number from 0 to 2"},
    {WITH("'stream':'yes'"), "stream: "},
    {WITH("'thinking':{'type':'enabled','budget_tokens':1024}"), "thinking: "},
    {WITH("'mcp_servers':[{}]"), "mcp_servers: not supported"},
    {WITH("'inference_geo':'us'"), "inference_geo: not supported"},
    {WITH("'output_config':{'format':{'type':'json_object'}}"), "output_config.format: "},
    {"[]", "the body is not a JSON object"},
    {"{", "the body is not valid JSON"},
};

Test(anthropic, refusals_name_what_is_wrong)
{
    for (size_t i = 0; i < ARRAY_SIZE(refusals); i++) {
        cleanup(json_decrefp) json_t *j = NULL;
        const char *type, *message;
        char *answer;

        cr_assert_eq(post(PATH, refusals[i].sent, &answer), 400, "%s: %s", refusals[i].sent, answer);
        j = json_loads(body_of(answer), 0, NULL);
        cr_assert_eq(json_unpack(j, "{s:s, s:{s:s, s:s}}", "type", &type, "error", "type", &message, "message",
            &message), 0);
        cr_assert_eq(strncmp(message, refusals[i].says, strlen(refusals[i].says)), 0, "%s: %s", refusals[i].sent,
            message);
        cr_assert_str_eq(json_string_value(json_object_get(json_object_get(j, "error"), "type")),
         "invalid_request_error");
        cr_assert_not_null(header_of(answer, "request-id"));
        free(answer);
    }
    cr_assert_eq(fake.started, 0);
}

Test(anthropic, errors_have_the_types_of_their_status)
{
    static const struct { int status; const char *type; } types[] = {
        {400, "invalid_request_error"}, {401, "authentication_error"}, {403, "permission_error"},
        {404, "not_found_error"}, {413, "request_too_large"}, {429, "rate_limit_error"}, {500, "api_error"}, {502, "api_error"},
        {503, "overloaded_error"}, {504, "timeout_error"},
    };
    char body[256], expected[256], *answer;

    for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
        snprintf(body, sizeof(body), "{'model':'auto','max_tokens':9,'messages':[{'role':'user','content':'fail %d'}]}",
                 types[i].status);
        snprintf(expected, sizeof(expected), "{\"type\":\"error\",\"error\":{\"type\":\"%s\","
         "\"message\":\"as asked\"}}",
                 types[i].type);
        cr_assert_eq(post(PATH, body, &answer), types[i].status);
        cr_assert_str_eq(body_of(answer), expected);
        cr_assert_str_eq(header_of(answer, "Retry-After"), "7");
        cr_assert_str_eq(header_of(answer, "request-id"), FAKE_ID);
        free(answer);
    }
    /* Refused before its body was read. */
    cr_assert_eq(exchange("GET " PATH " HTTP/1.1\r\nHost: localhost\r\n\r\n", &answer), 405);
    cr_assert_not_null(strstr(body_of(answer), "{\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\""));
    cr_assert_not_null(header_of(answer, "request-id"));
    free(answer);
}

/* ---- Answers ---- */

#define ANSWER(model, content, reason) \
    "{'id':'msg_" FAKE_ID "','type':'message','role':'assistant','model':'" model "','content':[" content "],'stop_reason':'" \
    reason "','stop_sequence':null,'usage':{'input_tokens':2,'cache_read_input_tokens':3,'cache_creation_input_tokens':0," \
    "'output_tokens':2}}"
#define USE(id, name, input) "{'type':'tool_use','id':'" id "','name':'" name "','input':" input "}"

Test(anthropic, whole_answers)
{
    static const struct { const char *say, *answer; } answers[] = {
        {"hi", ANSWER("tern-nano", "{'type':'text','text':'Hel\\\"l\\no ✓'}", "end_turn")},
        {"cloud", ANSWER("big-model", "{'type':'text','text':'Hel\\\"l\\no ✓'}", "end_turn")},
        {"calls", ANSWER("tern-nano", "{'type':'text','text':'Wait.'}," USE("call_a", "look", "{'at':'sky'}") ","
                         USE("call_b", "stop", "{}"), "tool_use")},
        {"call", ANSWER("tern-nano", USE("call_a", "look", "{'at':'sky'}"), "tool_use")},
    };

    for (size_t i = 0; i < ARRAY_SIZE(answers); i++) {
        char body[256], *answer;

        snprintf(body, sizeof(body), "{'model':'auto','max_tokens':9,'messages':[{'role':'user','content':'%s'}]}",
            answers[i].say);
        cr_assert_eq(post(PATH, body, &answer), 200);
        json_same(json_loads(body_of(answer), 0, NULL), json_of(answers[i].answer), answers[i].say);
        cr_assert_str_eq(header_of(answer, "request-id"), FAKE_ID);
        cr_assert_str_eq(header_of(answer, "x-tern-decision-id"), FAKE_ID);
        free(answer);
    }
}

Test(anthropic, a_stop_sequence_is_told)
{
    cleanup(freep) char *answer = NULL;
    const char *reason, *stop;
    cleanup(json_decrefp) json_t *j = NULL;

    cr_assert_eq(post(PATH, WITH("'stop_sequences':['o','x']"), &answer), 200);
    j = json_loads(body_of(answer), 0, NULL);
    cr_assert_eq(json_unpack(j, "{s:s, s:s}", "stop_reason", &reason, "stop_sequence", &stop), 0);
    cr_assert_str_eq(reason, "stop_sequence");
    cr_assert_str_eq(stop, "o");
}

#define EVENT(type, more) "event: " type "\ndata: {\"type\":\"" type "\"" more "}\n\n"
#define BEGIN EVENT("message_start", ",\"message\":{\"id\":\"msg_" FAKE_ID "\",\"type\":\"message\",\"role\":\"assistant\"," \
    "\"model\":\"tern-nano\",\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,\"usage\":{\"input_tokens\":0," \
    "\"cache_read_input_tokens\":0,\"cache_creation_input_tokens\":0,\"output_tokens\":0}}")
#define START(i, block) EVENT("content_block_start", ",\"index\":" i ",\"content_block\":{" block "}")
#define TEXT_START(i) START(i, "\"type\":\"text\",\"text\":\"\"")
#define CALL_START(i, id, name) START(i, "\"type\":\"tool_use\",\"id\":\"" id "\",\"name\":\"" name "\",\"input\":{}")
#define TEXT(i, text) \
    EVENT("content_block_delta", ",\"index\":" i ",\"delta\":{\"type\":\"text_delta\",\"text\":\"" text "\"}")
#define INPUT(i, text) \
    EVENT("content_block_delta", ",\"index\":" i ",\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"" text "\"}")
#define STOP(i) EVENT("content_block_stop", ",\"index\":" i)
#define END(reason) EVENT("message_delta", ",\"delta\":{\"stop_reason\":\"" reason "\",\"stop_sequence\":null},\"usage\":{" \
    "\"input_tokens\":2,\"cache_read_input_tokens\":3,\"cache_creation_input_tokens\":0,\"output_tokens\":2}") \
    EVENT("message_stop", "")

static void stream_is(const char *body, const char *expected)
{
    char *answer;

    cr_assert_eq(post(PATH, body, &answer), 200);
    cr_assert_str_eq(header_of(answer, "Content-Type"), "text/event-stream; charset=utf-8");
    cr_assert_str_eq(header_of(answer, "request-id"), FAKE_ID);
    cr_assert_str_eq(dechunk(answer), expected);
    free(answer);
}

Test(anthropic, streams_to_the_byte)
{
    stream_is(STREAM("hi"), BEGIN TEXT_START("0") TEXT("0", "Hel\\\"l\\n") TEXT("0", "o ✓") STOP("0") END("end_turn"));
    stream_is(STREAM("calls"), BEGIN TEXT_START("0") TEXT("0", "Wait.") STOP("0") CALL_START("1", "call_a", "look")
              INPUT("1", "{\\\"at\\\":") INPUT("1", "\\\"sky\\\"}") STOP("1") CALL_START("2", "call_b",
               "stop") STOP("2")
              END("tool_use"));
    stream_is(STREAM("cut"), BEGIN TEXT_START("0") TEXT("0", "Hel\\\"l\\n")
              EVENT("error", ",\"error\":{\"type\":\"api_error\",\"message\":\"the cloud's answer broke off\"}"));
}
