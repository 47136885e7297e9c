/* Reads a vocabulary from a GGUF's tokenizer.ggml.* keys, with every count and id checked. Token bytes are unmapped from
 * GPT-2's printable alphabet, or from SentencePiece's U+2581, once, here. Patterns as published with each vocabulary. */
#include "engine/tokenizer.h"

#include <math.h>

#define MAX_TOKENS (1u << 22)
#define MAX_MERGES (1u << 24)

/* GPT-2's alphabet: printable bytes stand for themselves, the other 68, in order, for U+0100 and up. */
static void alphabet(int16_t byte_of[0x144])
{
    int next = 0x100;

    memset(byte_of, 0xff, 0x144 * sizeof(*byte_of));
    for (int b = 0; b < 256; b++) {
        bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        byte_of[printable ? b : next++] = (int16_t)b;
    }
}

/* What a name of the byte-level alphabet stands for; characters outside it stay. out holds len bytes. */
static size_t unmap(const int16_t byte_of[0x144], const char *s, size_t len, char *out)
{
    size_t n = 0;

    for (size_t i = 0; i < len;) {
        uint32_t cp = 0;
        int k = utf8_scan(s + i, len - i, &cp);
        if (k > 0 && cp < 0x144 && byte_of[cp] >= 0) {
            out[n++] = (char)byte_of[cp];
        } else {
            k = k > 0 ? k : 1;
            memcpy(out + n, s + i, (size_t)k);
            n += (size_t)k;
        }
        i += (size_t)k;
    }
    return n;
}

static size_t unmap_spaces(const char *s, size_t len, char *out)
{
    size_t n = 0;

    for (size_t i = 0; i < len;) {
        bool space = len - i >= 3 && memcmp(s + i, "\u2581", 3) == 0;
        out[n++] = space ? ' ' : s[i];
        i += space ? 3 : 1;
    }
    return n;
}

/* The value of "<0x41>", or -1. */
static int byte_value(const struct str *name)
{
    static const char digits[] = "0123456789ABCDEF0123456789abcdef";
    const char *hi, *lo;

    if (name->len != 6 || memcmp(name->s, "<0x", 3) != 0 || name->s[5] != '>')
        return -1;
    hi = memchr(digits, name->s[3], 32);
    lo = memchr(digits, name->s[4], 32);
    return hi && lo ? (int)((hi - digits) % 16 * 16 + (lo - digits) % 16) : -1;
}

/* Copies the vocabulary: names, and behind each the bytes it stands for, which are never more. */
static int load_tokens(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    int16_t byte_of[0x144];
    uint64_t n, n_types;
    size_t total = 0;
    char *p;
    int r;

    r = gguf_get_array(g, "tokenizer.ggml.tokens", GGUF_STRING, &n, err);
    if (r < 0)
        return r;
    if (r == 0 || n == 0 || n > MAX_TOKENS)
        return err_set(err, -EINVAL, "tokenizer.ggml.tokens: expected 1 to %u strings", MAX_TOKENS);
    r = gguf_get_array(g, "tokenizer.ggml.token_type", GGUF_I32, &n_types, err);
    if (r < 0)
        return r;
    if (r == 0)
        n_types = 0;
    else if (n_types != n)
        return err_set(err, -EINVAL, "tokenizer.ggml.token_type: %llu entries for %llu tokens",
                       (unsigned long long)n_types, (unsigned long long)n);

    t->n = n;
    for (size_t i = 0; i < n; i++) {
        size_t len = gguf_array_string(g, "tokenizer.ggml.tokens", i).len;
        if (len > UINT16_MAX)
            return err_set(err, -EINVAL, "tokenizer.ggml.tokens: entry %zu is %zu bytes long", i, len);
        total += 2 * len + 1;
    }
    t->names = calloc(n, sizeof(*t->names));
    t->pieces = calloc(n, sizeof(*t->pieces));
    t->types = calloc(n, sizeof(*t->types));
    t->ends = calloc(n, sizeof(*t->ends));
    p = t->blob = malloc(total);
    if (!t->names || !t->pieces || !t->types || !t->ends || !t->blob)
        return -ENOMEM;

    alphabet(byte_of);
    for (size_t i = 0; i < n; i++) {
        struct gguf_string s = gguf_array_string(g, "tokenizer.ggml.tokens", i);
        double type = n_types ? gguf_array_number(g, "tokenizer.ggml.token_type", i) : TOKEN_NORMAL;
        int value;

        if (!(type >= TOKEN_NORMAL && type <= TOKEN_BYTE))
            return err_set(err, -EINVAL, "tokenizer.ggml.token_type: entry %zu is not 1 to 6", i);
        t->types[i] = (uint8_t)type;
        memcpy(p, s.data, s.len);
        p[s.len] = '\0';
        t->names[i] = (struct str){ p, (uint32_t)s.len };
        p += s.len + 1;

        value = byte_value(&t->names[i]);
        if (t->types[i] == TOKEN_BYTE && value < 0)
            return err_set(err, -EINVAL, "tokenizer.ggml.tokens: entry %zu, a byte, is not <0x00> to <0xFF>", i);
        if (!n_types && t->spm && value >= 0)
            t->types[i] = TOKEN_BYTE;

        t->pieces[i] = (struct str){ p, (uint32_t)s.len };
        if (t->types[i] == TOKEN_BYTE) {
            *p = (char)value;
            t->pieces[i].len = 1;
        } else if (t->types[i] == TOKEN_USER) {
            memcpy(p, s.data, s.len);
        } else {
            t->pieces[i].len = (uint32_t)(t->spm ? unmap_spaces(s.data, s.len, p) : unmap(byte_of, s.data, s.len, p));
        }
        p += t->pieces[i].len;
    }
    return 0;
}

