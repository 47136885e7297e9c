/* OpenAI's Responses as its clients see it: what a request becomes, whole answers, every event of a stream,
    refusals. */
#include <criterion/criterion.h>
#include <string.h>
#include "tests/daemon/fake.h"

#define PATH "/v1/responses"

static void start(void) { fake_start(NULL); }

TestSuite(responses, .init = start, .fini = fake_stop, .timeout = 60);

/* ---- Requests ---- */

#define HI "{'role':'user','content':'hi'}"
#define TOOL "{'type':'function','name':'look','description':'d','parameters':{'type':'object'},'strict':true}"
#define TOOL_READ \
    "{'type':'function','function':{'name':'look','description':'d','parameters':{'type':'object'},'strict':true}}"
#define CALL(id) "{'id':'" id "','type':'function','function':{'name':'look','arguments':'{}'}}"
#define CALL_ITEM(id) "{'type':'function_call','id':'fc_1','status':'completed','call_id':'" id "','name':'look'," \
    "'arguments':'{}'}"

static const struct { const char *what, *sent, *chat; } requests[] = {
    {"a string", "{'input':'hi'}", "{'messages':[" HI "]}"},
    {"parameters", "{'model':'auto','input':'hi','instructions':'be brief','max_output_tokens':9,'temperature':0.5,"
     "'top_p':0.25,'stream':true,'store':false,'metadata':{'a':'b'},'truncation':'disabled',"
     "'previous_response_id':null,"
     "'include':['reasoning.encrypted_content','message.output_text.logprobs'],'top_logprobs':2,"
     "'reasoning':{'effort':'low'}}",
     "{'model':'auto','max_tokens':9,'temperature':0.5,'top_p':0.25,'stream':true,'logprobs':true,'top_logprobs':2,"
     "'messages':[{'role':'system','content':'be brief'}," HI "]}"},
    {"items", "{'input':[{'role':'developer','content':'s'},{'type':'message','role':'user',"
     "'content':[{'type':'input_text',"
     "'text':'a'},{'type':'input_text','text':'b'}]},{'type':'reasoning','id':'r','summary':[]},{'type':'message',"
     "'id':'m',"
     "'status':'completed','role':'assistant','content':[{'type':'output_text','text':'c','annotations':[]},"
     "{'type':'refusal',"
     "'refusal':'d'}]}," HI "]}",
     "{'messages':[{'role':'system','content':'s'},{'role':'user','content':'ab'},{'role':'assistant',"
     "'content':'cd'}," HI "]}"},
    {"calls and results", "{'input':[" HI ",{'role':'assistant',"
     "'content':'so'}," CALL_ITEM("c1") "," CALL_ITEM("c2") ","
     "{'type':'function_call_output','call_id':'c2','output':'two'},{'type':'function_call_output','call_id':'c1',"
     "'output':"
     "[{'type':'input_text','text':'one'}]}," CALL_ITEM("c3") ",{'type':'function_call_output','call_id':'c3',"
     "'output':''}]}",
     "{'messages':[" HI ",{'role':'assistant','content':'so','tool_calls':[" CALL("c1") "," CALL("c2") "]},"
     "{'role':'tool','tool_call_id':'c2','content':'two'},{'role':'tool','tool_call_id':'c1','content':'one'},"
     "{'role':'assistant','content':'','tool_calls':[" CALL("c3") "]},{'role':'tool','tool_call_id':'c3',"
     "'content':''}]}"},
    {"tools", "{'input':'hi','tools':[" TOOL "],'tool_choice':{'type':'function','name':'look'},"
     "'parallel_tool_calls':false}",
     "{'messages':[" HI "],'tools':[" TOOL_READ "],'tool_choice':{'type':'function','function':{'name':'look'}},"
     "'parallel_tool_calls':false}"},
    {"a word", "{'input':'hi','tools':[" TOOL "],'tool_choice':'required'}",
     "{'messages':[" HI "],'tools':[" TOOL_READ "],'tool_choice':'required'}"},
    {"a schema", "{'input':'hi','text':{'verbosity':'low','format':{'type':'json_schema','name':'n','strict':true,"
     "'schema':{'type':'object'}}}}",
     "{'messages':[" HI "],'response_format':{'type':'json_schema','json_schema':{'name':'n','strict':true,"
     "'schema':{'type':'object'}}}}"},
    {"JSON", "{'input':'hi','text':{'format':{'type':'json_object'}}}",
     "{'messages':[" HI "],'response_format':{'type':'json_object'}}"},
};

