/* OpenAI's Completions and Embeddings, /tokenize and /detokenize: what a request becomes, answers, refusals. */
#include <criterion/criterion.h>
#include <string.h>
#include "tests/daemon/fake.h"

static void start(void) { fake_start(NULL); }

TestSuite(tasks, .init = start, .fini = fake_stop, .timeout = 60);

#define TEXT "/v1/completions"
#define EMBED "/v1/embeddings"
#define HI "{'messages':[{'role':'user','content':'hi'}]"

static const struct { const char *path, *sent, *task; enum chat_task kind; } requests[] = {
    {TEXT, "{'prompt':'hi'}", HI "}", CHAT_ANSWER},
    {TEXT, "{'prompt':['hi'],'max_tokens':3,'n':1,'best_of':1,'echo':false,'suffix':null,'stop':'x','logprobs':null}",
     HI ",'max_tokens':3,'stop':['x']}", CHAT_ANSWER},
    {EMBED, "{'input':'hi','model':'m'}", "{'input':['hi']}", CHAT_EMBED},
    {EMBED, "{'input':['hi','there']}", "{'input':['hi','there']}", CHAT_EMBED},
    {EMBED, "{'input':[1,2]}", "{'input':[[1,2]]}", CHAT_EMBED},
    {EMBED, "{'input':[[1,2],'hi'],'encoding_format':'float','user':'u'}", "{'input':[[1,2],'hi']}", CHAT_EMBED},
    {"/tokenize", "{'content':'hi'}", "{'text':'hi','add_special':false}", CHAT_TOKENIZE},
    {"/tokenize", "{'prompt':'hi'}", "{'text':'hi','add_special':true}", CHAT_TOKENIZE},
    {"/tokenize", "{'content':'hi','add_special':true,'with_pieces':false}", "{'text':'hi',"
     "'add_special':true}", CHAT_TOKENIZE},
    {"/tokenize", "{'prompt':'hi','add_special_tokens':false}", "{'text':'hi','add_special':false}", CHAT_TOKENIZE},
    {"/tokenize", HI ",'stream':true}", HI "}", CHAT_TOKENIZE},
    {"/detokenize", "{'tokens':[5,7]}", "{'tokens':[5,7]}", CHAT_DETOKENIZE},
};

Test(tasks, requests)
{
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        cleanup(freep) char *answer = NULL;

        cr_assert_eq(post(requests[i].path, requests[i].sent, &answer), 200, "%s: %s", requests[i].sent, answer);
        json_same(json_incref(fake.chat), json_of(requests[i].task), requests[i].sent);
        cr_expect_eq(fake.task, requests[i].kind);
    }
}

static const struct { const char *path, *body, *param; } refused[] = {
    {TEXT, "{}", "prompt"},
    {TEXT, "{'prompt':['a','b']}", "prompt"},
    {TEXT, "{'prompt':[1,2]}", "prompt"},
    {TEXT, "{'prompt':'x','n':2}", "n"},
    {TEXT, "{'prompt':'x','best_of':2}", "best_of"},
    {TEXT, "{'prompt':'x','echo':true}", "echo"},
    {TEXT, "{'prompt':'x','suffix':'y'}", "suffix"},
    {TEXT, "{'prompt':'x','logprobs':1}", "logprobs"},
    {TEXT, "{'prompt':'x','temperature':3}", "temperature"},
    {EMBED, "{}", "input"},
    {EMBED, "{'input':[]}", "input"},
    {EMBED, "{'input':{}}", "input"},
    {EMBED, "{'input':['a',5]}", "input"},
    {EMBED, "{'input':[['a']]}", "input"},
    {EMBED, "{'input':'a','dimensions':2}", "dimensions"},
    {EMBED, "{'input':'a','encoding_format':'hex'}", "encoding_format"},
    {EMBED, "{'input':'a','model':5}", "model"},
    {"/tokenize", "{}", "content"},
    {"/tokenize", "{'content':5}", "content"},
    {"/tokenize", "{'content':'a','add_special':1}", "add_special"},
    {"/tokenize", "{'content':'a','with_pieces':true}", "with_pieces"},
    {"/tokenize", "{'messages':[]}", "messages"},
    {"/detokenize", "{}", "tokens"},
    {"/detokenize", "{'tokens':'a'}", "tokens"},
};

Test(tasks, refused_by_name)
{
    for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
        cleanup(freep) char *answer = NULL;
        cleanup(json_decrefp) json_t *j = NULL;

        cr_expect_eq(post(refused[i].path, refused[i].body, &answer), 400, "%s", refused[i].body);
        j = json_loads(body_of(answer), 0, NULL);
        cr_expect_str_eq(json_string_value(json_object_get(json_object_get(j, "error"), "param")), refused[i].param,
                         "%s", answer);
    }
    cr_expect_eq(fake.started, 0);
}

static void whole(const char *path, const char *body, const char *wanted)
{
    cleanup(freep) char *answer = NULL;

    cr_assert_eq(post(path, body, &answer), 200, "%s", answer);
    json_same(json_loads(body_of(answer), 0, NULL), json_of(wanted), body);
}

#define EMBEDDING(at, vector) "{'object':'embedding','index':" at ",'embedding':" vector "}"
#define LIST(data) "{'object':'list','data':[" data "],'model':'tern-nano','usage':{'prompt_tokens':5," \
    "'total_tokens':5}}"

Test(tasks, answers)
{
    whole(TEXT, "{'prompt':'hi'}", "{'id':'cmpl-" FAKE_ID "','object':'text_completion','created':1700000000,"
          "'model':'tern-nano','system_fingerprint':'tern-" TERN_VERSION "','choices':[{'text':'Hel\\'l\\no ✓',"
          "'index':0,"
          "'logprobs':null,'finish_reason':'stop'}],'usage':{'prompt_tokens':5,'completion_tokens':2,'total_tokens':7,"
          "'prompt_tokens_details':{'cached_tokens':3}}}");
    whole(EMBED, "{'input':['a','b'],'encoding_format':'base64'}",
          LIST(EMBEDDING("0", "'mpkZP83MTD8='") "," EMBEDDING("1", "'AACAPwAAAAA='")));
    whole(EMBED, "{'input':['a','b']}",
          LIST(EMBEDDING("0", "[0.60000002384185791,0.80000001192092896]") "," EMBEDDING("1", "[1.0,0.0]")));
    whole("/tokenize", "{'content':'hi'}", "{'tokens':[7,2045,0,1,5],'count':5}");
    whole("/detokenize", "{'tokens':[7]}", "{'content':'Hel\\'l\\no ✓','prompt':'Hel\\'l\\no ✓'}");
}

#define CHUNK(text, finish, usage) "data: {\"id\":\"cmpl-" FAKE_ID "\",\"object\":\"text_completion\"," \
    "\"created\":1700000000," \
    "\"model\":\"tern-nano\",\"system_fingerprint\":\"tern-" TERN_VERSION "\",\"choices\":[{\"text\":\"" text "\"," \
    "\"index\":0," \
    "\"logprobs\":null,\"finish_reason\":" finish "}]" usage "}\n\n"

Test(tasks, stream_of_text)
{
    cleanup(freep) char *answer = NULL;

    cr_assert_eq(post(TEXT, "{'prompt':'hi','stream':true}", &answer), 200);
    cr_expect_str_eq(dechunk(answer), CHUNK("Hel\\\"l\\n", "null", "") CHUNK("o "
        "✓", "null", "") CHUNK("", "\"stop\"", "")
                     "data: [DONE]\n\n");
}