/* Read an id; -1 where absent. */
static int load_id(const struct tokenizer *t, const struct gguf *g, const char *key, int32_t *ret, struct err *err)
{
    uint64_t id;
    int r = gguf_get_u64(g, key, &id, err);

    if (r < 0)
        return r;
    if (r > 0 && id >= t->n)
        return err_set(err, -EINVAL, "%s: %llu is not below the %zu tokens", key, (unsigned long long)id, t->n);
    *ret = r > 0 ? (int32_t)id : -1;
    return 0;
}

static int load_flag(const struct gguf *g, const char *key, bool *flag, struct err *err)
{
    bool value;
    int r = gguf_get_bool(g, key, &value, err);

    if (r > 0)
        *flag = value;
    return MIN(r, 0);
}

/* The list that generation_config.json has, as huggingface.c writes it. */
static int load_end_list(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    static const char key[] = "tern.end_token_ids";
    uint64_t n = 0;
    int r = gguf_get_array(g, key, GGUF_I32, &n, err);

    for (uint64_t i = 0; i < n; i++) {
        double id = gguf_array_number(g, key, i);
        if (!(id >= 0 && id < (double)t->n))
            return err_set(err, -EINVAL, "%s: %.0f is not below the %zu tokens", key, id, t->n);
        t->ends[(size_t)id] = true;
    }
    return MIN(r, 0);
}

static int load_ids(struct tokenizer *t, const struct gguf *g, bool add_bos, struct err *err)
{
    static const char *const end_keys[] = {
        "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id",
    };
    static const char *const end_names[] = {
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>",
        "<|end_of_text|>",
    };
    int32_t id, padding;
    bool add_eos = false;
    int r;

    for (size_t i = 0; i < ARRAY_SIZE(end_keys); i++) {
        r = load_id(t, g, end_keys[i], &id, err);
        if (r < 0)
            return r;
        if (id >= 0)
            t->ends[id] = true;
        if (i == 0)
            t->eos = id;
    }
    r = load_end_list(t, g, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < ARRAY_SIZE(end_names); i++) {
        id = tokenizer_find(t, end_names[i]);
        if (id >= 0)
            t->ends[id] = true;
    }
    r = load_id(t, g, "tokenizer.ggml.bos_token_id", &t->bos, err);
    if (r < 0)
        return r;
    r = load_id(t, g, "tokenizer.ggml.unknown_token_id", &t->unknown, err);
    if (r < 0)
        return r;
    r = load_id(t, g, "tokenizer.ggml.padding_token_id", &padding, err);
    if (r < 0)
        return r;
    r = load_flag(g, "tokenizer.ggml.add_bos_token", &add_bos, err);
    if (r == 0)
        r = load_flag(g, "tokenizer.ggml.add_eos_token", &add_eos, err);
    if (r < 0)
        return r;

    /* Files exist that call these normal; then a user could write them. */
    for (size_t i = 0; i < t->n; i++)
        if ((t->ends[i] || (int32_t)i == t->bos) && t->names[i].s[0] == '<' && t->types[i] == TOKEN_NORMAL)
            t->types[i] = TOKEN_CONTROL;
    if (!add_bos)
        t->bos = -1;
    if (!add_eos)
        t->eos = -1;
    return 0;
}

