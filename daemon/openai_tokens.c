/* /tokenize and /detokenize, as servers of local models have them: a text (`content` at llama.cpp's, `prompt` at vLLM's,
 * which also counts the ids that stand around it) or messages into ids, and ids into a text, under both names. */
#include <errno.h>
#include <string.h>
#include "daemon/openai.h"

#define TOKENS_MAX (1u << 20)

/* Takes input. */
static int task_new(struct chat_request **ret, enum chat_task task, json_t *input, const char *model)
{
    struct chat_request *c = chat_task_new(task, input);

    if (c && model && !(c->model = strdup(model))) {
        chat_request_free(c);
        c = NULL;
    }
    *ret = c;
    return c ? 0 : -ENOMEM;
}

static int tokenize_parse(struct exchange *x, const json_t *body, struct chat_request **ret, struct request_error *e)
{
    static const char *const unsupported[] = {"with_pieces", "return_token_strs"};
    const char *model = NULL, *text = NULL;
    bool special;
    int r;

    for (size_t i = 0; i < ARRAY_SIZE(unsupported); i++)
        if (json_is_true(json_object_get(body, unsupported[i])))
            return openai_unsupported(x, body, &unsupported[i], 1, e);
    if (json_object_get(body, "messages")) {
        r = openai_chat_request(x, body, ret, e);
        if (r == 0) {
            (*ret)->task = CHAT_TOKENIZE;
            (*ret)->stream = false;
        }
        return r;
    }
    if (json_read_string(body, "model", &model, NULL) < 0)
        return openai_invalid(e, "model", "invalid_value", "model: expected a string");
    special = json_read_string(body, "content", &text, NULL) != 1;
    if (special && json_read_string(body, "prompt", &text, NULL) != 1)
        return openai_invalid(e, "content", "invalid_value", "content: expected a text, or messages instead");
    if (json_read_bool(body, "add_special", &special, NULL) < 0 ||
        json_read_bool(body, "add_special_tokens", &special, NULL) < 0)
        return openai_invalid(e, "add_special", "invalid_value", "add_special: expected true or false");
    return task_new(ret, CHAT_TOKENIZE, json_pack("{s:s, s:b}", "text", text, "add_special", special), model);
}

static json_t *tokenize_answer(struct exchange *x, const struct request_result *res)
{
    json_t *tokens = json_array();

    for (uint32_t i = 0; i < res->tokens_in; i++)
        json_array_append_new(tokens, json_integer(res->tokens[i]));
    return json_pack("{s:o, s:I}", "tokens", tokens, "count", (json_int_t)res->tokens_in);
}

static int detokenize_parse(struct exchange *x, const json_t *body, struct chat_request **ret, struct request_error *e)
{
    json_t *tokens = json_object_get(body, "tokens");
    const char *model = NULL;

    if (!json_is_array(tokens) || json_array_size(tokens) > TOKENS_MAX)
        return openai_invalid(e, "tokens", "invalid_value", "tokens: expected an array of ids");
    if (json_read_string(body, "model", &model, NULL) < 0)
        return openai_invalid(e, "model", "invalid_value", "model: expected a string");
    return task_new(ret, CHAT_DETOKENIZE, json_pack("{s:O}", "tokens", tokens), model);
}

static json_t *detokenize_answer(struct exchange *x, const struct request_result *res)
{
    const char *text = x->text.len ? (const char *)x->text.data : "";

    return json_pack("{s:s%, s:s%}", "content", text, x->text.len, "prompt", text, x->text.len);
}

const struct dialect openai_tokenize = {
    .name = "tokenize", .parse = tokenize_parse, .answer = tokenize_answer, .error = openai_error,
};
const struct dialect openai_detokenize = {
    .name = "detokenize", .parse = detokenize_parse, .answer = detokenize_answer, .error = openai_error,
};
