/* Calls of tools and answers of a format: what the model is told, what it may say, and which channel it arrives on. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "engine/reply.h"
#include "tests/engine/process.h"
#include "tests/engine/vocab.h"

#define WEATHER "{'type':'function','function':{'name':'get_weather','description':'Now'," \
                "'parameters':{'type':'object'," \
                "'properties':{'city':{'type':'string'},'days':{'type':'integer','minimum':1,'maximum':9}}," \
                "'required':['city']}}}"
#define ALARM "{'type':'function','function':{'name':'set-alarm','parameters':{'type':'object','properties':{" \
              "'at':{'type':'string','format':'time'}},'required':['at'],'additionalProperties':false}}}"
#define TOOLS "'tools':[" WEATHER "," ALARM "]"
#define FORMAT "'response_format':{'type':'json_schema','json_schema':{'name':'n','strict':true,'schema':{" \
               "'type':'object','properties':{'name':{'enum':['get_weather','other']},'ok':{'type':'boolean'}}," \
               "'required':['name','ok']," \
               "'additionalProperties':false}}}"

/* A request of one message, or of `messages`; single quotes stand for double ones. */
static struct chat_request *request(const char *messages, const char *more)
{
    cleanup(freep) char *text = NULL;
    cleanup(json_decrefp) json_t *body = NULL;
    struct chat_request *r = NULL;
    struct err err = { "" };

    cr_assert_gt(asprintf(&text, "{'messages':%s%s%s}", messages ? messages : "[{'role':'user','content':'hi'}]",
                          *more ? "," : "", more), 0);
    for (char *p = text; (p = strchr(p, '\''));)
        *p = '"';
    body = json_parse(text, strlen(text), &err);
    cr_assert(body, "%s: %s", text, err.msg);
    cr_assert_eq(chat_request_from_json(&r, body, &err), 0, "%s: %s", text, err.msg);
    return r;
}

/* ---- what the model is told ---- */

static void expect_told(const char *messages, const char *more, const char *expected)
{
    cleanup(chat_request_freep) struct chat_request *r = request(messages, more);
    cleanup(json_decrefp) json_t *told = tools_messages(r);
    cleanup(freep) char *text = told ? json_dumps(told, JSON_COMPACT) : NULL;

    cr_assert(text);
    cr_expect_str_eq(text, expected);
}

Test(reply, told)
{
    static const char talk[] =
        "[{'role':'system','content':'Be brief.'},{'role':'user','content':'hi'},"
        "{'role':'assistant','content':null,'tool_calls':[{'id':'c1','type':'function',"
        "'function':{'name':'get_weather',"
        "'arguments':'{ \\'city\\' : \\'Bonn\\' }'}}]},{'role':'tool','tool_call_id':'c1','content':'{\\'c\\':21}'},"
        "{'role':'assistant','content':'It is 21.'},{'role':'tool','tool_call_id':'c9','content':'not JSON'}]";
    static const char after[] =
        "{\"role\":\"user\",\"content\":\"hi\"},"
        "{\"role\":\"assistant\",\"content\":\"{\\\"name\\\":\\\"get_weather\\\","
        "\\\"arguments\\\":{\\\"city\\\":\\\"Bonn\\\"}}\"},"
        "{\"role\":\"tool\",\"content\":\"{\\\"name\\\":\\\"get_weather\\\",\\\"result\\\":{\\\"c\\\":21}}\"},"
        "{\"role\":\"assistant\",\"content\":\"It is 21.\"},"
        "{\"role\":\"tool\",\"content\":\"{\\\"result\\\":\\\"not JSON\\\"}\"}]";
    char expected[2048];

    expect_told(NULL, "", "[{\"role\":\"user\",\"content\":\"hi\"}]");
    expect_told(NULL, "'tool_choice':'none'," TOOLS, "[{\"role\":\"user\",\"content\":\"hi\"}]");
    expect_told(NULL, "'tool_choice':'required','tools':[" ALARM "]",
                "[{\"role\":\"system\",\"content\":\"You can call these functions. To call one,"
                " answer with one JSON object and "
                "nothing else: {\\\"name\\\":…,\\\"arguments\\\":{…}}\\n{\\\"name\\\":\\\"set-alarm\\\","
                "\\\"parameters\\\":{\\\"type\\\":"
                "\\\"object\\\",\\\"properties\\\":{\\\"at\\\":{\\\"type\\\":\\\"string\\\","
                "\\\"format\\\":\\\"time\\\"}},"
                "\\\"required\\\":[\\\"at\\\"],\\\"additionalProperties\\\":false}}\\nCall one of them now.\\n\"},"
                "{\"role\":\"user\",\"content\":\"hi\"}]");
    snprintf(expected, sizeof(expected), "[{\"role\":\"system\",\"content\":\"Be brief.\"},%s", after);
    expect_told(talk, "", expected);
    snprintf(expected, sizeof(expected),
             "[{\"role\":\"system\",\"content\":\"Be brief.\\n\\nAnswer with one JSON object.\\n\"},%s", after);
    expect_told(talk, "'response_format':{'type':'json_object'}", expected);
}