static int longer_first(const void *a, const void *b, void *names)
{
    const struct str *strs = names;
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;

    return strs[x].len != strs[y].len ? (strs[x].len < strs[y].len ? 1 : -1) : (x > y) - (x < y);
}

/* The lookups that follow from the tokens and their types. */
static int index_tokens(struct tokenizer *t)
{
    int r = str_table_init(&t->by_text, t->n);
    if (r < 0)
        return r;
    t->specials = calloc(t->n, sizeof(*t->specials));
    if (!t->specials)
        return -ENOMEM;

    memset(t->bytes, 0xff, sizeof(t->bytes));
    for (size_t i = 0; i < t->n; i++) {
        const struct str *piece = &t->pieces[i];
        if (piece->len == 1 && t->types[i] == (t->spm ? TOKEN_BYTE : TOKEN_NORMAL) && t->bytes[(uint8_t)*piece->s] < 0)
            t->bytes[(uint8_t)*piece->s] = (int32_t)i;
        if (t->types[i] == TOKEN_NORMAL && tokenizer_texts(t)[i].len)
            str_table_add(&t->by_text, tokenizer_texts(t), (int32_t)i);
        if ((t->types[i] == TOKEN_CONTROL || t->types[i] == TOKEN_USER) && t->names[i].len) {
            t->specials[t->n_specials++] = (int32_t)i;
            t->special_first[(uint8_t)*t->names[i].s] = true;
        }
    }
    qsort_r(t->specials, t->n_specials, sizeof(*t->specials), longer_first, t->names);
    return 0;
}

static int load_merges(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    static const char key[] = "tokenizer.ggml.merges";
    int16_t byte_of[0x144];
    uint64_t n;
    int r;

    r = gguf_get_array(g, key, GGUF_STRING, &n, err);
    if (r < 0)
        return r;
    if (r == 0 || n > MAX_MERGES)
        return err_set(err, -EINVAL, "%s: expected at most %u strings", key, MAX_MERGES);
    t->merges_mask = str_table_mask(n);
    t->merges = malloc((t->merges_mask + 1) * sizeof(*t->merges));
    if (!t->merges)
        return -ENOMEM;
    for (size_t i = 0; i <= t->merges_mask; i++)
        t->merges[i].pair = NO_PAIR;

    alphabet(byte_of);
    for (uint32_t i = 0; i < n; i++) {
        struct gguf_string s = gguf_array_string(g, key, i);
        const char *space = s.len > 1 ? memchr(s.data + 1, ' ', s.len - 1) : NULL;
        char text[1024];
        int32_t left, right, id;
        struct merge *m;
        size_t a, b;

        if (!space || s.len > sizeof(text))
            return err_set(err, -EINVAL, "%s: entry %u is not two tokens", key, i);
        a = unmap(byte_of, s.data, (size_t)(space - s.data), text);
        b = unmap(byte_of, space + 1, s.len - 1 - (size_t)(space - s.data), text + a);
        left = tokenizer_find_text(t, text, a);
        right = tokenizer_find_text(t, text + a, b);
        id = tokenizer_find_text(t, text, a + b);
        if (left < 0 || right < 0 || id < 0)
            return err_set(err, -EINVAL, "%s: entry %u uses or makes a piece that is not a token", key, i);
        m = tokenizer_find_merge(t, left, right);
        if (m->pair == NO_PAIR)       /* of two equal merges the first counts */
            *m = (struct merge){ (uint64_t)(uint32_t)left << 32 | (uint32_t)right, i, id };
    }
    return 0;
}

static int load_scores(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    static const char key[] = "tokenizer.ggml.scores";
    uint64_t n;
    int r;

    r = gguf_get_array(g, key, GGUF_F32, &n, err);
    if (r < 0)
        return r;
    if (r == 0 || n != t->n)
        return err_set(err, -EINVAL, "%s: expected one for each of the %zu tokens", key, t->n);
    t->ranks = calloc(t->n, sizeof(*t->ranks));
    if (!t->ranks)
        return -ENOMEM;
    for (size_t i = 0; i < t->n; i++) {
        /* Adding zero makes -0 equal 0. */
        union { float f; uint32_t u; } v = { .f = (float)gguf_array_number(g, key, i) + 0.0f };
        if (!isfinite(v.f))
            return err_set(err, -EINVAL, "%s: entry %zu is not a number", key, i);
        /* IEEE order as unsigned order, highest score first. */
        t->ranks[i] = v.u >> 31 ? v.u : 0x7fffffffu - v.u;
    }
    return 0;
}

