/* upstream.c, upstream_anthropic.c: the bodies that leave, and what comes back, as JSON against JSON. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include "base/buf.h"
#include "base/chat.h"
#include "base/util.h"
#include "router/upstream.h"

/* Single quotes for double ones, so that cases can be read. */
static json_t *parse(const char *text)
{
    cleanup(freep) char *s = strdup(text);
    struct err err = {0};
    json_t *j;

    for (char *p = s; *p; p++)
        if (*p == '\'')
            *p = '"';
    j = json_parse(s, strlen(s), &err);
    cr_assert_not_null(j, "%s: %s", err.msg, text);
    return j;
}

static void same(json_t *got /* taken */, json_t *wanted /* taken */, const char *what)
{
    cleanup(freep) char *a = json_canonical(got), *b = json_canonical(wanted);

    cr_assert_str_eq(a, b, "%s:\n%s\n%s", what, a, b);
    json_decref(got);
    json_decref(wanted);
}

/* The request as chat.c makes it of a client's body. */
static json_t *request_of(const char *body)
{
    cleanup(json_decrefp) json_t *j = parse(body);
    cleanup(chat_request_freep) struct chat_request *r = NULL;
    struct err err = {0};

    cr_assert_eq(chat_request_from_json(&r, j, &err), 0, "%s: %s", body, err.msg);
    return chat_request_to_json(r);
}

#define USER "{'role':'user','content':'hi'}"
#define CALLS(...) "{'role':'assistant','content':'Let me see.','tool_calls':[" __VA_ARGS__ "]}"
#define CALL(id, arguments) "{'id':'" id "','type':'function','function':{'name':'look','arguments':'" arguments "'}}"
#define RESULT(id, text) "{'role':'tool','tool_call_id':'" id "','content':'" text "'}"
#define TOOL "{'type':'function','function':{'name':'look','description':'Looks.','parameters':{'type':'object','properties':" \
             "{'at':{'type':'string'}}}}}"
#define THEIR_TOOL "{'name':'look','description':'Looks.','input_schema':{'type':'object','properties':{'at':" \
                   "{'type':'string'}}}}"
#define THEIR_USER "{'role':'user','content':[{'type':'text','text':'hi'}]}"
#define HEAD "'model':'big','stream':true,"

