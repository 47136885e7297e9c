/* The sentences that `ternctl why` prints, for a handful of lives a request can have. */
#include <criterion/criterion.h>
#include <string.h>
#include "policy/policy.h"

static json_t *parse(const char *text)
{
    json_error_t e;
    json_t *j = json_loads(text, JSON_DECODE_ANY, &e);

    cr_assert(j, "%s at %d", e.text, e.position);
    return j;
}

/* The sentences of a row written with ' for ". */
static void expect(const char *row, const char *const *lines, size_t n)
{
    char *text = strdup(row);
    json_t *j, *told;

    for (char *p = text; (p = strchr(p, '\'')); p++)
        *p = '"';
    j = parse(text);
    told = policy_explain(j);
    for (size_t i = 0; i < MAX(n, json_array_size(told)); i++) {
        const char *got = json_string_value(json_array_get(told, i));
        cr_assert(i < n && got && strcmp(got, lines[i]) == 0, "line %zu:\n%s\n%s", i, got, i < n ? lines[i] : "(none)");
    }
    json_decref(told);
    json_decref(j);
    free(text);
}
#define EXPECT(row, ...) do { \
    static const char *const lines[] = { __VA_ARGS__ }; \
    expect(row, lines, ARRAY_SIZE(lines)); } while (0)

Test(explain, kept_by_its_label)
{
    EXPECT("{'request':{'time':'2026-11-22T17:30:27.123456Z','dialect':'openai-chat','key':'default','label':'private',"
           "  'label_source':'default','model_asked':'auto'},"
           " 'decisions':[{'stage':'before','route':'local','reason':'label-keeps-local','degraded':0,'score':null,"
           "  'candidates':[{'route':'local'},{'route':'cloud','endpoint':'work','rejected':'label'}]},"
           "  {'stage':'end','route':'local','reason':'confident','degraded':0,'score':0.97,'threshold':0.6,"
           "  'candidates':[{'route':'local'},{'route':'cloud','endpoint':'work','rejected':'label'}]}],"
           " 'attempts':[{'tier':'local','model':'tern-nano','result':'ok','tokens_in':10,'tokens_out':8,"
           "  'duration_ms':250.0}],"
           " 'egress':[],'outcome':{'outcome':'ok','latency_ms':260.0,'confidence':0.97,'cost_microusd':0}}",
           "Asked at 2026-11-22 17:30:27 UTC through the OpenAI API by key 'default' for the model 'auto'; "
           "labelled private "
           "because nothing labelled it and default_label = private.",
           "Kept on the device: no configured endpoint may receive private data. To let unlabelled requests "
           "escalate, set "
           "[policy] default_label = internal and [cloud work] labels = public, internal.",
           "The local answer was kept: the local model was sure enough of its answer. P(right) 0.97 against the "
           "threshold "
           "0.60. Passed over: work (may not receive data with this label).",
           "The local model tern-nano answered after 0.250 s, 10 tokens in, 8 out.",
           "Nothing left the device.",
           "The answer was delivered after 0.260 s; P(right) 0.97.");
}

Test(explain, escalated)
{
    EXPECT("{'request':{'label':'internal','label_source':'header'},"
           " 'decisions':[{'stage':'end','route':'cloud','endpoint':'work','model':'big','reason':'unsure-end',"
           "  'score':0.31,'threshold':0.6,'degraded':0,'candidates':[{'route':'local','rejected':'score'},"
           "  {'route':'cloud','endpoint':'work'}]}],"
           " 'attempts':[{'tier':'local','model':'tern-nano','result':'abandoned','tokens_in':10,'tokens_out':8},"
           "  {'tier':'cloud','endpoint':'work','model':'big','result':'ok','http_status':200,'tokens_in':12,"
           "'tokens_out':90}],"
           " 'egress':[{'endpoint':'work','host':'api.example.com:443','region':'eu','label':'internal','bytes':340,"
           "  'redactions':0}],"
           " 'outcome':{'outcome':'ok','cost_microusd':2000123}}",
           "Asked; labelled internal because the request said so.",
           "Escalated to work (model big): the local model was unsure of its finished answer,"
           " so it was not used. P(right) 0.31 "
           "against the threshold 0.60. Passed over: the local model (the score chose another route).",
           "The local model tern-nano was abandoned, 10 tokens in, 8 out.",
           "The cloud endpoint work (model big) answered with HTTP status 200, 12 tokens in, 90 out.",
           "340 bytes left the device to api.example.com:443 (region eu), labelled internal.",
           "The answer was delivered; cost 2.000123 USD.");
}