/* White_Space of Unicode written out: PCRE2's own \s counts U+180E, which is none since Unicode 6.3. */
#define WS "\\t-\\r \\x{85}\\p{Z}"
#define LLAMA3(digits) \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*|" \
    "[" WS "]*[\\r\\n]+|[" WS "]+(?![^" WS "])|[" WS "]+"

static const struct { const char *name, *regex; bool llama3; } pre_tokenizers[] = {
    { "llama-bpe", LLAMA3("\\p{N}{1,3}"), true },
    { "llama3",    LLAMA3("\\p{N}{1,3}"), true },
    { "llama-v3",  LLAMA3("\\p{N}{1,3}"), true },
    { "falcon3",   LLAMA3("\\p{N}{1,3}"), true },
    { "falcon_e",  LLAMA3("\\p{N}{1,3}"), true },
    { "qwen2",     LLAMA3("\\p{N}"),      false },
    { "gpt-2",     "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" WS "\\p{L}\\p{N}]+|"
                   "[" WS "]+(?![^" WS "])|[" WS "]+", false },
};

/* Chooses and compiles the pre-tokenizer; *ret_llama3: the vocabulary behaves as Llama 3's in other ways too. */
static int load_regex(struct tokenizer *t, const struct gguf *g, bool *ret_llama3, struct err *err)
{
    struct gguf_string pre;
    PCRE2_SIZE offset;
    int r, code;

    r = gguf_get_string(g, "tokenizer.ggml.pre", &pre, err);
    if (r < 0)
        return r;
    /* The official 2B4T file and Falcon 3's early ones lack the key; their sizes tell them. */
    if (r == 0)
        pre = t->n == 128256 || t->n == 131072 ? (struct gguf_string){ "llama-bpe", 9 }
                                               : (struct gguf_string){ "gpt-2", 5 };

    for (size_t i = 0; i < ARRAY_SIZE(pre_tokenizers); i++) {
        if (strlen(pre_tokenizers[i].name) != pre.len || memcmp(pre_tokenizers[i].name, pre.data, pre.len) != 0)
            continue;
        t->regex = pcre2_compile((PCRE2_SPTR)pre_tokenizers[i].regex, PCRE2_ZERO_TERMINATED,
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &code, &offset, NULL);
        if (!t->regex)
            return err_set(err, -ENOMEM, "tokenizer.ggml.pre: pattern %s does not compile", pre_tokenizers[i].name);
        /* Where executable memory is denied the interpreter does the same, slower. */
        pcre2_jit_compile(t->regex, PCRE2_JIT_COMPLETE);
        *ret_llama3 = pre_tokenizers[i].llama3;
        return 0;
    }
    return err_set(err, -EINVAL, "tokenizer.ggml.pre: \"%.*s\" is not supported", (int)MIN(pre.len, 64), pre.data);
}

int tokenizer_load(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    struct gguf_string model;
    bool llama3 = false;
    int r;

    r = gguf_get_string(g, "tokenizer.ggml.model", &model, err);
    if (r < 0)
        return r;
    if (r == 0)
        return err_set(err, -EINVAL, "tokenizer.ggml.model: missing");
    t->spm = model.len == 5 && memcmp(model.data, "llama", 5) == 0;
    if (!t->spm && !(model.len == 4 && memcmp(model.data, "gpt2", 4) == 0))
        return err_set(err, -EINVAL, "tokenizer.ggml.model: \"%.*s\" is not supported",
                       (int)MIN(model.len, 64), model.data);

    r = load_tokens(t, g, err);
    if (r < 0)
        return r;
    r = str_table_init(&t->by_name, t->n);
    if (r < 0)
        return r;
    for (size_t i = 0; i < t->n; i++)
        str_table_add(&t->by_name, t->names, (int32_t)i);
    if (!t->spm) {
        r = load_regex(t, g, &llama3, err);
        if (r < 0)
            return r;
        t->ignore_merges = llama3;
    }
    r = load_ids(t, g, t->spm || llama3, err);
    if (r < 0)
        return r;
    r = index_tokens(t);
    if (r < 0)
        return r;
    if (!t->spm)
        return load_merges(t, g, err);

    t->space_prefix = true;
    r = load_flag(g, "tokenizer.ggml.add_space_prefix", &t->space_prefix, err);
    if (r < 0)
        return r;
    return load_scores(t, g, err);
}
