/* What Ollama's clients ask about models: the list, one of them, what is loaded. The local model is the one with a file
 * behind it; "auto" and the clouds are listed as Ollama lists models that run elsewhere. */
#include <errno.h>
#include <string.h>
#include "base/clock.h"
#include "daemon/ollama.h"

static const char *text_of(const json_t *obj, const char *key)
{
    const char *s = json_string_value(json_object_get(obj, key));

    return s ? s : "";
}

static void started_at(const struct daemon *d, char out[CLOCK_RFC3339_BYTES])
{
    clock_rfc3339(out, clock_wall_usec() - (clock_usec() - d->started_usec));
}

static json_t *details(const char *family, const char *format, const char *quantization)
{
    return json_pack("{s:s, s:s, s:s, s:[s], s:s, s:s}", "parent_model", "", "format", format, "family", family,
                     "families", family, "parameter_size", "", "quantization_level", quantization);
}

/* The local model as the engine told of it, with `digest` bare as Ollama's is. NULL: no engine was ever ready. */
static json_t *local_model(const struct daemon *d, const json_t *engine)
{
    const char *digest = text_of(engine, "digest");
    char since[CLOCK_RFC3339_BYTES];

    if (!*text_of(engine, "model"))
        return NULL;
    if (strncmp(digest, "sha256:", 7) == 0)
        digest += 7;
    started_at(d, since);
    return json_pack("{s:s, s:s, s:s, s:I, s:s, s:o}", "name", text_of(engine, "model"),
                     "model", text_of(engine, "model"), "modified_at", since,
                     "size", json_integer_value(json_object_get(engine, "bytes")), "digest", digest,
                     "details", details(text_of(engine, "architecture"), "gguf", "ternary"));
}

static json_t *elsewhere(const struct daemon *d, const char *name, const char *model, const char *host)
{
    char since[CLOCK_RFC3339_BYTES];

    started_at(d, since);
    return json_pack("{s:s, s:s, s:s*, s:s*, s:s, s:i, s:s, s:o}", "name", name, "model", name, "remote_model", model,
                     "remote_host", host, "modified_at", since, "size", 0, "digest", "",
                     "details", details("", "", ""));
}

static json_t *models(const struct daemon *d)
{
    cleanup(json_decrefp) json_t *status = router_status(d->router);
    json_t *local = local_model(d, json_object_get(status, "engine")), *list = json_array();
    const json_t *e;
    size_t i;

    if (local)
        json_array_append_new(list, local);
    json_array_append_new(list, elsewhere(d, "auto", NULL, NULL));
    json_array_foreach(json_object_get(status, "endpoints"), i, e)
        json_array_append_new(list, elsewhere(d, text_of(e, "name"), text_of(e, "model"), text_of(e, "host")));
    return list;
}

/* New reference, or NULL. */
static json_t *model_find(const struct daemon *d, const char *name)
{
    cleanup(json_decrefp) json_t *list = models(d);
    json_t *m;
    size_t i;

    json_array_foreach(list, i, m)
        if (strcmp(text_of(m, "name"), name) == 0)
            return json_incref(m);
    return NULL;
}

int ollama_model_check(struct exchange *x, const char *name, struct request_error *e)
{
    cleanup(json_decrefp) json_t *m = model_find(x->daemon, name);

    /* Names of a tier pass too; they are not models. */
    if (m || strcmp(name, "local") == 0 || strcmp(name, "cloud") == 0)
        return 0;
    *e = (struct request_error){.http_status = 404, .type = "invalid_request_error", .code = "model_not_found",
                                .message = "there is no such model here; GET /api/tags lists them"};
    return -EINVAL;
}

void ollama_root(struct exchange *x)
{
    static const char words[] = "Ollama is running";       /* what its clients look for; it is tern that answers */

    exchange_reply(x, 200, "text/plain; charset=utf-8", words, strlen(words));
}

void ollama_version(struct exchange *x)
{
    exchange_reply_json(x, 200, json_pack("{s:s}", "version", TERN_VERSION));
}

void ollama_tags(struct exchange *x)
{
    exchange_reply_json(x, 200, json_pack("{s:o}", "models", models(x->daemon)));
}

/* The local model, while its engine is there; it is never unloaded. */
void ollama_ps(struct exchange *x)
{
    cleanup(json_decrefp) json_t *status = router_status(x->daemon->router);
    const json_t *engine = json_object_get(status, "engine");
    json_t *list = json_array(), *m = router_engine_ready(x->daemon->router) ? local_model(x->daemon, engine) : NULL;

    if (m) {
        json_object_set_new(m, "expires_at", json_string("9999-12-31T23:59:59Z"));
        json_object_set_new(m, "size_vram", json_integer(0));
        json_object_set(m, "context_length", json_object_get(engine, "context"));
        json_array_append_new(list, m);
    }
    exchange_reply_json(x, 200, json_pack("{s:o}", "models", list));
}

/* {"general.architecture":"x","x.context_length":n} of the local model; of others nothing is known. */
static json_t *model_info(const json_t *engine)
{
    const char *architecture = text_of(engine, "architecture");
    json_t *info = json_pack("{s:s}", "general.architecture", architecture);
    char key[96];

    snprintf(key, sizeof(key), "%.64s.context_length", architecture);
    json_object_set(info, key, json_object_get(engine, "context"));
    return info;
}

void ollama_show(struct exchange *x)
{
    cleanup(json_decrefp) json_t *body = NULL, *m = NULL, *status = router_status(x->daemon->router);
    const json_t *engine = json_object_get(status, "engine");
    const char *name = NULL;
    struct request_error e;
    int r = exchange_body(x, &body, &e);
    bool local;

    if (r == 0) {
        name = ollama_model_name(x, body, "model");
        name = name ? name : ollama_model_name(x, body, "name");
        r = name ? ollama_model_check(x, name, &e) : ollama_invalid(&e, "model: expected a string");
    }
    if (r < 0) {
        exchange_reply_fault(x, r, &e);
        return;
    }
    m = model_find(x->daemon, name);
    local = strcmp(name, text_of(engine, "model")) == 0;
    exchange_reply_json(x, 200, json_pack("{s:s, s:s, s:s, s:O*, s:O*, s:o, s:[s, s]}", "modelfile", "",
        "parameters", "", "template", "", "details", json_object_get(m, "details"),
        "modified_at", json_object_get(m, "modified_at"), "model_info", local ? model_info(engine) : json_object(),
        "capabilities", "completion", "tools"));
}