/* ---- what it may say ---- */

struct heard { char text[512], name[80], arguments[512]; unsigned n_names; int over; enum engine_finish finish; };

static struct tokenizer *tokenizer;
static struct lexicon *lexicon;
static struct model *model;

static void setup(void)
{
    struct err err = { "" };
    char path[4096];

    snprintf(path, sizeof(path), "%s/models/tern-nano.gguf", getenv("TERN_SOURCE") ?: ".");
    cr_assert_eq(model_open(&model, path, NULL, &err), 0, "%s", err.msg);
    tokenizer = model->tokenizer;
    cr_assert_eq(lexicon_new(&lexicon, tokenizer), 0);
}

static void teardown(void)
{
    lexicon_free(lexicon);
    model_free(model);
}

static void hear(struct heard *h, enum answer_channel channel, const struct buf *text)
{
    char *to = channel == ANSWER_TEXT ? h->text : channel == ANSWER_TOOL_NAME ? h->name : h->arguments;

    if (!text->len)
        return;
    strncat(to, (char *)text->data, 500 - strlen(to));
    h->n_names += channel == ANSWER_TOOL_NAME;
}

/* Say the text in the tokens it is cut into, or in bytes; false: a token was not allowed. */
static bool say(struct heard *h, const char *more, const char *says, bool bytes, bool end)
{
    cleanup(chat_request_freep) struct chat_request *r = request(NULL, more);
    cleanup(tokens_done) struct tokens ids = { 0 };
    cleanup(freep) char *text = strdup(says);
    cleanup(buf_done) struct buf shown;
    struct reply *a = NULL;
    struct err err = { "" };
    enum answer_channel channel;
    bool allowed = true;

    for (char *p = text; (p = strchr(p, '\''));)
        *p = '"';
    *h = (struct heard){ .over = 0 };
    buf_init(&shown, 4096);
    cr_assert_eq(reply_new(&a, r, lexicon, &err), 0, "%s", err.msg);
    for (size_t i = 0; text[i]; i += bytes ? 1 : strlen(text))
        cr_assert_eq(tokenizer_encode(tokenizer, text + i, bytes ? 1 : strlen(text), false, &ids), 0);
    for (size_t i = 0; i < ids.len && allowed && !h->over; i++) {
        const uint64_t *set;
        int held = reply_allowed(a, 4000, &set);

        cr_assert_geq(held, 0);
        allowed = !held || set[ids.ids[i] / 64] >> ids.ids[i] % 64 & 1;
        buf_clear(&shown);
        if (allowed)
            h->over = reply_push(a, ids.ids[i], &shown, &channel);
        else
            cr_expect_lt(reply_push(a, ids.ids[i], &shown, &channel), held ? 0 : 2);
        cr_assert(!allowed || h->over >= 0);
        hear(h, channel, &shown);
        cr_expect(h->over == 0 || i == ids.len - 1 || !allowed, "over at %zu of %zu", i, ids.len);
    }
    if (end && allowed && !h->over) {
        buf_clear(&shown);
        cr_assert_eq(reply_flush(a, &shown, &channel), 0);
        hear(h, channel, &shown);
        h->finish = reply_finish(a, true);
    } else {
        h->finish = reply_finish(a, h->over);
    }
    reply_free(a);
    return allowed;
}

static void expect_call(const char *more, const char *says, const char *name, const char *arguments)
{
    struct heard h;

    for (int bytes = 0; bytes < 2; bytes++) {
        cr_expect(say(&h, more, says, bytes, false), "%s", says);
        cr_expect(h.over == 1 && h.finish == FINISH_TOOL_CALLS && h.n_names == 1, "%d %d %u: %s", h.over, h.finish,
            h.n_names, says);
        cr_expect_str_eq(h.name, name);
        cr_expect_str_eq(h.arguments, arguments);
        cr_expect_str_eq(h.text, "");
    }
}

static void expect_words(const char *more, const char *says, const char *text)
{
    struct heard h;

    for (int bytes = 0; bytes < 2; bytes++) {
        cr_expect(say(&h, more, says, bytes, true), "%s", says);
        cr_expect(h.finish == FINISH_STOP && h.n_names == 0, "%s", says);
        cr_expect_str_eq(h.text, text);
        cr_expect_str_eq(h.arguments, "");
    }
}

static void expect_no(const char *more, const char *says)
{
    struct heard h;

    cr_expect(!say(&h, more, says, true, false) || h.finish == FINISH_LENGTH, "%s may say %s", more, says);
}

