/* A tokenizer.json (Hugging Face tokenizers) becomes the tokenizer.ggml.* keys that tokenizer.c builds from.
 *
 * Read are two kinds, both with model.type "BPE". With byte_fallback it is SentencePiece's BPE: pairs merge by the
 * rank of the merge that gives their concatenation, which becomes that token's score, less is worse; a token that no
 * merge gives is unused. Without, it is byte-level, and its pre-tokenizer is known by the text of its regular
 * expression. What else a file asks for is refused by name, but for NFC, which is left to who writes the text.
 *
 * The JSON stays where it is; a token is an offset into it until it is written. */
#include "engine/container.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MAX_JSON (100u << 20)
#define MAX_TOKEN 65535
#define MAX_TOKENS (1u << 22)
#define MAX_UNUSED 4096             /* ids without a token: rows of an embedding behind the last one, holes */
#define NO_TOKEN UINT32_MAX

enum token_type { TOKEN_NORMAL = 1, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER, TOKEN_UNUSED, TOKEN_BYTE };

struct reader {
    struct keys *k;
    struct err *err;
    const char *text;
    struct json_view model, added, merges;
    bool spm;
    size_t n, n_given;              /* ids, and entries of the file; some stand in both of its lists */
    uint32_t *at;                   /* of each token: where its string stands in text */
    uint8_t *types;
    size_t *written;                /* spm: where its text stands in the keys' image, and that text's length */
    uint32_t *lens, *order;         /* spm: ids in order of text */
    char token[MAX_TOKEN];
};

static int refuse(const struct reader *v, const char *what, const char *why)
{
    return err_set(v->err, -EINVAL, "tokenizer.json: %s %s", what, why);
}

static int get(const struct reader *v, struct json_view in, const char *key, struct json_view *ret)
{
    int r = in.s ? json_view_get(in, key, ret, NULL) : 0;

    return r < 0 ? refuse(v, key, "stands twice") : r;
}

static int get_bool(const struct reader *v, struct json_view in, const char *key, bool *ret)
{
    struct json_view value;
    int r = get(v, in, key, &value);

    return r > 0 && !json_view_bool(value, ret) ? refuse(v, key, "is neither true nor false") : r;
}

static bool type_is(const struct reader *v, struct json_view in, const char *type)
{
    struct json_view value;

    return get(v, in, "type", &value) == 1 && json_view_is(value, type);
}

/* A string that stands at s in the text. */
static struct json_view string_at(const char *s)
{
    const char *p = s + 1;

    for (; *p != '"'; p++)
        p += *p == '\\';
    return (struct json_view){ s, (size_t)(p + 1 - s) };
}

/* ---- tokens ----------------------------------------------------------------------------------------------------- */

static int check_token(const struct reader *v, struct json_view token, struct json_view id, uint64_t *ret)
{
    if (json_view_kind(token) != '"' || token.len > MAX_TOKEN)
        return refuse(v, "a token", "is no string or longer than 65,533 bytes");
    if (!json_view_u64(id, ret) || *ret >= MAX_TOKENS)
        return err_set(v->err, -EINVAL, "tokenizer.json: token %.*s has an id that is no number below %u",
                       (int)MIN(token.len, 64), token.s, MAX_TOKENS);
    return 0;
}

/* Call fn for each token of the vocabulary, then each added one. */
static int each_token(struct reader *v,
                      int (*fn)(struct reader *v, struct json_view token, uint64_t id, struct json_view added))
{
    struct json_view vocab, token, id;
    uint64_t n;
    int r;

    r = get(v, v->model, "vocab", &vocab);
    if (r < 0)
        return r;
    if (!r || json_view_kind(vocab) != '{')
        return refuse(v, "model.vocab", "is no object");
    for (struct json_walk w = json_walk(vocab); json_walk_next(&w);) {
        r = check_token(v, w.key, w.value, &n);
        r = r < 0 ? r : fn(v, w.key, n, (struct json_view){ 0 });
        if (r < 0)
            return r;
    }
    if (!v->added.s)
        return 0;
    for (struct json_walk w = json_walk(v->added); json_walk_next(&w);) {
        if (get(v, w.value, "content", &token) != 1 || get(v, w.value, "id", &id) != 1)
            return refuse(v, "added_tokens", "has an entry without content or id");
        r = check_token(v, token, id, &n);
        r = r < 0 ? r : fn(v, token, n, w.value);
        if (r < 0)
            return r;
    }
    return 0;
}

