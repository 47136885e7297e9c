/* Tools and answer formats: what the model is told of them, and the grammar its answer is held to. This file and
 * docs/model-metadata.md are the one place that knows how a call is written, so that a model can be trained on it.
 *
 *     {"name":"get_weather","arguments":{"city":"Paris"}}
 *
 * A call is the whole answer. Definitions stand in the system message, one a line; an earlier call is what the model
 * wrote, and its result comes back as a message of the role "tool", which a template without one shows as the
 * user's. */
#include <errno.h>
#include <string.h>

#include "engine/reply.h"

#define PREAMBLE_MAX (16u << 20)

static bool has_tools(const struct chat_request *r)
{
    return r->tools && r->tool_choice != CHAT_TOOL_NONE;
}

/* ---- messages ---- */

static int append_json(struct buf *b, const json_t *j)
{
    cleanup(freep) char *s = json_dumps(j, JSON_COMPACT | JSON_ENCODE_ANY);

    return s ? buf_puts(b, s) : -ENOMEM;
}

/* A text that may be JSON, as a value. New reference. */
static json_t *value_of(const char *text)
{
    struct err ignored;
    json_t *j = json_parse(text, strlen(text), &ignored);

    return j ? j : json_string(text);
}

static int append_tools(struct buf *b, const struct chat_request *r)
{
    const json_t *tool;
    size_t i;
    int x = buf_puts(b, "You can call these functions. To call one, answer with one JSON object and nothing else: "
                        "{\"name\":…,\"arguments\":{…}}\n");

    json_array_foreach(r->tools, i, tool) {
        const json_t *f = json_object_get(tool, "function"), *d = json_object_get(f, "description");
        const json_t *parameters = json_object_get(f, "parameters");
        cleanup(json_decrefp) json_t *shown = json_pack("{s:O, s:O*, s:O}", "name", json_object_get(f, "name"),
                                                        "description", d, "parameters", parameters);
        if (x == 0)
            x = shown ? append_json(b, shown) : -ENOMEM;
        if (x == 0)
            x = buf_puts(b, "\n");
    }
    if (x == 0 && r->tool_choice == CHAT_TOOL_REQUIRED)
        x = buf_puts(b, "Call one of them now.\n");
    if (x == 0 && r->tool_choice == CHAT_TOOL_NAMED)
        x = buf_printf(b, "Call %s now.\n", r->tool_name);
    return x;
}

/* What the system message is told beside the client's own words. */
static int append_preamble(struct buf *b, const struct chat_request *r)
{
    int x = has_tools(r) ? append_tools(b, r) : 0;

    if (x == 0 && r->format.type == CHAT_FORMAT_JSON_OBJECT)
        x = buf_puts(b, "Answer with one JSON object.\n");
    if (x == 0 && r->format.type == CHAT_FORMAT_JSON_SCHEMA) {
        x = buf_puts(b, "Answer with one JSON value that fits this JSON Schema: ");
        if (x == 0)
            x = append_json(b, r->format.schema);
        if (x == 0)
            x = buf_puts(b, "\n");
    }
    return x;
}

/* An assistant's message with its calls, as it would have written them. */
static json_t *called(const json_t *message, const json_t *calls)
{
    cleanup(buf_done) struct buf text;
    const json_t *call;
    size_t i;
    int r;

    buf_init(&text, PREAMBLE_MAX);
    r = buf_puts(&text, json_string_value(json_object_get(message, "content")));
    json_array_foreach(calls, i, call) {
        const json_t *f = json_object_get(call, "function");
        cleanup(json_decrefp) json_t *shown = json_pack("{s:O, s:o}", "name", json_object_get(f, "name"), "arguments",
                                                        value_of(json_string_value(json_object_get(f, "arguments"))));
        if (r == 0 && text.len)
            r = buf_puts(&text, "\n");
        if (r == 0)
            r = shown ? append_json(&text, shown) : -ENOMEM;
    }
    return r < 0 ? NULL : json_pack("{s:s, s:s}", "role", "assistant", "content", (char *)text.data);
}

/* The name of the tool whose call has this id, before message `at`. */
static const json_t *name_of(const json_t *messages, size_t at, const char *id)
{
    const json_t *call;
    size_t i;

    while (id && at--) {
        json_array_foreach(json_object_get(json_array_get(messages, at), "tool_calls"), i, call)
            if (strcmp(json_string_value(json_object_get(call, "id")), id) == 0)
                return json_object_get(json_object_get(call, "function"), "name");
    }
    return NULL;
}

