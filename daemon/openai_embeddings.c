/* OpenAI's Embeddings, of the local model alone: vectors of texts or of ids, as numbers or as base64 of little-endian
 * floats, which its SDKs ask for unless told otherwise. */
#include <errno.h>
#include <string.h>
#include <openssl/evp.h>
#include "daemon/openai.h"
#include "engine/engine.h"

static bool is_ids(const json_t *j)
{
    return json_is_array(j) && json_is_integer(json_array_get(j, 0));
}

/* A text, or an array of ids, each alone or in an array, as an array of them. */
static int input_read(struct exchange *x, json_t **ret, const json_t *body, struct request_error *e)
{
    json_t *input = json_object_get(body, "input"), *one;
    size_t i;

    if (json_is_string(input) || is_ids(input)) {
        *ret = json_pack("[O]", input);
        return *ret ? 0 : -ENOMEM;
    }
    if (!json_array_size(input) || json_array_size(input) > ENGINE_MAX_INPUTS)
        return openai_invalid(e, "input", "invalid_value", arena_printf(&x->arena,
                              "input: expected a text, an array of ids, or an array of 1 to %d of these",
                              ENGINE_MAX_INPUTS));
    json_array_foreach(input, i, one)
        if (!json_is_string(one) && !is_ids(one))
            return openai_invalid(e, "input", "invalid_value",
                                  arena_printf(&x->arena, "input[%zu]: expected a text or an array of ids", i));
    *ret = json_incref(input);
    return 0;
}

static int parse(struct exchange *x, const json_t *body, struct chat_request **ret, struct request_error *e)
{
    static const char *const unsupported[] = {"dimensions"};
    const char *format = "float", *model = NULL;
    json_t *input = NULL, *order;
    struct err err;
    int r;

    if (openai_unsupported(x, body, unsupported, ARRAY_SIZE(unsupported), e) < 0)
        return -EINVAL;
    if (json_read_string(body, "model", &model, &err) < 0)
        return openai_invalid(e, "model", "invalid_value", "model: expected a string");
    if (json_read_string(body, "encoding_format", &format, &err) < 0 ||
        (strcmp(format, "float") != 0 && strcmp(format, "base64") != 0))
        return openai_invalid(e, "encoding_format", "invalid_value", "encoding_format: expected float or base64");
    r = input_read(x, &input, body, e);
    if (r < 0)
        return r;
    order = json_pack("{s:o}", "input", input);
    *ret = chat_task_new(CHAT_EMBED, order);
    if (!*ret)
        return -ENOMEM;
    if (model && !((*ret)->model = strdup(model))) {
        chat_request_free(TAKE(*ret));
        return -ENOMEM;
    }
    x->state = strcmp(format, "base64") == 0 ? x : NULL;      /* anything: only whether */
    return 0;
}

static json_t *numbers(const float *v, uint32_t width)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < width; i++)
        json_array_append_new(list, json_real(v[i]));
    return list;
}

static json_t *base64(const float *v, uint32_t width)
{
    size_t bytes = width * sizeof(float), len = (bytes + 2) / 3 * 4;
    cleanup(freep) unsigned char *text = malloc(len + 1);

    if (!text)
        return NULL;
    EVP_EncodeBlock(text, (const unsigned char *)v, (int)bytes);
    return json_stringn((char *)text, len);
}

static json_t *answer(struct exchange *x, const struct request_result *res)
{
    json_int_t n = res->tokens_in;
    json_t *data = json_array();

    for (uint32_t i = 0; i < res->n_vectors; i++) {
        const float *v = res->vectors + (size_t)i * res->width;

        json_array_append_new(data, json_pack("{s:s, s:i, s:o}", "object", "embedding", "index", (int)i, "embedding",
                                              x->state ? base64(v, res->width) : numbers(v, res->width)));
    }
    return json_pack("{s:s, s:o, s:s, s:{s:I, s:I}}", "object", "list", "data", data, "model",
                     x->meta.model ? x->meta.model : "", "usage", "prompt_tokens", n, "total_tokens", n);
}

const struct dialect openai_embeddings = {
    .name = "openai-embeddings", .parse = parse, .answer = answer, .error = openai_error,
};