Test(responses, requests)
{
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        cleanup(freep) char *answer = NULL;

        cr_assert_eq(post(PATH, requests[i].sent, &answer), 200, "%s: %s", requests[i].what, answer);
        json_same(json_incref(fake.chat), json_of(requests[i].chat), requests[i].what);
    }
    cr_expect_str_eq(fake.dialect, "openai-responses");
}

static const struct { const char *body, *param, *code; } refused[] = {
    {"{}", "input", "invalid_value"},
    {"{'input':[]}", "input", "invalid_value"},
    {"{'input':[5]}", "input[0]", "invalid_value"},
    {"{'input':[{'type':'web_search_call'}]}", "input[0].type", "invalid_value"},
    {"{'input':[{'type':'item_reference','id':'x'}]}", "input[0]", "unsupported_value"},
    {"{'input':[{'role':'tool','content':'x'}]}", "input[0].role", "invalid_value"},
    {"{'input':[{'role':'user'}]}", "input[0].content", "invalid_value"},
    {"{'input':[{'role':'user','content':[{'type':'input_image'}]}]}", "input[0].content[0].type", "unsupported_value"},
    {"{'input':[{'role':'user','content':[{'type':'input_text'}]}]}", "input[0].content[0].text", "invalid_value"},
    {"{'input':[" HI ",{'type':'function_call','call_id':'c'}]}", "input[1]", "invalid_value"},
    {"{'input':[{'type':'function_call_output','output':'x'}]}", "input[0].call_id", "invalid_value"},
    {"{'input':[{'type':'function_call_output','call_id':'','output':'x'}]}", "input", "invalid_value"},
    {"{'input':'x','instructions':5}", "instructions", "invalid_value"},
    {"{'input':'x','previous_response_id':'r'}", "previous_response_id", "unsupported_parameter"},
    {"{'input':'x','conversation':'c'}", "conversation", "unsupported_parameter"},
    {"{'input':'x','prompt':{'id':'p'}}", "prompt", "unsupported_parameter"},
    {"{'input':'x','store':true}", "store", "unsupported_value"},
    {"{'input':'x','background':true}", "background", "unsupported_value"},
    {"{'input':'x','max_output_tokens':0}", "max_output_tokens", "invalid_value"},
    {"{'input':'x','temperature':3}", "temperature", "invalid_value"},
    {"{'input':'x','tools':{}}", "tools", "invalid_value"},
    {"{'input':'x','tools':[{'type':'web_search'}]}", "tools[0].type", "invalid_value"},
    {"{'input':'x','tool_choice':'required'}", "tool_choice", "invalid_value"},
    {"{'input':'x','tools':[" TOOL "],'tool_choice':{'type':'function',"
     "'name':'other'}}", "tool_choice.name", "invalid_value"},
    {"{'input':'x','text':5}", "text", "invalid_value"},
    {"{'input':'x','text':{'format':{'type':'grammar'}}}", "text.format.type", "invalid_value"},
    {"{'input':'x','text':{'format':{'type':'json_schema','name':'n'}}}", "text.format.schema", "invalid_value"},
};

Test(responses, refused_by_name)
{
    for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
        cleanup(freep) char *answer = NULL;
        cleanup(json_decrefp) json_t *j = NULL;
        const json_t *e;

        cr_expect_eq(post(PATH, refused[i].body, &answer), 400, "%s", refused[i].body);
        j = json_loads(body_of(answer), 0, NULL);
        e = json_object_get(j, "error");
        cr_assert(e, "%s", answer);
        cr_expect_str_eq(json_string_value(json_object_get(e, "param")), refused[i].param, "%s", refused[i].body);
        cr_expect_str_eq(json_string_value(json_object_get(e, "code")), refused[i].code, "%s", refused[i].body);
        cr_expect(strncmp(json_string_value(json_object_get(e, "message")), refused[i].param, 4) == 0, "%s", answer);
    }
    cr_expect_eq(fake.started, 0);
}

/* ---- Answers ---- */

#define USAGE "{'input_tokens':5,'input_tokens_details':{'cached_tokens':3},'output_tokens':2," \
              "'output_tokens_details':{'reasoning_tokens':0},'total_tokens':7}"