static const struct { const char *what, *asked, *sent; } bodies[] = {
    {"plain", "{'messages':[" USER "]}", "{" HEAD "'max_tokens':4096,'messages':[" THEIR_USER "]}"},
    {"parameters", "{'messages':[" USER "],'max_tokens':7,'temperature':1.5,'top_p':0.5,'top_k':3,'stop':['a','b'],"
     "'seed':1,'frequency_penalty':1,'min_p':0.1,'logprobs':true}",
     "{" HEAD "'max_tokens':7,'temperature':1.0,'top_p':0.5,'top_k':3,'stop_sequences':['a','b'],'messages':["
     THEIR_USER "]}"},
    {"parameters without effect", "{'messages':[" USER "],'temperature':0,'top_p':1,'top_k':0}",
     "{" HEAD "'max_tokens':4096,'temperature':0.0,'messages':[" THEIR_USER "]}"},
    {"system messages, wherever they stand", "{'messages':[{'role':'system','content':'one'}," USER
     ",{'role':'system','content':'two'}]}",
     "{" HEAD "'max_tokens':4096,'system':'one\\n\\ntwo','messages':[" THEIR_USER "]}"},
    {"turns of one role are joined, blanks dropped", "{'messages':[" USER "," USER
     ",{'role':'assistant','content':'  '},{'role':'assistant','content':'a'},{'role':'user','content':'b'}]}",
     "{" HEAD "'max_tokens':4096,'messages':[{'role':'user','content':[{'type':'text','text':'hi'},{'type':'text',"
     "'text':'hi'}]},{'role':'assistant','content':[{'type':'text','text':'a'}]},{'role':'user',"
     "'content':[{'type':'text','text':'b'}]}]}"},
    {"the assistant begins", "{'messages':[{'role':'assistant','content':'welcome'}," USER "]}",
     "{" HEAD "'max_tokens':4096,'messages':[{'role':'user','content':[{'type':'text',"
     "'text':'(The assistant begins.)'}]},{'role':'assistant','content':[{'type':'text','text':'welcome'}]},"
     THEIR_USER "]}"},
    {"calls and their results, ids kept", "{'messages':[" USER "," CALLS(CALL("call_1", "{}") "," CALL("toolu_2",
     "[1]"))
     "," RESULT("call_1", "here") "," RESULT("toolu_2", "there") "," USER "],'tools':[" TOOL "]}",
     "{" HEAD "'max_tokens':4096,'messages':[" THEIR_USER ",{'role':'assistant','content':[{'type':'text','text':"
     "'Let me see.'},{'type':'tool_use','id':'call_1','name':'look','input':{}},{'type':'tool_use','id':'toolu_2',"
     "'name':'look','input':{'arguments':'[1]'}}]},{'role':'user','content':[{'type':'tool_result',"
     "'tool_use_id':'call_1','content':'here'},{'type':'tool_result','tool_use_id':'toolu_2','content':'there'},"
     "{'type':'text','text':'hi'}]}],'tools':[" THEIR_TOOL "],'tool_choice':{'type':'auto'}}"},
    {"an id that is refused there", "{'messages':[" USER "," CALLS(CALL("a:b.c", "")) "," RESULT("a:b.c", "x") "]}",
     "{" HEAD "'max_tokens':4096,'messages':[" THEIR_USER ",{'role':'assistant','content':[{'type':'text','text':"
     "'Let me see.'},{'type':'tool_use','id':'a_b_c','name':'look','input':{}}]},{'role':'user','content':[{'type':"
     "'tool_result','tool_use_id':'a_b_c','content':'x'}]}]}"},
    {"a tool must be called", "{'messages':[" USER "],'tools':[" TOOL "],'tool_choice':'required'}",
     "{" HEAD "'max_tokens':4096,'messages':[" THEIR_USER "],'tools':[" THEIR_TOOL "],'tool_choice':{'type':'any'}}"},
    {"one tool, one call", "{'messages':[" USER "],'tools':[" TOOL "],'parallel_tool_calls':false,"
     "'tool_choice':{'type':'function','function':{'name':'look'}}}",
     "{" HEAD "'max_tokens':4096,'messages':[" THEIR_USER "],'tools':[" THEIR_TOOL "],'tool_choice':{'type':'tool',"
     "'name':'look','disable_parallel_tool_use':true}}"},
    {"no tool, though there are some", "{'messages':[" USER "],'tools':[" TOOL "],'tool_choice':'none'}",
     "{" HEAD "'max_tokens':4096,'messages':[" THEIR_USER "],'tools':[" THEIR_TOOL "],'tool_choice':{'type':'none'}}"},
    {"a tool without parameters", "{'messages':[" USER "],'tools':[{'type':'function','function':{'name':'f'}}]}",
     "{" HEAD "'max_tokens':4096,'messages':[" THEIR_USER "],'tools':[{'name':'f','input_schema':{'type':'object',"
     "'properties':{}}}],'tool_choice':{'type':'auto'}}"},
    {"a schema", "{'messages':[" USER "],'response_format':{'type':'json_schema','json_schema':{'name':'n','schema':"
     "{'type':'object'}}}}",
     "{" HEAD "'max_tokens':4096,'messages':[" THEIR_USER "],'output_config':{'format':{'type':'json_schema','schema':"
     "{'type':'object'}}}}"},
    {"some JSON", "{'messages':[{'role':'system','content':'one'}," USER "],'response_format':{'type':'json_object'}}",
     "{" HEAD "'max_tokens':4096,'system':'one\\n\\nAnswer with one JSON object and nothing else.','messages':["
     THEIR_USER "]}"},
};

Test(upstream, bodies_for_anthropic)
{
    for (size_t i = 0; i < ARRAY_SIZE(bodies); i++) {
        cleanup(json_decrefp) json_t *request = request_of(bodies[i].asked);
        cleanup(freep) char *before = json_canonical(request), *after = NULL;

        same(upstream_of(UPSTREAM_ANTHROPIC)->body(request, "big"), parse(bodies[i].sent), bodies[i].what);
        after = json_canonical(request);
        cr_assert_str_eq(before, after, "%s: the request is as it was", bodies[i].what);
    }
}

