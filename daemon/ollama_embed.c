/* Ollama's /api/embed and the older /api/embeddings, of the local model alone. A text that is too long is refused,
 * never cut, whatever `truncate` says. */
#include <errno.h>
#include <string.h>
#include "base/clock.h"
#include "daemon/ollama.h"
#include "engine/engine.h"

/* A text, or an array of them, as an array; new reference. */
static int input_read(struct request_error *e, json_t **ret, json_t *input)
{
    json_t *one;
    size_t i;

    if (json_is_string(input)) {
        *ret = json_pack("[O]", input);
        return *ret ? 0 : -ENOMEM;
    }
    if (!json_array_size(input) || json_array_size(input) > ENGINE_MAX_INPUTS)
        return ollama_invalid(e, "input: expected a text, or an array of 1 to 2048 of them");
    json_array_foreach(input, i, one)
        if (!json_is_string(one))
            return ollama_invalid(e, "input: expected texts");
    *ret = json_incref(input);
    return 0;
}

static int parse(struct exchange *x, const json_t *body, struct chat_request **ret, struct request_error *e)
{
    const char *member = x->dialect == &ollama_embed ? "input" : "prompt", *model = ollama_model_name(x, body, "model");
    const json_t *dimensions = json_object_get(body, "dimensions");
    struct chat_request *chat;
    json_t *input = NULL;
    int r;

    if (!model)
        return ollama_invalid(e, "model: expected a string");
    if (dimensions && json_integer_value(dimensions) != 0)
        return ollama_invalid(e, "dimensions: not supported here");
    r = input_read(e, &input, json_object_get(body, member));
    if (r < 0)
        return r;
    chat = chat_task_new(CHAT_EMBED, json_pack("{s:o}", "input", input));
    if (!chat)
        return -ENOMEM;
    x->state = (void *)model;
    chat->model = strdup(model);
    if (!chat->model) {
        chat_request_free(chat);
        return -ENOMEM;
    }
    *ret = chat;
    return 0;
}

static json_t *vector(const struct request_result *res, uint32_t i)
{
    const float *v = res->vectors + (size_t)i * res->width;
    json_t *list = json_array();

    for (uint32_t k = 0; k < res->width; k++)
        json_array_append_new(list, json_real(v[k]));
    return list;
}

static json_t *answer(struct exchange *x, const struct request_result *res)
{
    json_t *list;

    if (x->dialect == &ollama_embeddings)
        return json_pack("{s:o}", "embedding", res->n_vectors ? vector(res, 0) : json_array());
    list = json_array();
    for (uint32_t i = 0; i < res->n_vectors; i++)
        json_array_append_new(list, vector(res, i));
    return json_pack("{s:s, s:o, s:I, s:i, s:I}", "model", x->state, "embeddings", list,
                     "total_duration", (json_int_t)(clock_usec() - x->started_usec) * 1000, "load_duration", 0,
                     "prompt_eval_count", (json_int_t)res->tokens_in);
}

#define EMBED .parse = parse, .answer = answer, .error = ollama_error
const struct dialect ollama_embed = {.name = "ollama-embed", EMBED};
const struct dialect ollama_embeddings = {.name = "ollama-embeddings", EMBED};