static json_t *answered(const json_t *messages, size_t at)
{
    const json_t *message = json_array_get(messages, at);
    const char *id = json_string_value(json_object_get(message, "tool_call_id"));
    cleanup(json_decrefp) json_t *shown = json_pack("{s:O*, s:o}", "name", name_of(messages, at, id), "result",
                                                    value_of(json_string_value(json_object_get(message, "content"))));
    cleanup(freep) char *text = shown ? json_dumps(shown, JSON_COMPACT) : NULL;

    return text ? json_pack("{s:s, s:s}", "role", "tool", "content", text) : NULL;
}

json_t *tools_messages(const struct chat_request *r)
{
    cleanup(json_decrefp) json_t *out = json_array();
    cleanup(buf_done) struct buf told;
    const json_t *first = json_array_get(r->messages, 0), *role = json_object_get(first, "role");
    bool system = role && strcmp(json_string_value(role), "system") == 0;
    json_t *message;
    size_t i;
    int x = out ? 0 : -ENOMEM;

    buf_init(&told, PREAMBLE_MAX);
    if (system && x == 0)
        x = buf_puts(&told, json_string_value(json_object_get(first, "content")));
    if (x == 0 && told.len && (has_tools(r) || r->format.type != CHAT_FORMAT_TEXT))
        x = buf_puts(&told, "\n\n");
    if (x == 0)
        x = append_preamble(&told, r);
    if (x == 0 && told.len)
        x = json_array_append_new(out, json_pack("{s:s, s:s}", "role", "system", "content", (char *)told.data));
    json_array_foreach(r->messages, i, message) {
        const json_t *calls = json_object_get(message, "tool_calls");

        if (x < 0)
            return NULL;
        if (i == 0 && system && told.len)
            continue;
        if (calls)
            x = json_array_append_new(out, called(message, calls));
        else if (strcmp(json_string_value(json_object_get(message, "role")), "tool") == 0)
            x = json_array_append_new(out, answered(r->messages, i));
        else
            x = json_array_append(out, message);
    }
    return x < 0 ? NULL : TAKE(out);
}

/* ---- grammar ---- */

static int64_t text_node(struct grammar *g, const char *name)
{
    char quoted[80];
    int n = snprintf(quoted, sizeof(quoted), "\"%s\"", name);
    int64_t text = grammar_text(g, quoted, (size_t)n);

    return text < 0 ? text : grammar_node(g, (struct node){ .kind = NODE_TEXT,
                                                            .text = { (uint32_t)text, (uint32_t)text + 1 } });
}

/* The node of a tool's arguments: what its parameters say, or any object where they say nothing. */
static int64_t arguments_add(struct grammar *g, const json_t *tool, size_t at, size_t *work, struct err *err)
{
    const json_t *parameters = json_object_get(json_object_get(tool, "function"), "parameters");
    char path[64];

    snprintf(path, sizeof(path), "tools[%zu].function.parameters", at);
    return json_object_size(parameters) ? schema_add(g, parameters, path, work, err) : schema_add_any(g, true);
}

struct call { int64_t name, arguments; size_t tool; };

/* Every tool that may be called, with what its name and arguments are. */
static int calls_read(struct grammar *g, const struct chat_request *r, struct call *calls, size_t *n, struct err *err)
{
    size_t work = GRAMMAR_WORK, i;
    const json_t *tool;

    json_array_foreach(r->tools, i, tool) {
        const char *name = json_string_value(json_object_get(json_object_get(tool, "function"), "name"));
        struct call *c = &calls[*n];

        if (r->tool_choice == CHAT_TOOL_NAMED && strcmp(name, r->tool_name) != 0)
            continue;
        c->name = text_node(g, name);
        c->arguments = arguments_add(g, tool, i, &work, err);
        c->tool = i;
        if (c->name < 0 || c->arguments < 0)
            return (int)(c->name < 0 ? c->name : c->arguments);
        ++*n;
    }
    return 0;
}

/* {"name":…,"arguments":…} */
static int64_t call_add(struct grammar *g, const struct call *c)
{
    struct property *p = arena_alloc(&g->arena, 2 * sizeof(*p));
    int64_t name = grammar_text(g, ",\"name\":", 8), arguments = grammar_text(g, ",\"arguments\":", 13);

    if (!p || name < 0 || arguments < 0)
        return -ENOMEM;
    p[0] = (struct property){ .key = (uint32_t)name, .value = (uint32_t)c->name, .required = true };
    p[1] = (struct property){ .key = (uint32_t)arguments, .value = (uint32_t)c->arguments, .required = true };
    return grammar_node(g, (struct node){ .kind = NODE_OBJECT, .object = { p, 2, 0 } });
}