Test(upstream, body_for_openai)
{
    cleanup(json_decrefp) json_t *request = request_of("{'messages':[" USER "," CALLS(CALL("c", "{}")) ","
                                                       RESULT("c", "x")
                                                       "],'tools':[" TOOL "],'top_k':3,'min_p':0.5,"
                                                       "'repeat_penalty':1.5,'seed':4,'model':'auto'}");

    same(upstream_of(UPSTREAM_OPENAI)->body(request, "big"),
         parse("{'messages':[" USER "," CALLS(CALL("c", "{}")) "," RESULT("c", "x") "],'tools':[" TOOL "],'seed':4,"
               "'model':'big','stream':true,'stream_options':{'include_usage':true}}"), "openai");
    cr_assert_not_null(json_object_get(request, "top_k"));
}

#define START(usage) "{'type':'message_start','message':{'usage':{" usage "}}}"
#define BLOCK(i, block) "{'type':'content_block_start','index':" i ",'content_block':" block "}"
#define TEXT(text) "{'type':'content_block_delta','index':0,'delta':{'type':'text_delta','text':'" text "'}}"
#define INPUT(text) "{'type':'content_block_delta','index':0,'delta':{'type':'input_json_delta','partial_json':'" text "'}}"
#define STOP "{'type':'content_block_stop','index':0}"
#define END(reason, usage) "{'type':'message_delta','delta':{'stop_reason':'" reason "'},'usage':{" usage "}}"
#define OVER "{'type':'message_stop'}"
#define PING "{'type':'ping'}"
#define TOOL_USE(id, input) "{'type':'tool_use','id':'" id "','name':'look','input':" input "}"
#define CHUNK(delta, finish) "{'choices':[{'index':0,'delta':" delta ",'finish_reason':" finish "}]}"
#define CALLED(more) CHUNK("{'tool_calls':[{" more "}]}", "null")
#define BEGUN(i, id) CALLED("'index':" i ",'id':'" id "','type':'function','function':{'name':'look','arguments':''}")
#define ARGUMENTS(i, text) CALLED("'index':" i ",'function':{'arguments':'" text "'}")
#define ENDED(finish, in, cached, out, total) \
    "{'choices':[{'index':0,'delta':{},'finish_reason':" finish "}],'usage':{'prompt_tokens':" in ",'completion_tokens':" \
    out ",'total_tokens':" total ",'prompt_tokens_details':{'cached_tokens':" cached "}}}"

static const struct { const char *what, *events[12], *chunks[12]; bool over; } streams[] = {
    {"words", {START("'input_tokens':3,'output_tokens':1"), BLOCK("0", "{'type':'text','text':''}"), PING,
        TEXT("one"), TEXT(" two"),
               STOP, END("end_turn", "'output_tokens':5"), OVER},
     {CHUNK("{'content':'one'}", "null"), CHUNK("{'content':' two'}", "null"), ENDED("'stop'", "3", "0", "5", "8")},
         true},
    {"two calls after words", {START("'input_tokens':3"), BLOCK("0", "{'type':'text','text':'so'}"), STOP,
               BLOCK("1", TOOL_USE("t1", "{}")), INPUT(""), INPUT("{}"), STOP, BLOCK("2", TOOL_USE("t2", "{}")),
                   INPUT("[]"),
               STOP, END("tool_use", "'output_tokens':5"), OVER},
     {CHUNK("{'content':'so'}", "null"), BEGUN("0", "t1"), ARGUMENTS("0", "{}"), BEGUN("1", "t2"), ARGUMENTS("1", "[]"),
      ENDED("'tool_calls'", "3", "0", "5", "8")}, true},
    {"a call without arguments, and one that has them at once",
     {BLOCK("0", TOOL_USE("t1", "{}")), INPUT(""), STOP, BLOCK("1", TOOL_USE("t2", "[1]")), STOP, BLOCK("2",
      TOOL_USE("t3",
      "{'n':1}")), STOP},
     {BEGUN("0", "t1"), ARGUMENTS("0", "{}"), BEGUN("1", "t2"), ARGUMENTS("1", "{}"), BEGUN("2", "t3"),
      "{'choices':[{'index':0,'delta':{'tool_calls':[{'index':2,'function':{'arguments':'{\\'n\\':1}'}}]},"
      "'finish_reason':null}]}"}, false},
    {"thinking and what servers do is passed over", {BLOCK("0", "{'type':'thinking','thinking':''}"),
      "{'type':'content_block_delta','index':0,'delta':{'type':'thinking_delta','thinking':'hm'}}", STOP,
      BLOCK("1", "{'type':'server_tool_use','id':'s','name':'web','input':{}}"), INPUT("{}"), STOP,
       "{'type':'new_thing'}"}, {0},
     false},
    {"a cache, and usage that comes again", {START("'input_tokens':3,'cache_read_input_tokens':10,"
     "'cache_creation_input_tokens':2"),
      END("max_tokens", "'output_tokens':5")}, {ENDED("'length'", "15", "10", "5", "20")}, false},
    {"usage only at the end", {END("refusal", "'input_tokens':4,'output_tokens':5")},
     {ENDED("'content_filter'", "4", "0", "5", "9")}, false},
    {"a stop string", {"{'type':'message_delta','delta':{'stop_reason':'stop_sequence','stop_sequence':'x'}}"},
     {"{'choices':[{'index':0,'delta':{},'finish_reason':'stop','stop_reason':'x'}]}"}, false},
};