Test(reply, calls, .init = setup, .fini = teardown)
{
    static const char *const choices[] = { TOOLS, TOOLS ",'tool_choice':'required'", TOOLS "," FORMAT,
        TOOLS ",'tool_choice':{'type':'function','function':{'name':'get_weather'}}", TOOLS ",'stop':['city']" };

    for (size_t i = 0; i < ARRAY_SIZE(choices); i++) {
        expect_call(choices[i], "{'name':'get_weather','arguments':{'city':'B}\\\\{'}}", "get_weather",
            "{\"city\":\"B}\\\\{\"}");
        expect_call(choices[i], "{'name':'get_weather','arguments':{'city':'\xc3\xbc','days':3}}", "get_weather",
                    "{\"city\":\"\xc3\xbc\",\"days\":3}");
        expect_no(choices[i], "{'name':'get_weather','arguments':{}}");
        expect_no(choices[i], "{'name':'get_weather','arguments':{'city':'B','days':0}}");
        expect_no(choices[i], "{'name':'unknown','arguments':{}}");
        expect_no(choices[i], "{'arguments':{}}");
        expect_no(choices[i], "{'name':'get_weather','arguments':{'city':'Bo");
        if (i != 3)
            expect_call(choices[i], "{'name':'set-alarm','arguments':{'at':'07:30:00Z'}}", "set-alarm",
                "{\"at\":\"07:30:00Z\"}");
        else
            expect_no(choices[i], "{'name':'set-alarm','arguments':{'at':'07:30:00Z'}}");
    }
    expect_call(TOOLS, " \n{'name':'get_weather','arguments':{'city':''}}", "get_weather", "{\"city\":\"\"}");
    expect_no(choices[1], "It is");
    expect_no(choices[1], " {'name'");
}

Test(reply, words, .init = setup, .fini = teardown)
{
    expect_words(TOOLS, "It is {warm}.", "It is {warm}.");
    expect_words(TOOLS, "  [1]", "  [1]");
    expect_words(TOOLS, "\n", "\n");
    expect_words(TOOLS ",'stop':['warm']", "It is warm", "It is ");
    expect_words("'tool_choice':'none'," TOOLS, "{'a':1}", "{\"a\":1}");
    expect_words("", "{'a' : 1}", "{\"a\" : 1}");
    expect_words("'response_format':{'type':'json_object'}", "{'a':[1,{}]}", "{\"a\":[1,{}]}");
    expect_words("'response_format':{'type':'json_object'},'stop':['1']", "{'a':[1,{}]}", "{\"a\":[1,{}]}");
    expect_no("'response_format':{'type':'json_object'}", "[1]");
    expect_no("'response_format':{'type':'json_object'}", " {");
    expect_words(FORMAT, "{'name':'other','ok':true}", "{\"name\":\"other\",\"ok\":true}");
    /* Which it is shows only behind the name. */
    expect_words(TOOLS "," FORMAT, "{'name':'get_weather','ok':false}", "{\"name\":\"get_weather\",\"ok\":false}");
    expect_words(TOOLS "," FORMAT, "{'name':'other','ok':true}", "{\"name\":\"other\",\"ok\":true}");
    expect_no(TOOLS "," FORMAT, "It is");
}

/* With many tokens that begin with a brace: only those that open a call may be first, and all that are words. */
Test(reply, first_token)
{
    static const char call[] = "{\"name\":\"";
    cleanup(chat_request_freep) struct chat_request *r = request(NULL, TOOLS);
    struct tokenizer *t = vocab_llama3(true, NULL);
    struct reply *a = NULL;
    struct err err = { "" };
    const uint64_t *set;
    size_t opens = 0, kept_out = 0;

    if (!t)
        cr_skip_test("no Llama 3 vocabulary under $TERN_SHARED");
    cr_assert_eq(lexicon_new(&lexicon, t), 0);
    cr_assert_eq(reply_new(&a, r, lexicon, &err), 0, "%s", err.msg);
    cr_assert_eq(reply_allowed(a, 4000, &set), 1);
    for (size_t i = 0; i < lexicon->n; i++) {
        size_t len, blank = 0, n;
        const char *s = tokenizer_piece(t, (int32_t)i, &len);
        bool brace, expected;

        while (blank < len && s[blank] && strchr(" \t\r\n", s[blank]))
            blank++;
        brace = blank < len && s[blank] == '{';
        n = len - blank;
        expected = !brace || (n <= sizeof(call) - 1 && memcmp(s + blank, call, n) == 0);
        cr_expect_eq((bool)(set[i / 64] >> i % 64 & 1), expected, "%.*s", (int)len, s);
        opens += brace && expected;
        kept_out += !expected;
    }
    cr_expect(opens > 3 && kept_out > 20, "%zu %zu", opens, kept_out);
    reply_free(a);
    lexicon_free(lexicon);
    tokenizer_free(t);
}