#define RESPONSE(status, why, output, usage) "{'id':'resp_" FAKE_ID "','object':'response','created_at':1700000000," \
    "'status':'" status "','background':false,'error':null,'incomplete_details':" why ",'model':'tern-nano'," \
    "'output':[" output "],'previous_response_id':null,'store':false,'truncation':'disabled','usage':" usage "," \
    "'instructions':null,'max_output_tokens':null,'temperature':1.0,'top_p':1.0,'tool_choice':'auto','metadata':{}," \
    "'user':null,'reasoning':{'effort':null,'summary':null},'tools':[],'parallel_tool_calls':true," \
    "'text':{'format':{'type':'text'}}}"
#define PART(text, probs) "{'type':'output_text','text':'" text "','annotations':[],'logprobs':[" probs "]}"
#define MESSAGE(at, status, parts) \
    "{'id':'msg_" FAKE_ID "_" at "','type':'message','status':'" status "','role':'assistant','content':[" parts "]}"
#define CALLED(at, status, id, name, arguments) "{'id':'fc_" FAKE_ID "_" at "','type':'function_call'," \
    "'status':'" status \
    "','call_id':'" id "','name':'" name "','arguments':'" arguments "'}"
#define PROB "{'token':'t','logprob':-0.5,'bytes':[116],'top_logprobs':[]}"
/* Quotes inside a JSON text: json_of() makes double ones of single ones. */
#define ARGUMENTS "{\\'at\\':\\'sky\\'}"
#define HELLO "Hel\\'l\\no ✓"

static void whole(const char *body, const char *wanted)
{
    cleanup(freep) char *answer = NULL;

    cr_assert_eq(post(PATH, body, &answer), 200, "%s", answer);
    json_same(json_loads(body_of(answer), 0, NULL), json_of(wanted), body);
}

Test(responses, whole_answers)
{
    whole("{'input':'hi'}", RESPONSE("completed", "null", MESSAGE("0", "completed", PART(HELLO, "")), USAGE));
    whole("{'input':'hi','include':['message.output_text.logprobs']}",
          RESPONSE("completed", "null", MESSAGE("0", "completed", PART(HELLO, PROB "," PROB)), USAGE));
    whole("{'input':'long'}", RESPONSE("incomplete", "{'reason':'max_output_tokens'}",
                                       MESSAGE("0", "incomplete", PART(HELLO, "")), USAGE));
    whole("{'input':'call'}", RESPONSE("completed", "null", CALLED("0", "completed", "call_a", "look", ARGUMENTS),
        USAGE));
    whole("{'input':'calls'}", RESPONSE("completed", "null", MESSAGE("0", "completed", PART("Wait.", "")) ","
                                        CALLED("1", "completed", "call_a", "look", ARGUMENTS) ","
                                        CALLED("2", "completed", "call_b", "stop", ""), USAGE));
}

/* Its events as an array; their names are those that stand before them, their numbers count up and are taken out. */
static json_t *events(char *text)
{
    json_t *all = json_array();
    char *rest = text, *line, name[64] = "";

    while ((line = strsep(&rest, "\n"))) {
        json_t *e;

        if (strncmp(line, "event: ", 7) == 0)
            snprintf(name, sizeof(name), "%s", line + 7);
        if (strncmp(line, "data: ", 6) != 0)
            continue;
        e = json_loads(line + 6, 0, NULL);
        cr_assert_str_eq(json_string_value(json_object_get(e, "type")), name);
        cr_assert_eq(json_integer_value(json_object_get(e, "sequence_number")), json_array_size(all));
        json_object_del(e, "sequence_number");
        json_array_append_new(all, e);
    }
    return all;
}

static void streamed(const char *body, const char *wanted)
{
    cleanup(freep) char *answer = NULL;

    cr_assert_eq(post(PATH, body, &answer), 200, "%s", answer);
    cr_expect_str_eq(header_of(answer, "Content-Type"), "text/event-stream; charset=utf-8");
    json_same(events(dechunk(answer)), json_of(wanted), body);
}

#define BEGUN "{'type':'response.created','response':" RESPONSE("in_progress", "null", "", "null") "}," \
              "{'type':'response.in_progress','response':" RESPONSE("in_progress", "null", "", "null") "},"
#define AT(type, item, at) "{'type':'response." type "','item_id':'" item "_" FAKE_ID "_" at "','output_index':" at ","
#define ITEM(type, at, item) "{'type':'response.output_item." type "','output_index':" at ",'item':" item "},"
#define TEXT_BEGUN(at) ITEM("added", at, MESSAGE(at, "in_progress", "")) \
                       AT("content_part.added", "msg", at) "'content_index':0,'part':" PART("", "") "},"