static bool is_object(const struct node *n)
{
    return n->kind == NODE_OBJECT || n->kind == NODE_MAP;
}

/* Arguments are objects, whatever else the parameters let through. Known once the grammar is finished. */
static int calls_check(const struct grammar *g, const struct call *calls, size_t n, struct err *err)
{
    for (size_t i = 0; i < n; i++) {
        const struct node *a = &g->nodes[calls[i].arguments];
        bool objects = a->kind == NODE_ANY_OF ? a->any_of.n > 0 : is_object(a);

        for (uint32_t k = 0; a->kind == NODE_ANY_OF && k < a->any_of.n; k++)
            objects &= is_object(&g->nodes[a->any_of.alternatives[k]]);
        if (!objects)
            return err_set(err, -EINVAL, "tools[%zu].function.parameters: expected a schema of objects", calls[i].tool);
        if (a->price >= GRAMMAR_NEVER)
            return err_set(err, -EINVAL, "tools[%zu].function.parameters: nothing that can be written satisfies it",
                           calls[i].tool);
    }
    return 0;
}

static int64_t format_add(struct grammar *g, const struct chat_format *f, struct err *err)
{
    size_t work = GRAMMAR_WORK;

    if (f->type == CHAT_FORMAT_JSON_OBJECT)
        return schema_add_any(g, true);
    return schema_add(g, f->schema, "response_format.json_schema.schema", &work, err);
}

static int build(struct tools *t, const struct chat_request *r, struct call *calls, const struct lexicon *prices,
                 struct err *err)
{
    struct node root = { .kind = NODE_ANY_OF };
    bool formatted = r->format.type != CHAT_FORMAT_TEXT;
    struct grammar *g = t->grammar;
    struct err why = { "" };
    size_t n = 0;
    int64_t node;
    int x = has_tools(r) ? calls_read(g, r, calls, &n, err) : 0;

    root.any_of.alternatives = arena_alloc(&g->arena, (n + 1) * sizeof(*root.any_of.alternatives));
    if (x < 0 || !root.any_of.alternatives)
        return x < 0 ? x : -ENOMEM;
    t->calls = (uint32_t)g->n_nodes;
    t->n_calls = (uint32_t)n;
    for (size_t i = 0; i < n; i++) {
        node = call_add(g, &calls[i]);
        if (node < 0)
            return (int)node;
        root.any_of.alternatives[root.any_of.n++] = (uint32_t)node;
    }
    if (formatted && (!n || r->tool_choice == CHAT_TOOL_AUTO)) {
        node = format_add(g, &r->format, err);
        if (node < 0)
            return (int)node;
        root.any_of.alternatives[root.any_of.n++] = (uint32_t)node;
    }
    t->words = n && r->tool_choice == CHAT_TOOL_AUTO && !formatted;
    node = grammar_node(g, root);
    if (node < 0)
        return (int)node;
    x = grammar_finish(g, (size_t)node, prices, &why);
    if (x < 0)
        return x == -EINVAL ? err_set(err, x, "%s: %s", n ? "tools" : "response_format", why.msg) : x;
    return calls_check(g, calls, n, err);
}

int tools_init(struct tools *t, const struct chat_request *r, const struct lexicon *prices, struct err *err)
{
    cleanup(freep) struct call *calls = calloc(json_array_size(r->tools) + 1, sizeof(*calls));
    int x;

    *t = (struct tools){ 0 };
    if (!has_tools(r) && r->format.type == CHAT_FORMAT_TEXT)
        return 0;
    if (prices && !prices->ascii)
        return err_set(err, -EINVAL, "this model's vocabulary cannot write JSON");
    x = calls ? grammar_new(&t->grammar) : -ENOMEM;
    if (x == 0)
        x = build(t, r, calls, prices, err);
    if (x < 0)
        tools_done(t);
    return x;
}

void tools_done(struct tools *t)
{
    grammar_free(t->grammar);
    *t = (struct tools){ 0 };
}

int engine_answer_check(const struct chat_request *r, struct err *err)
{
    struct tools t;
    int x = tools_init(&t, r, NULL, err);

    if (x == 0)
        tools_done(&t);
    return x;
}