Test(reply, checked)
{
    static const struct { const char *more, *words; } cases[] = {
        { TOOLS, NULL },
        { FORMAT, NULL },
        { "'tools':[{'type':'function','function':{'name':'f'}}]", NULL },
        { "'tools':[{'type':'function','function':{'name':'f','parameters':{}}}]", NULL },
        { "'tools':[" ALARM ",{'type':'function','function':{'name':'f','parameters':{'type':'object','properties':{"
          "'x':{'oneOf':[]}}}}}]", "tools[1].function.parameters/properties/x/oneOf: not supported" },
        { "'tool_choice':'none','tools':[{'type':'function','function':{'name':'f','parameters':{'not':{}}}}]", NULL },
        { "'tools':[{'type':'function','function':{'name':'f','parameters':{'type':'string'}}}]",
          "tools[0].function.parameters: expected a schema of objects" },
        { "'tools':[{'type':'function','function':{'name':'f','parameters':{'type':'object',"
         "'properties':{'a':{'$ref':'#'}},"
          "'required':['a']}}}]", "nothing that can be written" },
        { "'response_format':{'type':'json_schema','json_schema':{'name':'n','schema':{'not':{}}}}",
          "response_format.json_schema.schema/not: not supported" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        cleanup(chat_request_freep) struct chat_request *r = request(NULL, cases[i].more);
        struct err err = { "" };

        cr_expect_eq(engine_answer_check(r, &err), cases[i].words ? -EINVAL : 0, "%s: %s", cases[i].more, err.msg);
        cr_expect(!cases[i].words || strstr(err.msg, cases[i].words), "%s: %s", cases[i].more, err.msg);
    }
}

/* ---- the whole engine ---- */

static char *doubled(const char *text)
{
    char *s = strdup(text);

    for (char *p = s; (p = strchr(p, '\''));)
        *p = '"';
    return s;
}

static struct answer ask_for(struct engine *e, const char *more)
{
    cleanup(freep) char *s = doubled(more);

    return ask(e, "how is the weather", s);
}

Test(reply, engine)
{
    struct engine_config cfg = config(2, 0);
    struct engine e = engine_start(&cfg);
    size_t plain;
    struct answer a;

    expect_ready(&e);
    plain = ask_for(&e, "").end.n_prompt;
    a = ask_for(&e, ",'tool_choice':'none'," TOOLS);
    cr_expect_eq(a.end.n_prompt, plain);
    a = ask_for(&e, ",'tools':[" WEATHER "]");
    cr_expect_gt(a.end.n_prompt, plain + 30);
    cr_expect(a.end.finish == FINISH_TOOL_CALLS || (a.end.finish != FINISH_ERROR && !*a.arguments));
    for (int seed = 0; seed < 20; seed++) {
        cleanup(json_decrefp) json_t *j = NULL;
        char more[1200];

        /* Few tokens, so that many a call is closed at the last moment. */
        snprintf(more, sizeof(more), ",'tools':[" WEATHER "],'tool_choice':'required','temperature':1,'seed':%d,"
         "'max_tokens':%d",
                 seed, 32 + seed);
        a = ask_for(&e, more);
        cr_expect_eq(a.end.finish, FINISH_TOOL_CALLS, "%d: %s %s", a.end.finish, a.name, a.arguments);
        cr_expect_str_eq(a.name, "get_weather");
        cr_expect_str_eq(a.text, "");
        cr_expect_eq(a.end.n_tokens, a.n);
        j = json_loads(a.arguments, 0, NULL);
        cr_expect(j && json_is_string(json_object_get(j, "city")), "%s", a.arguments);
        snprintf(more, sizeof(more), "," FORMAT ",'temperature':1,'seed':%d,'max_tokens':40", seed);
        a = ask_for(&e, more);
        cr_expect(a.end.finish == FINISH_STOP && strstr(a.text, "\"ok\":") && a.text[strlen(a.text) - 1] == '}',
            "%s", a.text);
    }
    a = ask_for(&e, ",'response_format':{'type':'json_object'},'max_tokens':2");
    cr_expect(a.end.finish == FINISH_STOP && !strcmp(a.text, "{}"), "%d %s", a.end.finish, a.text);
    a = ask_for(&e, "," FORMAT ",'max_tokens':2");
    cr_expect_eq(a.end.finish, FINISH_LENGTH);
    a = ask_for(&e, ",'response_format':{'type':'json_schema','json_schema':{'name':'n','schema':{'not':{}}}}");
    cr_expect(a.refused && !strcmp(a.code, ENGINE_E_INVALID) && strstr(a.message, "/not: not supported"), "%s",
        a.message);
    a = ask_for(&e, "");
    cr_expect_eq(a.end.finish, FINISH_STOP);
    engine_stop(&e);
}
