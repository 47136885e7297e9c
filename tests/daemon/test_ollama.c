/* Ollama's API as its clients see it, and what the router is handed of it: requests as JSON against JSON, answers by
 * their lines, refusals by name. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include "tests/daemon/fake.h"

#define CHAT(...) "{'model':'m','stream':false,'messages':[" __VA_ARGS__ "]}"
#define WITH(more) "{'model':'m','messages':[" HI "]," more "}"
#define GENERATE(more) "{'model':'m','prompt':'hi'" more "}"
#define HI "{'role':'user','content':'hi'}"
#define ASKED(more) "{'model':'m','stream':true,'messages':[" HI "]" more "}"
#define CALL(id, name, arguments) \
    "{'id':'" id "','type':'function','function':{'name':'" name "','arguments':'" arguments "'}}"
#define THEIRS(name, arguments) "{'function':{'name':'" name "','arguments':" arguments "}}"

static void start(void) { fake_start(NULL); }

TestSuite(ollama, .init = start, .fini = fake_stop, .timeout = 60);

/* ---- Requests ---- */

static const struct { const char *path, *sent, *chat; } requests[] = {
    {"chat", "{'model':'m:latest','messages':[" HI "]}", ASKED("")},
    {"generate", "{'model':'m','prompt':'hi','system':'s','stream':false,'raw':false,'template':'','context':[],"
                 "'images':null,'keep_alive':'5m','suffix':''}",
     "{'model':'m','messages':[{'role':'system','content':'s'}," HI "]}"},
    {"chat", WITH("'options':{'num_predict':7,'temperature':0.5,'top_p':0.25,'top_k':3,'min_p':0.125,'seed':4,"
                  "'stop':['a'],'repeat_penalty':1.5,'presence_penalty':0.5,'frequency_penalty':0.25,'num_ctx':4096,"
                  "'mirostat':0}"),
     ASKED(",'max_tokens':7,'temperature':0.5,'top_p':0.25,'top_k':3,'min_p':0.125,'seed':4,'stop':['a'],"
           "'repeat_penalty':1.5,'presence_penalty':0.5,'frequency_penalty':0.25")},
    {"chat", WITH("'options':{'num_predict':-1,'seed':-1,'top_k':-1,'stop':'x'},'think':false,'format':null"),
        ASKED(",'stop':['x']")},
    {"chat", WITH("'format':'json','options':null"), ASKED(",'response_format':{'type':'json_object'}")},
    {"generate", GENERATE(",'format':{'type':'object'}"),
     ASKED(",'response_format':{'type':'json_schema','json_schema':{'name':'answer','strict':true,"
      "'schema':{'type':'object'}}}")},
    {"chat", WITH("'logprobs':true,'top_logprobs':2"), ASKED(",'logprobs':true,'top_logprobs':2")},
    {"chat", WITH("'tools':[{'type':'function','function':{'name':'look','description':'d',"
     "'parameters':{'type':'object'}}}]"),
     ASKED(",'tools':[{'type':'function','function':{'name':'look','description':'d',"
      "'parameters':{'type':'object'}}}]")},
    /* Results find their calls: by name, then in order. */
    {"chat", CHAT(HI ",{'role':'assistant','tool_calls':[" THEIRS("look", "{'n':1}") "," THEIRS("stop", "{}") ","
                  THEIRS("look", "{}")
                  "]},{'role':'tool','content':'1','tool_name':'stop'},{'role':'tool','content':'2',"
                  "'tool_name':'look'},{'role':'tool','content':'3'}," HI),
     "{'model':'m','messages':[" HI ",{'role':'assistant','content':'','tool_calls':[" CALL("call_1_0", "look",
     "{\\'n\\':1}") ","
     CALL("call_1_1", "stop", "{}") "," CALL("call_1_2", "look", "{}") "]},{'role':'tool','content':'1',"
     "'tool_call_id':'call_1_1'},{'role':'tool','content':'2','tool_call_id':'call_1_0'},{'role':'tool','content':'3',"
     "'tool_call_id':'call_1_2'}," HI "]}"},
    /* … or by the ids that calls came with. */
    {"chat", CHAT(HI ",{'role':'assistant','content':'so','tool_calls':[{'id':'a','function':{'index':0,'name':'look',"
                  "'arguments':{}}},{'id':'b','function':{'name':'look','arguments':{}}}]},{'role':'tool',"
                  "'content':'1','tool_call_id':'b'},{'role':'tool','content':'2','tool_call_id':'a'}," HI),
     "{'model':'m','messages':[" HI ",{'role':'assistant','content':'so','tool_calls':[" CALL("a", "look", "{}") ","
     CALL("b", "look", "{}") "]},{'role':'tool','content':'1','tool_call_id':'b'},{'role':'tool','content':'2',"
      "'tool_call_id':'a'}," HI "]}"},
};