/* \" inside a chunk's string was written as \' and came out of parse() as \". */
Test(upstream, events_of_anthropic)
{
    for (size_t i = 0; i < ARRAY_SIZE(streams); i++) {
        struct upstream_stream s = {0};
        size_t n = 0;

        for (size_t k = 0; k < ARRAY_SIZE(streams[i].events) && streams[i].events[k]; k++) {
            cleanup(json_decrefp) json_t *event = parse(streams[i].events[k]);
            json_t *chunk = NULL;
            int r = upstream_of(UPSTREAM_ANTHROPIC)->event(&chunk, &s, event);

            cr_assert(r == 0 || r == 1, "%s, event %zu: %d", streams[i].what, k, r);
            if (r == 0)
                continue;
            cr_assert_not_null(streams[i].chunks[n], "%s, event %zu", streams[i].what, k);
            same(chunk, parse(streams[i].chunks[n++]), streams[i].what);
        }
        cr_assert_null(streams[i].chunks[n], "%s: %zu chunks", streams[i].what, n);
        cr_assert_eq(s.over, streams[i].over, "%s", streams[i].what);
        upstream_stream_done(&s);
    }
}

Test(upstream, events_that_are_none)
{
    static const char *const wrong[] = {
        "{}", "{'type':7}", "{'choices':[]}", BLOCK("0", "{'type':'tool_use','name':'x'}"), BLOCK("0",
        "{'type':'tool_use','id':'x'}"),
    };
    static const char *const odd[] = {
        "{'type':'content_block_delta'}", "{'type':'content_block_delta','delta':7}", INPUT("{}"), STOP,
        "{'type':'message_delta'}",
        BLOCK("0", "7"), "{'type':'message_start'}", START("'input_tokens':-1"), START("'input_tokens':1e99"), TEXT(""),
    };

    for (size_t i = 0; i < ARRAY_SIZE(wrong) + ARRAY_SIZE(odd); i++) {
        const char *text = i < ARRAY_SIZE(wrong) ? wrong[i] : odd[i - ARRAY_SIZE(wrong)];
        cleanup(json_decrefp) json_t *event = parse(text), *chunk = NULL;
        struct upstream_stream s = {0};
        int r = anthropic_event(&chunk, &s, event);

        cr_assert(i < ARRAY_SIZE(wrong) ? r == -EPROTO : r >= 0, "%s: %d", text, r);
        cr_assert_eq(s.tokens_in, 0);
        upstream_stream_done(&s);
    }
}

Test(upstream, whole_answers_of_anthropic)
{
    cleanup(json_decrefp) json_t *answer = parse("{'type':'message','content':[{'type':'thinking','thinking':'hm'},"
        "{'type':'text','text':'a'},{'type':'text','text':'b'}," TOOL_USE("t", "{'n':1}") "],'stop_reason':'tool_use',"
        "'usage':{'input_tokens':3,'output_tokens':4}}"), *no_message = parse("{'type':'completion','content':[]}"),
            *ours = NULL;

    cr_assert_eq(anthropic_answer(&ours, no_message), -EPROTO);
    cr_assert_eq(anthropic_answer(&ours, answer), 1);
    same(json_incref(ours), parse("{'choices':[{'index':0,'message':{'role':'assistant','content':'ab',"
         "'tool_calls':[{'id':'t','type':'function','function':{'name':'look','arguments':'{\\'n\\':1}'}}]},"
         "'finish_reason':'tool_calls'}],'usage':{'prompt_tokens':3,'completion_tokens':4,'total_tokens':7,"
         "'prompt_tokens_details':{'cached_tokens':0}}}"), "whole");
}