static int count_token(struct reader *v, struct json_view token, uint64_t id, struct json_view added)
{
    v->n = MAX(v->n, id + 1);
    v->n_given++;
    return 0;
}

static bool is_byte(struct json_view token)
{
    static const char hex[] = "0123456789ABCDEFabcdef";

    return token.len == 8 && !memcmp(token.s, "\"<0x", 4) && token.s[6] == '>' &&
           strchr(hex, token.s[4]) && strchr(hex, token.s[5]);
}

/* Gemma's runs of spaces and line ends: added, but merges give them too, and text is to have them. */
static bool is_blank(struct json_view token)
{
    for (size_t i = 1; i < token.len - 1;) {
        size_t left = token.len - 1 - i;

        if (left >= 2 && token.s[i] == '\\' && strchr("nrt", token.s[i + 1]))
            i += 2;
        else if (left >= 3 && !memcmp(token.s + i, "\u2581", 3))
            i += 3;
        else
            return false;
    }
    return token.len > 2;
}

static int refuse_id(const struct reader *v, struct json_view token, uint64_t id)
{
    return err_set(v->err, -EINVAL, "tokenizer.json: id %llu of %.*s is also another token's", (unsigned long long)id,
                   (int)MIN(token.len, 64), token.s);
}

static int place_token(struct reader *v, struct json_view token, uint64_t id, struct json_view added)
{
    uint32_t at = (uint32_t)(token.s - v->text);
    bool special = false;
    int r;

    if (!added.s) {
        if (v->at[id])
            return refuse_id(v, token, id);
        v->types[id] = v->spm && is_byte(token) ? TOKEN_BYTE : TOKEN_NORMAL;
        v->at[id] = at;
        return 0;
    }
    r = get_bool(v, added, "special", &special);
    if (r < 0)
        return r;
    if (v->types[id] == TOKEN_CONTROL || v->types[id] == TOKEN_USER)
        return refuse_id(v, token, id);
    if (special || !v->spm || !v->at[id] || !is_blank(token))
        v->types[id] = special ? TOKEN_CONTROL : TOKEN_USER;
    v->at[id] = at;
    return 0;
}

static int find_unknown(struct reader *v)
{
    struct json_view name;
    int r = get(v, v->model, "unk_token", &name);

    if (r <= 0)
        return r;
    for (size_t i = 0; i < v->n; i++) {
        struct json_view token;

        if (!v->at[i])
            continue;
        token = string_at(v->text + v->at[i]);
        if (token.len != name.len || memcmp(token.s, name.s, name.len))
            continue;
        v->types[i] = TOKEN_UNKNOWN;
        keys_u32(v->k, "tokenizer.ggml.unknown_token_id", (uint32_t)i);
        return 0;
    }
    return refuse(v, "unk_token", "is no token");
}

static int place_tokens(struct reader *v, uint64_t n_rows)
{
    int r;

    r = each_token(v, count_token);
    if (r < 0)
        return r;
    if (!v->n || (n_rows && v->n > n_rows))
        return err_set(v->err, -EINVAL,
                       "tokenizer.json: the highest id, %zu, is not below the %llu rows of the embedding",
                       v->n ? v->n - 1 : 0, (unsigned long long)n_rows);
    v->n = MAX(v->n, n_rows);
    if (v->n > v->n_given + MAX_UNUSED)
        return err_set(v->err, -EINVAL, "tokenizer.json: %zu tokens for %zu ids", v->n_given, v->n);
    v->at = calloc(v->n, sizeof(*v->at));
    v->types = malloc(v->n);
    if (!v->at || !v->types)
        return -ENOMEM;
    memset(v->types, TOKEN_UNUSED, v->n);
    r = each_token(v, place_token);
    return r < 0 || !v->spm ? r : find_unknown(v);
}