Test(explain, degraded)
{
    EXPECT("{'request':{'label':'public','label_source':'key'},'decisions':[{'stage':'before','route':'local',"
           "  'reason':'cloud-unavailable','degraded':true,'candidates':[{'route':'local'},"
           "  {'route':'cloud','endpoint':'work','rejected':'offline'},{'route':'cloud','endpoint':'far',"
           "'rejected':'breaker-open'}]}],"
           " 'attempts':[],'egress':[],'outcome':{'outcome':'degraded'}}",
           "Asked; labelled public because its key says so.",
           "Kept on the device: a cloud was allowed but none could be reached. Marked degraded: with everything "
           "up, a cloud "
           "might have answered. Passed over: work (the device is offline); far (failed too often just now,"
           " or was refused "
           "access).",
           "Nothing left the device.",
           "The answer was delivered, marked degraded.");
}

Test(explain, remedies)
{
    EXPECT("{'request':{'label':'private','label_source':'default'},'decisions':[{'stage':'before','route':'local',"
           "  'reason':'no-endpoint','candidates':[{'route':'local'}]}],'outcome':{'outcome':'ok'}}",
           "Asked; labelled private because nothing labelled it and default_label = private.",
           "Kept on the device: no cloud endpoint is configured. To let unlabelled requests escalate, add a section "
           "[cloud NAME] with url, model and labels = public, internal, and set [policy] default_label = internal.",
           "Nothing left the device.", "The answer was delivered.");
    EXPECT("{'request':{'label':'internal','label_source':'header'},'decisions':[{'stage':'before','route':'local',"
           "  'reason':'label-keeps-local','candidates':[{'route':'local'},{'route':'cloud','endpoint':'a',"
           "'rejected':'label'}]}],"
           "  'outcome':{'outcome':'ok'}}",
           "Asked; labelled internal because the request said so.",
           "Kept on the device: no configured endpoint may receive internal data. To let such requests escalate,"
           " add internal "
           "to [cloud a] labels.",
           "Nothing left the device.", "The answer was delivered.");
}

Test(explain, lost_unknown_and_refused)
{
    EXPECT("{'request':{'label':'private','label_source':'error'},'decisions':[],'attempts':[],"
           "  'egress':[],'outcome':null}",
           "Asked; labelled private because its label could not be understood,"
           " and what cannot be understood is private.",
           "Nothing left the device.",
           "It was never finished: the daemon stopped before it was over.");
    EXPECT("null", "No request with this id is in the record.");
    EXPECT("{'request':{},'decisions':[{'stage':'before','route':'none','reason':'nothing-allowed','candidates':["
           "  {'route':'local','rejected':'mode'},{'route':'cloud','endpoint':'a','rejected':'label'}]}],"
           "  'outcome':{'outcome':'refused','http_status':403,'error':'nothing-allowed'}}",
           "Asked.",
           "Refused: no route was both allowed and available. Passed over: the local model (the mode does not "
           "allow it); a (may "
           "not receive data with this label).",
           "Nothing left the device.",
           "The request was refused (nothing-allowed) with HTTP status 403.");
}

/* Rows of any shape: no crash, only sentences. */
Test(explain, odd_rows)
{
    static const char *const rows[] = {
        "{}", "[]", "{\"request\":3,\"decisions\":{},\"attempts\":\"x\",\"egress\":[null],\"outcome\":[]}",
        "{\"decisions\":[null,{},{\"candidates\":5},{\"candidates\":[1,null,{\"rejected\":\"new-code\"}],"
        "\"reason\":\"new\"}]}",
        "{\"request\":{\"time\":\"2026-11-22T17:30:\\u00fc\",\"model_asked\":\"%s%n%s\",\"key\":\"\\u00fc\"},"
        "\"attempts\":[{}],"
        "\"egress\":[{}]}",
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        json_t *row = parse(rows[i]), *told = policy_explain(row);

        cr_assert(json_array_size(told) > 0, "row %zu", i);
        for (size_t k = 0; k < json_array_size(told); k++)
            cr_assert(json_string_length(json_array_get(told, k)) > 0);
        json_decref(told);
        json_decref(row);
    }
}

Test(explain, a_very_long_name_cuts_no_character)
{
    json_t *row, *told;
    char *name = malloc(200001);

    for (int i = 0; i < 200000; i += 2)
        memcpy(name + i, "\xc3\xa4", 2);
    name[200000] = '\0';
    row = json_pack("{s:{s:s,s:s}}", "request", "model_asked", name, "label", "public");
    told = policy_explain(row);
    cr_assert(strcmp(json_string_value(json_array_get(told, 0)), "Asked; labelled public .") == 0);
    json_decref(told);
    json_decref(row);
    free(name);
}
