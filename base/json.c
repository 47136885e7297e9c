/* jansson with our error shape. jansson's own messages quote what stood near the fault, which may be a prompt, so only
 * its position and its error code are told. It bounds nesting at 2048 and refuses invalid UTF-8 and \u0000 in
 * strings. */
#include <errno.h>
#include <inttypes.h>
#include "base/json.h"

static const char *fault_words(enum json_error_code code)
{
    switch (code) {
    case json_error_out_of_memory:          return "out of memory";
    case json_error_stack_overflow:         return "nested too deeply";
    case json_error_invalid_utf8:           return "not UTF-8";
    case json_error_premature_end_of_input: return "the text ends too early";
    case json_error_end_of_input_expected:  return "more text after the end";
    case json_error_null_character:
    case json_error_null_byte_in_key:       return "a NUL character in a string";
    case json_error_duplicate_key:          return "the same key twice in one object";
    case json_error_numeric_overflow:       return "a number is too large";
    default:                                return "not JSON";
    }
}

json_t *json_parse(const void *data, size_t len, struct err *err)
{
    json_error_t e;
    json_t *j = json_loadb(data, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e);

    if (!j)
        err_set(err, -EINVAL, "line %d column %d: %s", e.line, e.column, fault_words(json_error_code(&e)));
    return j;
}

/* The member, or NULL when it is absent or null. */
static const json_t *member(const json_t *obj, const char *key)
{
    const json_t *v = json_object_get(obj, key);

    return json_is_null(v) ? NULL : v;
}

int json_read_string(const json_t *obj, const char *key, const char **ret, struct err *err)
{
    const json_t *v = member(obj, key);

    if (!v)
        return 0;
    if (!json_is_string(v))
        return err_set(err, -EINVAL, "%s: expected a string", key);
    *ret = json_string_value(v);
    return 1;
}

int json_read_int(const json_t *obj, const char *key, int64_t min, int64_t max, int64_t *ret, struct err *err)
{
    const json_t *v = member(obj, key);

    if (!v)
        return 0;
    if (!json_is_integer(v) || json_integer_value(v) < min || json_integer_value(v) > max)
        return err_set(err, -EINVAL, "%s: expected an integer from %" PRId64 " to %" PRId64, key, min, max);
    *ret = json_integer_value(v);
    return 1;
}

int json_read_number(const json_t *obj, const char *key, double min, double max, double *ret, struct err *err)
{
    const json_t *v = member(obj, key);

    if (!v)
        return 0;
    if (!json_is_number(v) || !(json_number_value(v) >= min && json_number_value(v) <= max))
        return err_set(err, -EINVAL, "%s: expected a number from %g to %g", key, min, max);
    *ret = json_number_value(v);
    return 1;
}

int json_read_bool(const json_t *obj, const char *key, bool *ret, struct err *err)
{
    const json_t *v = member(obj, key);

    if (!v)
        return 0;
    if (!json_is_boolean(v))
        return err_set(err, -EINVAL, "%s: expected true or false", key);
    *ret = json_is_true(v);
    return 1;
}

char *json_canonical(const json_t *j)
{
    return json_dumps(j, JSON_SORT_KEYS | JSON_COMPACT | JSON_ENCODE_ANY);
}