Test(ollama, what_the_router_is_handed)
{
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        char path[64], *answer;

        snprintf(path, sizeof(path), "/api/%s", requests[i].path);
        cr_assert_eq(post(path, requests[i].sent, &answer), 200, "%s: %s", requests[i].sent, answer);
        json_same(json_incref(fake.chat), json_of(requests[i].chat), requests[i].sent);
        free(answer);
    }
}

/* ---- Refusals ---- */

static const struct { const char *path, *sent; int status; const char *says; } refusals[] = {
    {"chat", "{'messages':[" HI "]}", 400, "model: expected a string"},
    {"chat", "{'model':'m','messages':7}", 400, "messages: expected an array"},
    {"chat", "{'model':'m','messages':[7]}", 400, "messages[0].content: expected a string"},
    {"chat", CHAT("{'role':'user','content':[]}"), 400, "messages[0].content: expected a string"},
    {"chat", CHAT("{'role':'nobody','content':'x'}"), 400, "messages[0].role: expected"},
    {"chat", CHAT("{'role':'user','content':'x','images':['aa']}"), 400, "messages[0].images: "},
    {"chat", CHAT("{'role':'tool','content':'x'}"), 400, "messages[0]: a tool's result that answers no call"},
    {"chat", CHAT(HI ",{'role':'assistant','tool_calls':[" THEIRS("a", "{}") "]},{'role':'tool','content':'1'},"
                  "{'role':'tool','content':'2'}"), 400, "messages[3]: a tool's result that answers no call"},
    {"chat", CHAT("{'role':'assistant','tool_calls':[" THEIRS("a", "'{}'") "]}"), 400,
     "messages[0].tool_calls[0].function: "},
    {"chat", CHAT("{'role':'assistant','tool_calls':{'a':1}}"), 400, "messages[0].tool_calls: expected an array"},
    {"chat", WITH("'options':7"), 400, "options: expected an object"},
    {"chat", WITH("'options':{'temperature':9}"), 400, "temperature: expected a number from 0 to 2"},
    {"chat", WITH("'options':{'num_predict':1.5}"), 400, "options.num_predict: expected a whole number"},
    {"chat", WITH("'options':{'mirostat':2}"), 400, "options.mirostat: not supported"},
    {"chat", WITH("'options':{'stop':['a','b','c','d','e']}"), 400, "stop: expected at most 4"},
    {"chat", WITH("'format':'xml'"), 400, "format: expected"},
    {"chat", WITH("'think':true"), 400, "think: "},
    {"chat", WITH("'tools':[{'type':'function','function':{'name':'no spaces'}}]"), 400, "tools[0]."},
    {"generate", "{'model':'m','prompt':7}", 400, "prompt: expected a string"},
    {"generate", GENERATE(",'raw':true"), 400, "raw: not supported"},
    {"generate", GENERATE(",'template':'{{ .Prompt }}'"), 400, "template: not supported"},
    {"generate", GENERATE(",'context':[1]"), 400, "context: not supported"},
    {"generate", GENERATE(",'suffix':'x'"), 400, "suffix: not supported"},
    {"generate", GENERATE(",'images':['aa']"), 400, "images: not supported"},
    {"generate", GENERATE(",'system':7"), 400, "system: expected a string"},
    {"generate", "{'model':'nobody'}", 404, "there is no such model"},
    {"chat", "{'model':'nobody','messages':[]}", 404, "there is no such model"},
    {"show", "{'model':'nobody'}", 404, "there is no such model"},
    {"show", "{}", 400, "model: expected a string"},
    {"embed", "{'model':'m'}", 400, "input: expected"},
    {"embed", "{'model':'m','input':[]}", 400, "input: expected"},
    {"embed", "{'model':'m','input':['a',7]}", 400, "input: expected texts"},
    {"embed", "{'model':'m','input':'a','dimensions':7}", 400, "dimensions: "},
    {"embed", "{'input':'a'}", 400, "model: expected"},
    {"chat", "[]", 400, "the body is not a JSON object"},
    {"generate", "{", 400, "the body is not valid JSON"},
    {"chat", "{'model':'m','messages':[{'role':'user','content':'fail 429'}]}", 429, "as asked"},
};

