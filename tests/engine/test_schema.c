/* What of JSON Schema is understood, what is refused and in which words, and which documents a schema lets pass. */
#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <string.h>
#include <time.h>

#include "tests/engine/schemas.h"

static json_t *parse(const char *text)
{
    struct err err = { "" };
    json_t *j = json_parse(text, strlen(text), &err);

    cr_assert(j, "%s: %s", text, err.msg);
    return j;
}

/* Single quotes stand for double ones. */
static char *quoted(const char *text)
{
    char *s = strdup(text);

    for (char *p = s; (p = strchr(p, '\''));)
        *p = '"';
    return s;
}

struct reading_case { const char *schema, *yes[8], *no[12]; };

Test(schema, documents)
{
    static const struct reading_case cases[] = {
        { "{'type':'null'}", { "null" }, { "nul", "nulll", " null", "" } },
        { "{'type':'boolean'}", { "true", "false" }, { "True", "tru", "1" } },
        { "{'type':['boolean','null']}", { "true", "false", "null" }, { "0", "''" } },
        { "{'const':'a\\\"b'}", { "'a\\\"b'" }, { "'a'b'", "'a\\\"'" } },
        { "{'enum':[1,12,'x',null,{'a':[]}]}",
          { "1", "12", "'x'", "null", "{'a':[]}" },
          { "2", "123", "'xx'", "{'a':[1]}" } },
        { "{'type':'string','enum':['a',1,'ab']}", { "'a'", "'ab'" }, { "1", "'abc'", "'" } },
        { "{'type':'string'}", { "''", "'a b'", "'\\n\\u00e9\\ud7ff\\\\'", "'\xc3\xa9\xf0\x9f\x99\x82'", "'\x7f'" },
          { "a", "'", "'\n'", "'\\x'", "'\\u0000'", "'\\ud83d\\ude42'", "'\xc3'", "'\xff'", "'\xed\xa0\x80'", "'\xc0\x80'",
            "'a'b'" } },
        { "{'type':'string','minLength':2,'maxLength':3}", { "'ab'", "'abc'", "'\xc3\xa9\xc3\xa9'", "'\\u00e9\\n'" },
          { "'a'", "'abcd'", "''", "'\xc3\xa9'" } },
        { "{'type':'string','pattern':'^[a-c]+$'}", { "'abc'", "'a'" }, { "''", "'abd'", "'\\u0061'" } },
        { "{'type':'string','pattern':'b'}", { "'b'", "'abc'", "'\\nb\\\"'" }, { "''", "'ac'" } },
        { "{'type':'string','pattern':'^(?:a|bc){2,3}?$'}",
          { "'aa'", "'bca'", "'aabc'" },
          { "'a'", "'aaaa'", "'bb'" } },
        { "{'type':'string','pattern':'^a.c$|^\\\\d{3}$'}",
          { "'abc'", "'a\xc3\xa9" "c'", "'123'" },
          { "'ac'", "'a\\nc'", "'12'" } },
        { "{'type':'string','pattern':'^[^a-y]$'}",
          { "'z'", "'\\\"'", "'\\\\'", "'\xe2\x82\xac'" },
          { "'b'", "'\\/'b" } },
        { "{'type':'string','pattern':'^a*$','minLength':2,'maxLength':4}",
          { "'aa'", "'aaaa'" },
          { "'a'", "'aaaaa'" } },
        { "{'type':'string','pattern':'^[\xc3\xa0-\xc3\xaf]{2}$'}",
          { "'\xc3\xa9\xc3\xa0'" },
          { "'\xc3\xb0\xc3\xa0'", "'ab'" } },
        { "{'type':'string','format':'date'}",
          { "'2024-02-29'", "'1999-12-31'" },
          { "'2023-02-29'", "'2023-13-01'", "'2023-04-31'" } },
        { "{'type':'string','format':'date-time'}",
          { "'2024-02-29T23:59:59.5+01:00'", "'1999-12-31T00:00:00Z'" },
          { "'2024-02-29'" } },
        { "{'type':'string','format':'time'}", { "'23:59:59Z'" }, { "'24:00:00Z'", "'23:59:59'" } },
        { "{'type':'string','format':'duration'}",
          { "'P3Y6M4DT12H30M5S'", "'PT5M'", "'P2W'", "'P1D'" },
          { "'P'", "'PT'", "'P1DT'" } },
        { "{'type':'string','format':'email'}", { "'a.b@example.org'" }, { "'a'", "'@b.cc'", "'a@b'" } },
        { "{'type':'string','format':'hostname'}", { "'a-b.example'" }, { "'-a'", "'a..b'" } },
        { "{'type':'string','format':'ipv4'}", { "'0.255.10.99'" }, { "'256.1.1.1'", "'1.1.1'", "'01.1.1.1'" } },
        { "{'type':'string','format':'ipv6'}",
          { "'::'", "'::1'", "'fe80::1'", "'1:2:3:4:5:6:7:8'" },
          { "'1::2::3'", "':1'", "'1:2'" } },
        { "{'type':'string','format':'uuid'}", { "'01234567-89ab-4def-8123-456789abcdef'" }, { "'0123'" } },
        { "{'type':'integer'}",
          { "0", "-1", "123456789012345" },
          { "00", "-0", "1.0", "1e3", "+1", "-" , "1234567890123456789" } },
        { "{'type':'number'}",
          { "0", "-0.5", "1.25", "123456789.123456" },
          { "-0", "1.", ".5", "1e3", "-0.0", "1.1234567" } },
        { "{'type':'integer','minimum':7,'maximum':112}",
          { "7", "9", "10", "99", "112" },
          { "6", "113", "-7", "0", "1120" } },
        { "{'type':'integer','exclusiveMinimum':-3,'maximum':1}", { "-2", "-1", "0", "1" }, { "-3", "2", "10" } },
        { "{'type':'integer','multipleOf':7,'minimum':50,'maximum':60}", { "56" }, { "5", "55", "50", "6" } },
        { "{'type':'integer','multipleOf':0.5,'minimum':0.5,'maximum':2}", { "1", "2" }, { "0", "3" } },
        { "{'type':'number','minimum':0,'maximum':1}",
          { "0", "1", "0.5", "1.0", "0.000001" },
          { "1.1", "-0.1", "2", "1.000001" } },
        { "{'type':'number','multipleOf':0.25,'exclusiveMaximum':1,'minimum':0.1}",
          { "0.25", "0.5", "0.750" },
          { "0.1", "1", "0.3", "0" } },
        { "{'type':'number','minimum':1e-9,'maximum':2e-9}",
          { "0.000000001", "0.0000000015" },
          { "0.000000003", "0", "1" } },
        { "{'type':'number','exclusiveMinimum':0.1}", { "0.100001", "0.2", "5" }, { "0.1", "0", "0.05", "0.10" } },
        { "{'type':'integer','minimum':9007199254740991}", { "9007199254740993" }, { "1" } },
        { "{'type':'array','items':{'type':'integer'},'minItems':1,'maxItems':2}",
          { "[1]", "[1,23]" },
          { "[]", "[1,2,3]", "[1,]", "[,1]", "[1 ]" } },
        { "{'type':'array','items':{'type':'null'},'maxItems':0}", { "[]" }, { "[null]" } },
        { "{'type':'array','items':{'type':'null'},'minItems':3}",
          { "[null,null,null]", "[null,null,null,null,null]" },
          { "[null,null]" } },
        { "{'type':'object','properties':{'a':{'type':'integer'},'b':{'type':'null'}},'required':['a','b'],"
          "'additionalProperties':false}",
          { "{'a':1,'b':null}" },
          { "{}", "{'a':1}", "{'b':null,'a':1}", "{'a':1,'b':null,'c':1}", "{'a': 1,'b':null}", "{,'a':1,'b':null}" } },
        { "{'type':'object','properties':{'a':{'type':'integer'},'b':{'type':'null'},'c':{'type':'null'}},"
          "'required':['b']}",
          { "{'b':null}", "{'a':1,'b':null}", "{'a':10,'b':null,'c':null}", "{'b':null,'c':null}" },
          { "{}", "{'a':1}", "{'c':null}", "{'b':null,}" } },
        { "{'type':'object','properties':{'a':{'type':'integer'}}}", { "{}", "{'a':5}" }, { "{'b':5}" } },
        { "{'type':'object','properties':{}}", { "{}" }, { "{'a':1}" } },
        { "{'type':'object'}",
          { "{}", "{'a':1,'':[{},[],'x',true,null,-1.5]}" },
          { "[]", "{'a'}", "{'a':}", "{1:2}" } },
        { "{'type':'object','additionalProperties':{'type':'integer'}}", { "{}", "{'x':1,'y':2}" }, { "{'x':'y'}" } },
        { "{}", { "1", "'a'", "[[]]", "{'a':{}}", "null" }, { "", "[1,]", "nul" } },
        { "{'anyOf':[{'type':'integer'},{'type':'string'}]}", { "1", "'a'" }, { "null", "1'a'" } },
        { "{'anyOf':[{'const':1},{'type':'integer'},{'const':123}]}", { "1", "12", "123" }, { "x" } },
        { "{'anyOf':[{'type':'object','properties':{'k':{'const':'a'},'x':{'type':'null'}},'required':['k','x']},"
          "{'type':'object','properties':{'k':{'const':'b'}},'required':['k']}]}",
          { "{'k':'a','x':null}", "{'k':'b'}" }, { "{'k':'a'}", "{'k':'b','x':null}", "{'k':'c'}" } },
        { "{'$ref':'#/$defs/a~1b','$defs':{'a/b':{'type':'null'}}}", { "null" }, { "1" } },
        { "{'type':'object','properties':{'v':{'type':'integer'},'next':{'anyOf':[{'$ref':'#'},{'type':'null'}]}},"
          "'required':['v','next']}",
          { "{'v':1,'next':null}", "{'v':1,'next':{'v':2,'next':null}}" }, { "{'v':1}", "{'v':1,'next':{}}" } },
        { "{'$ref':'#/$defs/t','$defs':{'t':{'anyOf':[{'$ref':'#/$defs/t'},{'type':'array',"
          "'items':{'$ref':'#/$defs/t'}}]}}}",
          { "[]", "[[],[[]]]" }, { "[1]", "[" } },
        { "{'allOf':[{'type':'null'}],'description':'d'}", { "null" }, { "1" } },
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        cleanup(freep) char *text = quoted(cases[i].schema);
        cleanup(json_decrefp) json_t *schema = parse(text);
        cleanup(grammar_freep) struct grammar *g = NULL;
        struct err err = { "" };

        cr_expect_eq(schema_compile(&g, schema, NULL, &err), 0, "%s: %s", text, err.msg);
        for (size_t k = 0; g && k < ARRAY_SIZE(cases[i].yes) && cases[i].yes[k]; k++) {
            cleanup(freep) char *s = quoted(cases[i].yes[k]);
            cr_expect_eq(schema_reads(g, s, strlen(s)), 1, "%s refuses %s", text, s);
        }
        for (size_t k = 0; g && k < ARRAY_SIZE(cases[i].no) && cases[i].no[k]; k++) {
            cleanup(freep) char *s = quoted(cases[i].no[k]);
            cr_expect_neq(schema_reads(g, s, strlen(s)), 1, "%s takes %s", text, s);
        }
    }
}