static int write_tokens(struct reader *v)
{
    char unused[32];

    if (v->spm) {
        v->written = calloc(v->n, sizeof(*v->written));
        v->lens = calloc(v->n, sizeof(*v->lens));
        if (!v->written || !v->lens)
            return -ENOMEM;
    }
    keys_array(v->k, "tokenizer.ggml.tokens", GGUF_STRING, v->n);
    for (size_t i = 0; i < v->n; i++) {
        const char *s = v->token;
        size_t len;

        if (v->at[i]) {
            len = json_view_text(string_at(v->text + v->at[i]), v->token);
        } else {
            s = unused;
            len = (size_t)snprintf(unused, sizeof(unused), "[PAD%zu]", i);
        }
        keys_text(v->k, s, len);
        if (v->spm) {
            v->written[i] = v->k->b->len - len;
            v->lens[i] = (uint32_t)len;
        }
    }
    return v->k->error;
}

static void write_types(struct reader *v)
{
    keys_array(v->k, "tokenizer.ggml.token_type", GGUF_I32, v->n);
    for (size_t i = 0; i < v->n; i++)
        keys_bytes(v->k, &(int32_t){ v->types[i] }, sizeof(int32_t));
}

/* ---- merges ----------------------------------------------------------------------------------------------------- */

/* "a b" or ["a", "b"]: both sides, one behind the other, into v->token. */
static int read_merge(struct reader *v, struct json_view merge, size_t *ret_left, size_t *ret_len)
{
    struct json_walk w = json_walk(merge);
    const char *space;
    size_t len = 0;

    *ret_left = 0;
    if (json_view_kind(merge) == '"') {
        if (merge.len > MAX_TOKEN)
            return -EINVAL;
        len = json_view_text(merge, v->token);
        space = len > 1 ? memchr(v->token + 1, ' ', len - 1) : NULL;
        if (!space)
            return -EINVAL;
        *ret_left = (size_t)(space - v->token);
        memmove(v->token + *ret_left, space + 1, --len - *ret_left);
        *ret_len = len;
        return 0;
    }
    for (int i = 0; i < 2; i++) {
        if (!json_walk_next(&w) || json_view_kind(w.value) != '"' || len + w.value.len > MAX_TOKEN)
            return -EINVAL;
        len += json_view_text(w.value, v->token + len);
        *ret_left = i ? *ret_left : len;
    }
    *ret_len = len;
    return json_walk_next(&w) ? -EINVAL : 0;
}

static int refuse_merge(const struct reader *v, size_t i)
{
    return err_set(v->err, -EINVAL, "tokenizer.json: entry %zu of model.merges is not two tokens that make a third", i);
}

static int write_merges(struct reader *v)
{
    size_t i = 0, left, len;

    keys_array(v->k, "tokenizer.ggml.merges", GGUF_STRING, json_view_count(v->merges));
    for (struct json_walk w = json_walk(v->merges); json_walk_next(&w); i++) {
        /* The key's form parts at the first space behind its first byte. */
        if (read_merge(v, w.value, &left, &len) < 0 || !left || left == len || memchr(v->token + 1, ' ', left - 1))
            return refuse_merge(v, i);
        keys_bytes(v->k, &(uint64_t){ len + 1 }, sizeof(uint64_t));
        keys_bytes(v->k, v->token, left);
        keys_bytes(v->k, " ", 1);
        keys_bytes(v->k, v->token + left, len - left);
    }
    return v->k->error;
}

static int compare_text(const struct reader *v, const char *s, size_t len, uint32_t id)
{
    const uint8_t *image = v->k->b->data;
    int r = memcmp(s, image + v->written[id], MIN(len, v->lens[id]));

    return r ? r : (len > v->lens[id]) - (len < v->lens[id]);
}