Test(ollama, refusals_name_what_is_wrong)
{
    for (size_t i = 0; i < ARRAY_SIZE(refusals); i++) {
        cleanup(json_decrefp) json_t *j = NULL;
        char path[64], *answer;
        const char *error;

        snprintf(path, sizeof(path), "/api/%s", refusals[i].path);
        cr_assert_eq(post(path, refusals[i].sent, &answer), refusals[i].status, "%s: %s", refusals[i].sent, answer);
        j = json_loads(body_of(answer), 0, NULL);
        error = json_string_value(json_object_get(j, "error"));
        cr_assert(error && strncmp(error, refusals[i].says, strlen(refusals[i].says)) == 0, "%s: %s",
            refusals[i].sent, error);
        cr_assert_eq(json_object_size(j), 1);
        free(answer);
    }
    cr_assert_eq(fake.started, 1);
}

/* ---- Answers ---- */

/* What differs from run to run is checked and taken out. */
static json_t *settled(json_t *line)
{
    static const char *const durations[] = {"total_duration", "load_duration", "prompt_eval_duration", "eval_duration"};

    cr_assert_eq(json_string_length(json_object_get(line, "created_at")), strlen("2026-01-01T00:00:00.000000Z"));
    json_object_del(line, "created_at");
    for (size_t i = 0; i < ARRAY_SIZE(durations); i++)
        if (json_object_get(line, durations[i]))
            json_object_set_new(line, durations[i], json_boolean(json_integer_value(json_object_get(line,
                durations[i])) > 0));
    return line;
}

#define ENDED(reason) \
    "'done':true,'done_reason':'" reason "','total_duration':true,'load_duration':false,'prompt_eval_count':5," \
    "'prompt_eval_duration':true,'eval_count':2,'eval_duration':true"
#define WORDS(text) "{'model':'m','done':false,'message':{'role':'assistant','content':'" text "'}}"
#define CALLED(i, id, name, arguments) \
    "{'model':'m','done':false,'message':{'role':'assistant','content':'','tool_calls':[" \
    USED(i, id, name, arguments) "]}}"
#define USED(i, id, name, arguments) \
    "{'id':'" id "','function':{'index':" i ",'name':'" name "','arguments':" arguments "}}"
#define LAST "{'model':'m'," ENDED("stop") ",'message':{'role':'assistant','content':''}}"