Test(schema, refused)
{
    static const struct { const char *schema, *words; } cases[] = {
        { "[]", "schema: expected a schema" },
        { "false", "schema: false allows nothing" },
        { "{'type':'object','properties':{'a':{'oneOf':[]}}}", "schema/properties/a/oneOf: not supported" },
        { "{'type':'array','items':{'anyOf':[{},{'not':{}}]}}", "schema/items/anyOf/1/not: not supported" },
        { "{'type':'array','items':[{}]}", "schema/items: expected a schema" },
        { "{'type':'array','prefixItems':[{}]}", "schema/prefixItems: not supported" },
        { "{'type':'array','uniqueItems':true}", "schema/uniqueItems: not supported" },
        { "{'type':'array','minItems':2,'maxItems':1}", "schema/maxItems: less than" },
        { "{'type':'array','minItems':-1}", "schema/minItems: expected an integer" },
        { "{'type':'array','minItems':1.5}", "schema/minItems: expected an integer" },
        { "{'type':'frob'}", "schema/type: expected object" },
        { "{'type':[]}", "schema/type: expected at least one" },
        { "{'type':'object','patternProperties':{}}", "schema/patternProperties: not supported" },
        { "{'type':'object','properties':[]}", "schema/properties: expected an object" },
        { "{'type':'object','properties':{'a':{}},'required':['b']}", "schema/required: names what" },
        { "{'type':'object','properties':{'a':{}},'required':'a'}", "schema/required: expected an array" },
        { "{'type':'object','additionalProperties':3}", "schema/additionalProperties: expected" },
        { "{'allOf':[{},{}]}", "schema/allOf: not supported with more than one" },
        { "{'anyOf':[]}", "schema/anyOf: expected" },
        { "{'anyOf':[{}],'minimum':3}", "schema/minimum: not supported beside anyOf" },
        { "{'$ref':'#/$defs/a'}", "schema/$ref: expected" },
        { "{'$ref':'http://example.org'}", "schema/$ref: expected" },
        { "{'$defs':{'a':{'if':{}}},'$ref':'#/$defs/a'}", "schema/#/$defs/a/if: not supported" },
        { "{'$ref':'#'}", "nothing that can be written satisfies it" },
        { "{'type':'object','properties':{'a':{'$ref':'#'}},'required':['a']}", "nothing that can be written" },
        { "{'type':'array','items':{'$ref':'#'},'minItems':1}", "nothing that can be written" },
        { "{'enum':[]}", "schema/enum: expected" },
        { "{'type':'string','enum':[1]}", "schema: no value is of the type" },
        { "{'type':'integer','minimum':3,'maximum':2}", "schema: no number" },
        { "{'type':'integer','minimum':8,'maximum':13,'multipleOf':7}", "schema: no number" },
        { "{'type':'integer','multipleOf':0}", "schema: multipleOf: expected" },
        { "{'type':'number','minimum':'x'}", "schema: minimum: expected a number" },
        { "{'type':'string','pattern':'('}", "schema/pattern: byte 2: expected )" },
        { "{'type':'string','pattern':'(?=a)'}", "schema/pattern: byte 2: lookarounds" },
        { "{'type':'string','pattern':'(a)\\\\1'}", "schema/pattern: byte 5: this escape" },
        { "{'type':'string','pattern':'a**'}", "schema/pattern: byte 3: a repetition" },
        { "{'type':'string','pattern':'\\\\p{L}'}", "schema/pattern: byte 2: this escape" },
        { "{'type':'string','pattern':'(^a|b)c'}", "schema/pattern: byte 2: ^ and $" },
        { "{'type':'string','pattern':'^[]$'}", "schema/pattern: no string matches" },
        { "{'type':'string','pattern':'^a{3}$','maxLength':2}", "schema/maxLength: no string matches" },
        { "{'type':'string','pattern':'^(((a{99}){99}){99}){99}$'}", "schema/pattern: too complicated" },
        { "{'type':'string','pattern':'^(a|b)*a(a|b){20}$'}", "schema/pattern: too complicated" },
        { "{'type':'string','format':'iri'}", "schema/format: this format is not supported" },
        { "{'type':'string','minLength':2000000}", "schema/minLength: expected an integer" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        cleanup(freep) char *text = quoted(cases[i].schema);
        cleanup(json_decrefp) json_t *schema = parse(text);
        struct err err = { "" };

        cr_expect_eq(engine_schema_check(schema, "schema", &err), -EINVAL, "%s", text);
        cr_expect(strstr(err.msg, cases[i].words), "%s: \"%s\", expected \"%s\"", text, err.msg, cases[i].words);
    }
}

/* A schema of `depth` arrays, then objects, around a null. */
static json_t *nested(unsigned depth)
{
    json_t *s = json_pack("{s:s}", "type", "null");

    for (unsigned i = 0; i < depth; i++)
        s = i % 2 ? json_pack("{s:s, s:o}", "type", "array", "items", s)
                  : json_pack("{s:s, s:{s:o}}", "type", "object", "properties", "a", s);
    return s;
}

static double slowest;            /* msec */

static void check(json_t *schema, int expected, const char *words)
{
    struct timespec a, b;
    struct err err = { "" };
    int r;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
    r = engine_schema_check(schema, "schema", &err);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
    cr_expect_eq(r, expected, "%s: %d %s", words, r, err.msg);
    if (expected < 0)
        cr_expect(strstr(err.msg, words), "\"%s\", expected \"%s\"", err.msg, words);
    json_decref(schema);
    if (getenv("TERN_VERBOSE"))
        printf("%s: %.1f ms\n", words, (double)(b.tv_sec - a.tv_sec) * 1e3 + (double)(b.tv_nsec - a.tv_nsec) / 1e6);
    slowest = fmax(slowest, (double)(b.tv_sec - a.tv_sec) * 1e3 + (double)(b.tv_nsec - a.tv_nsec) / 1e6);
}

/* OpenAI's limits, each met and passed; and schemas that would cost much if they were followed. */
Test(schema, limits)
{
    json_t *many = json_pack("{s:s, s:{}}", "type", "object", "properties");
    json_t *properties = json_object_get(many, "properties");
    json_t *values = json_array(), *alternatives = json_array(), *defs = json_object(), *deep = json_object();
    char name[64];

    check(nested(10), 0, "nested");
    check(nested(11), -EINVAL, "more than 10 objects and arrays");
    for (int i = 0; i < 5000; i++) {
        snprintf(name, sizeof(name), "p%d", i);
        json_object_set_new(properties, name, json_pack("{s:s}", "type", "integer"));
    }
    check(json_deep_copy(many), 0, "properties");
    json_object_set_new(properties, "one more", json_object());
    check(many, -EINVAL, "more than 5000 properties");
    for (int i = 0; i < 1000; i++)
        json_array_append_new(values, json_integer(i));
    check(json_pack("{s:O}", "enum", values), 0, "values");
    json_array_append_new(values, json_integer(1000));
    check(json_pack("{s:o}", "enum", values), -EINVAL, "more than 1000 values");

    /* Twice two to the sixtieth alternatives, all the same. */
    for (int i = 0; i < 60; i++) {
        char next[64];
        snprintf(name, sizeof(name), "d%d", i);
        snprintf(next, sizeof(next), "#/$defs/d%d", i + 1);
        json_object_set_new(defs, name, i == 59 ? json_pack("{s:s}", "type", "null")
                            : json_pack("{s:[{s:s},{s:s}]}", "anyOf", "$ref", next, "$ref", next));
    }
    check(json_pack("{s:O, s:s}", "$defs", defs, "$ref", "#/$defs/d0"), 0, "doubling");
    /* And as many nulls, all of which must be written. */
    for (int i = 0; i < 59; i++) {
        char next[64];
        snprintf(name, sizeof(name), "d%d", i);
        snprintf(next, sizeof(next), "#/$defs/d%d", i + 1);
        json_object_set_new(defs, name, json_pack("{s:s, s:{s:s}, s:i}", "type", "array", "items", "$ref", next,
                                                  "minItems", 2));
    }
    check(json_pack("{s:o, s:s}", "$defs", defs, "$ref", "#/$defs/d0"), -EINVAL, "nothing that can be written");
    /* Alternatives of every alternative. */
    for (int i = 0; i < 400; i++) {
        snprintf(name, sizeof(name), "#/$defs/d%d", i);
        json_array_append_new(alternatives, json_pack("{s:s}", "$ref", name));
    }
    for (int i = 0; i < 400; i++) {
        snprintf(name, sizeof(name), "d%d", i);
        json_object_set_new(deep, name, json_pack("{s:O}", "anyOf", alternatives));
    }
    json_object_set_new(deep, "d7", json_pack("{s:s}", "type", "null"));
    check(json_pack("{s:o, s:o}", "$defs", deep, "anyOf", alternatives), -EINVAL, "more than 20000 schemas");
    check(json_pack("{s:s, s:s}", "type", "string", "pattern", "^([^x]{1,99}y){9}$"), -EINVAL, "too complicated");
    check(json_pack("{s:s, s:s}", "type", "string", "pattern", "(a*)*(a|a)*(.*a){19}z"), -EINVAL, "too complicated");
    printf("the slowest took %.1f ms\n", slowest);
    cr_expect_lt(slowest, 500);     /* 40 on a machine that does nothing else, without sanitizers */
}
