/* What a model would answer that does as it is told and no more: calls of the tools that a request has, values that fit
 * a schema. Bodies are OpenAI's chat completions. */
#pragma once

#include <jansson.h>

/* The calls to answer with, in the shape of tool_calls, or NULL: none. One call: of the tool that is named, or else of
 * the first; of every tool, when the choice is free and the last message says "each". None after a tool's result. */
json_t *plain_calls(const json_t *body);
/* The words to answer with: `text`; a value in the format asked for; or, after tools' results, what they were. Caller
 * frees. */
char *plain_text(const json_t *body, const char *text);