static const struct { const char *path, *sent, *lines[6]; } streams[] = {
    {"chat", "{'model':'m','messages':[{'role':'user','content':'hi'}]}", {WORDS("Hel\\\"l\\n"), WORDS("o ✓"), LAST}},
    {"generate", "{'model':'m:latest','prompt':'hi'}",
     {"{'model':'m','done':false,'response':'Hel\\\"l\\n'}", "{'model':'m','done':false,'response':'o ✓'}",
      "{'model':'m'," ENDED("stop") ",'response':''}"}},
    {"chat", "{'model':'m','messages':[{'role':'user','content':'calls'}]}",
     {WORDS("Wait."), CALLED("0", "call_a", "look", "{'at':'sky'}"), CALLED("1", "call_b", "stop", "{}"), LAST}},
    {"chat", "{'model':'m','messages':[{'role':'user','content':'cut'}]}",
     {WORDS("Hel\\\"l\\n"), "{'error':'the cloud\\u0027s answer broke off'}"}},
    {"chat", CHAT("{'role':'user','content':'calls'}"),
     {"{'model':'m'," ENDED("stop") ",'message':{'role':'assistant','content':'Wait.','tool_calls':["
      USED("0", "call_a", "look", "{'at':'sky'}") "," USED("1", "call_b", "stop", "{}") "]}}"}},
    {"generate", "{'model':'m','stream':false,'prompt':'hi'}", {"{'model':'m'," ENDED("stop") ","
     "'response':'Hel\\\"l\\no ✓'}"}},
    {"generate", "{'model':'tern-nano'}", {"{'model':'tern-nano','done':true,'done_reason':'load','response':''}"}},
    {"chat", "{'model':'main','messages':[]}",
     {"{'model':'main','done':true,'done_reason':'load','message':{'role':'assistant','content':''}}"}},
};

Test(ollama, lines_of_answers)
{
    for (size_t i = 0; i < ARRAY_SIZE(streams); i++) {
        char path[64], *answer, *rest, *line;
        size_t n = 0;
        bool stream;

        snprintf(path, sizeof(path), "/api/%s", streams[i].path);
        cr_assert_eq(post(path, streams[i].sent, &answer), 200, "%s", answer);
        stream = strcmp(header_of(answer, "Content-Type"), "application/x-ndjson") == 0;
        rest = stream ? dechunk(answer) : (char *)body_of(answer);
        for (; (line = strsep(&rest, "\n")) && *line; n++) {
            json_t *got = json_loads(line, 0, NULL);

            cr_assert_not_null(streams[i].lines[n], "%s: %s", streams[i].sent, line);
            if (!json_object_get(got, "error"))
                got = settled(got);
            json_same(got, json_of(streams[i].lines[n]), streams[i].sent);
        }
        cr_assert_null(streams[i].lines[n], "%s: %zu lines", streams[i].sent, n);
        free(answer);
    }
}

Test(ollama, models)
{
    static const struct { const char *request; const char *has[4]; } asked[] = {
        {"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", {"Ollama is running"}},
        {"GET /api/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", {"{\"version\":\"" TERN_VERSION
         "\"}"}},
        {"GET /api/tags HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
         {"\"model\":\"tern-nano\"", "\"model\":\"auto\"", "\"name\":\"main\"", "\"remote_model\":\"big-model\""}},
        {"GET /api/ps HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", {"\"name\":\"tern-nano\"",
         "\"expires_at\""}},
    };
    char *answer;

    for (size_t i = 0; i < ARRAY_SIZE(asked); i++) {
        cr_assert_eq(exchange(asked[i].request, &answer), 200);
        for (size_t k = 0; k < ARRAY_SIZE(asked[i].has) && asked[i].has[k]; k++)
            cr_assert_not_null(strstr(body_of(answer), asked[i].has[k]), "%s in %s", asked[i].has[k], answer);
        free(answer);
    }
    cr_assert_eq(post("/api/show", "{'model':'tern-nano:latest'}", &answer), 200);
    cr_assert_not_null(strstr(body_of(answer), "\"capabilities\":[\"completion\""));
    free(answer);
    fake.engine_ready = false;
    cr_assert_eq(exchange("GET /api/ps HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", &answer), 200);
    cr_assert_str_eq(body_of(answer), "{\"models\":[]}");
    free(answer);
}