#define TEXT(at, text, probs) \
    AT("output_text.delta", "msg", at) "'content_index':0,'delta':'" text "','logprobs':[" probs "]},"
#define TEXT_DONE(at, status, text, probs) \
    AT("output_text.done", "msg", at) "'content_index':0,'text':'" text "','logprobs':[" probs "]}," \
    AT("content_part.done", "msg", at) "'content_index':0,'part':" PART(text, probs) "}," \
    ITEM("done", at, MESSAGE(at, status, PART(text, probs)))
#define CALL_BEGUN(at, id, name) ITEM("added", at, CALLED(at, "in_progress", id, name, ""))
#define ARGUMENT(at, piece) AT("function_call_arguments.delta", "fc", at) "'delta':'" piece "'},"
#define CALL_DONE(at, id, name, arguments) \
    AT("function_call_arguments.done", "fc", at) "'name':'" name "','arguments':'" arguments "'}," \
    ITEM("done", at, CALLED(at, "completed", id, name, arguments))

Test(responses, streams)
{
    streamed("{'input':'hi','stream':true}", "[" BEGUN TEXT_BEGUN("0") TEXT("0", "Hel\\'l\\n", "") TEXT("0", "o ✓", "")
             TEXT_DONE("0", "completed", HELLO, "") "{'type':'response.completed','response':"
             RESPONSE("completed", "null", MESSAGE("0", "completed", PART(HELLO, "")), USAGE) "}]");
    streamed("{'input':'hi','stream':true,'include':['message.output_text.logprobs']}",
             "[" BEGUN TEXT_BEGUN("0") TEXT("0", "Hel\\'l\\n", PROB) TEXT("0", "o ✓", PROB)
             TEXT_DONE("0", "completed", HELLO, PROB "," PROB) "{'type':'response.completed','response':"
             RESPONSE("completed", "null", MESSAGE("0", "completed", PART(HELLO, PROB "," PROB)), USAGE) "}]");
    streamed("{'input':'long','stream':true}", "[" BEGUN TEXT_BEGUN("0") TEXT("0", "Hel\\'l\\n", "") TEXT("0", "o "
        "✓", "")
             TEXT_DONE("0", "incomplete", HELLO, "") "{'type':'response.incomplete','response':"
             RESPONSE("incomplete", "{'reason':'max_output_tokens'}", MESSAGE("0", "incomplete", PART(HELLO, "")),
             USAGE) "}]");
    streamed("{'input':'calls','stream':true}", "[" BEGUN TEXT_BEGUN("0") TEXT("0", "Wait.", "")
             TEXT_DONE("0", "completed", "Wait.", "") CALL_BEGUN("1", "call_a", "look") ARGUMENT("1", "{\\'at\\':")
             ARGUMENT("1", "\\'sky\\'}") CALL_DONE("1", "call_a", "look", ARGUMENTS) CALL_BEGUN("2", "call_b", "stop")
             CALL_DONE("2", "call_b", "stop", "") "{'type':'response.completed','response':"
             RESPONSE("completed", "null", MESSAGE("0", "completed", PART("Wait.", "")) ","
                      CALLED("1", "completed", "call_a", "look", ARGUMENTS) ","
                      CALLED("2", "completed", "call_b", "stop", ""), USAGE) "}]");
}

/* A stream that breaks says so twice, and is not completed. */
Test(responses, broken_stream)
{
    cleanup(freep) char *answer = NULL;
    cleanup(json_decrefp) json_t *all = NULL;
    const json_t *failed, *error;
    size_t n;

    cr_assert_eq(post(PATH, "{'input':'cut','stream':true}", &answer), 200);
    all = events(dechunk(answer));
    n = json_array_size(all);
    failed = json_object_get(json_array_get(all, n - 2), "response");
    error = json_array_get(all, n - 1);
    cr_expect_str_eq(json_string_value(json_object_get(failed, "status")), "failed");
    cr_expect_str_eq(json_string_value(json_object_get(json_object_get(failed, "error"), "code")), "upstream_cut");
    cr_expect_str_eq(json_string_value(json_object_get(error, "type")), "error");
    cr_expect_str_eq(json_string_value(json_object_get(error, "code")), "upstream_cut");
    cr_expect_str_eq(json_string_value(json_object_get(json_object_get(error, "error"), "code")), "upstream_cut");
}