static int compare_ids(const void *a, const void *b, void *arg)
{
    const struct reader *v = arg;
    uint32_t x = *(const uint32_t *)a;

    return compare_text(v, (const char *)v->k->b->data + v->written[x], v->lens[x], *(const uint32_t *)b);
}

static uint32_t find_token(const struct reader *v, const char *s, size_t len)
{
    for (size_t lo = 0, hi = v->n; lo < hi;) {
        size_t mid = lo + (hi - lo) / 2;
        int r = compare_text(v, s, len, v->order[mid]);

        if (!r)
            return v->order[mid];
        if (r < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NO_TOKEN;
}

static bool is_one_character(const struct reader *v, size_t id)
{
    const uint8_t *s = v->k->b->data + v->written[id];

    for (size_t i = 1; i < v->lens[id]; i++)
        if ((s[i] & 0xc0) != 0x80)
            return false;
    return true;
}

/* Scores from ranks; and what no merge gives can be in no text. */
static int write_scores(struct reader *v)
{
    cleanup(freep) float *scores = calloc(v->n, sizeof(*scores));
    size_t i = 0, left, len;

    v->order = calloc(v->n, sizeof(*v->order));
    if (!scores || !v->order)
        return -ENOMEM;
    for (size_t id = 0; id < v->n; id++)
        v->order[id] = (uint32_t)id;
    qsort_r(v->order, v->n, sizeof(*v->order), compare_ids, v);
    for (struct json_walk w = json_walk(v->merges); json_walk_next(&w); i++) {
        bool two = read_merge(v, w.value, &left, &len) == 0 && left && left < len;
        uint32_t id = two ? find_token(v, v->token, len) : NO_TOKEN;

        if (id == NO_TOKEN)
            return refuse_merge(v, i);
        if (scores[id] == 0)
            scores[id] = -(float)(i + 1);
    }
    for (size_t id = 0; id < v->n; id++)
        if (v->types[id] == TOKEN_NORMAL && scores[id] == 0 && !is_one_character(v, id))
            v->types[id] = TOKEN_UNUSED;
    keys_array(v->k, "tokenizer.ggml.scores", GGUF_F32, v->n);
    keys_bytes(v->k, scores, v->n * sizeof(*scores));
    return v->k->error;
}

/* ---- what surrounds the model ----------------------------------------------------------------------------------- */

#define LLAMA3(digits) "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

static const struct { const char *regex, *pre; } regexes[] = {
    { LLAMA3("\\p{N}{1,3}"), "llama-bpe" },
    { LLAMA3("\\p{N}"), "qwen2" },
    { "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", "gpt-2" },
};

/* One step of a byte-level pre-tokenizer. */
static int read_step(const struct reader *v, struct json_view step, const char **pre)
{
    bool prefix = false, own_regex = true;
    struct json_view pattern, regex;
    int r;

    if (type_is(v, step, "ByteLevel")) {
        if ((r = get_bool(v, step, "add_prefix_space", &prefix)) < 0 ||
            (r = get_bool(v, step, "use_regex", &own_regex)) < 0)
            return r;
        if (prefix)
            return refuse(v, "pre_tokenizer: add_prefix_space", "is not done for byte-level vocabularies");
        if (own_regex && *pre)
            return refuse(v, "pre_tokenizer", "cuts twice");
        *pre = own_regex ? "gpt-2" : *pre;
        return 0;
    }
    if (!type_is(v, step, "Split") || *pre)
        return refuse(v, "pre_tokenizer", "has a step that is neither one Split nor ByteLevel");
    if (get(v, step, "pattern", &pattern) == 1 && get(v, pattern, "Regex", &regex) == 1)
        for (size_t i = 0; i < ARRAY_SIZE(regexes); i++)
            if (json_view_is(regex, regexes[i].regex)) {
                *pre = regexes[i].pre;
                return 0;
            }
    return refuse(v, "pre_tokenizer", "has a pattern that is none of Llama 3's, Qwen 2's and GPT-2's");
}

static int write_pre(struct reader *v, struct json_view root)
{
    struct json_view step, steps;
    const char *pre = NULL;
    int r;

    r = get(v, root, "pre_tokenizer", &step);
    if (r <= 0)
        return r < 0 ? r : refuse(v, "pre_tokenizer", "is missing");
    if (type_is(v, step, "Sequence")) {
        r = get(v, step, "pretokenizers", &steps);
        if (r <= 0)
            return r < 0 ? r : refuse(v, "pretokenizers", "is missing");
        for (struct json_walk w = json_walk(steps); json_walk_next(&w);) {
            r = read_step(v, w.value, &pre);
            if (r < 0)
                return r;
        }
    } else if ((r = read_step(v, step, &pre)) < 0) {
        return r;
    }
    if (!pre)
        return refuse(v, "pre_tokenizer", "does not cut words");
    keys_string(v->k, "tokenizer.ggml.pre", pre, strlen(pre));
    return 0;
}

/* Byte-level: NFC at most. */
static int check_normalizer(struct reader *v, struct json_view root)
{
    struct json_view normalizer;
    int r = get(v, root, "normalizer", &normalizer);

    return r > 0 && !type_is(v, normalizer, "NFC") ? refuse(v, "normalizer", "is not NFC") : MIN(r, 0);
}

/* SentencePiece: a space is written as U+2581, and one stands before the text where `prefix` comes out true. */
static int read_spm_normal(const struct reader *v, struct json_view step, bool *prefix, bool *replace)
{
    struct json_view x, list;
    int r;

    if (type_is(v, step, "Sequence")) {
        r = get(v, step, "normalizers", &list);
        if (r <= 0)
            return r < 0 ? r : refuse(v, "normalizers", "is missing");
        for (struct json_walk w = json_walk(list); json_walk_next(&w);) {
            if (type_is(v, w.value, "Sequence"))
                return refuse(v, "normalizer", "is a sequence of sequences");
            r = read_spm_normal(v, w.value, prefix, replace);
            if (r < 0)
                return r;
        }
        return 0;
    }
    if (type_is(v, step, "Prepend") && get(v, step, "prepend", &x) == 1 && json_view_is(x, "\u2581")) {
        *prefix = true;
        return 0;
    }
    if (type_is(v, step, "Replace") && get(v, step, "pattern", &x) == 1 && get(v, x, "String", &x) == 1 &&
        json_view_is(x, " ") &&
        get(v, step, "content", &x) == 1 && json_view_is(x, "\u2581")) {
        *replace = true;
        return 0;
    }
    return refuse(v, "normalizer", "does more than to write spaces as U+2581");
}

static int write_spm_spaces(struct reader *v, struct json_view root)
{
    struct json_view step, scheme;
    bool prefix = false, replace = false;
    int r;

    r = get(v, root, "normalizer", &step);
    r = r > 0 ? read_spm_normal(v, step, &prefix, &replace) : r;
    if (r < 0)
        return r;
    r = get(v, root, "pre_tokenizer", &step);
    if (r < 0)
        return r;
    if (r && type_is(v, step, "Metaspace")) {
        bool old = true;

        r = get(v, step, "prepend_scheme", &scheme);
        if (r < 0)
            return r;
        if (r)
            old = !json_view_is(scheme, "never");
        else if ((r = get_bool(v, step, "add_prefix_space", &old)) < 0)
            return r;
        prefix |= old;
        replace = true;
    } else if (r && !(type_is(v, step, "Split") && get(v, step, "pattern", &scheme) == 1 &&
                      get(v, scheme, "String", &scheme) == 1 &&
                      json_view_is(scheme, " ") && replace)) {
        /* A Split at spaces finds none once they are replaced: Gemma's. */
        return refuse(v, "pre_tokenizer", "is not SentencePiece's");
    }
    if (!replace)
        return refuse(v, "normalizer", "does not write spaces as U+2581");
    keys_bool(v->k, "tokenizer.ggml.add_space_prefix", prefix);
    return 0;
}

/* Whether a post-processor puts a token before and behind the text: 1, or 0 when it does not say. */
static int read_template(const struct reader *v, struct json_view step, bool *bos, bool *eos)
{
    struct json_view list, x;
    bool text = false, special;

    if (type_is(v, step, "Sequence") && get(v, step, "processors", &list) == 1) {
        for (struct json_walk w = json_walk(list); json_walk_next(&w);)
            if (type_is(v, w.value, "TemplateProcessing"))
                return read_template(v, w.value, bos, eos);
        return 0;
    }
    if (!type_is(v, step, "TemplateProcessing") || get(v, step, "single", &list) != 1)
        return 0;
    for (struct json_walk w = json_walk(list); json_walk_next(&w);) {
        special = get(v, w.value, "SpecialToken", &x) == 1;
        *bos |= special && !text;
        *eos |= special && text;
        text |= !special;
    }
    return 1;
}

/* tokenizer_config.json has the last word; what neither file says is left to the vocabulary's kind. */
static int write_added(struct reader *v, struct json_view root, struct json_view config)
{
    static const char *const theirs[] = { "add_bos_token", "add_eos_token" };
    static const char *const ours[] = { "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token" };
    bool add[2] = { false, false };
    struct json_view step;
    int r, known;

    known = get(v, root, "post_processor", &step);
    known = known > 0 ? read_template(v, step, &add[0], &add[1]) : known;
    for (size_t i = 0; i < 2 && known >= 0; i++) {
        r = get_bool(v, config, theirs[i], &add[i]);
        if (r < 0)
            return r;
        if (r || known)
            keys_bool(v->k, ours[i], add[i]);
    }
    return MIN(known, 0);
}

/* ---- the file --------------------------------------------------------------------------------------------------- */

static int read_all(struct reader *v, const void *data, size_t size, const struct vocabulary_hints *hints)
{
    const char *model;
    struct json_view root, x;
    int r;

    if (size > MAX_JSON)
        return refuse(v, "the file", "is larger than 100 MiB");
    r = json_view_open(&root, data, size, "tokenizer.json", v->err);
    if (r < 0)
        return r;
    if ((r = get(v, root, "model", &v->model)) < 0 || (r = get(v, root, "added_tokens", &v->added)) < 0)
        return r;
    if (!v->model.s || (get(v, v->model, "type", &x) == 1 && !json_view_is(x, "BPE")))
        return refuse(v, "model.type", "is not BPE");
    if ((r = get_bool(v, v->model, "byte_fallback", &v->spm)) < 0 || (r = get(v, v->model, "merges", &v->merges)) < 0)
        return r;
    if (!v->merges.s || json_view_kind(v->merges) != '[')
        return refuse(v, "model.merges", "is no list");
    if (v->added.s && json_view_kind(v->added) != '[')
        return refuse(v, "added_tokens", "is no list");

    model = v->spm ? "llama" : "gpt2";
    keys_string(v->k, "tokenizer.ggml.model", model, strlen(model));
    if ((r = v->spm ? write_spm_spaces(v, root) : check_normalizer(v, root)) < 0 ||
        (r = v->spm ? 0 : write_pre(v, root)) < 0 || (r = write_added(v, root, hints->config)) < 0 ||
        (r = place_tokens(v, hints->n_rows)) < 0 || (r = write_tokens(v)) < 0 ||
        (r = v->spm ? write_scores(v) : write_merges(v)) < 0)
        return r;
    write_types(v);
    return v->k->error ? -ENOMEM : 0;
}

int vocabulary_read(struct keys *k, const void *data, size_t size, const struct vocabulary_hints *hints,
                    struct err *err)
{
    struct reader *v = calloc(1, sizeof(*v));
    int r;

    if (!v)
        return -ENOMEM;
    v->k = k;
    v->err = err;
    v->text = data;
    r = read_all(v, data, size, hints);
    free(v->at);
    free(v->types);
    free(v->written);
    free(v->lens);
    free(v->order);
    free(v);
    return r;
}
