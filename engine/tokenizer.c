/* Text to token ids and back, from a GGUF's tokenizer.ggml.* keys.
 *
 * Two kinds of vocabulary share one merge loop. "gpt2" is byte-level BPE: a regular expression cuts the text into
 * words, a word starts as its bytes, and the pair with the lowest rank in the list of merges is joined first. "llama"
 * is SentencePiece BPE: the whole text, spaces written as U+2581, starts as its characters, and the pair whose
 * concatenation is the token with the highest score is joined first. In both the leftmost pair wins a tie. Pairs wait
 * in a heap, and a pair one of whose sides has changed meanwhile is known by its length, so a word of n bytes costs
 * O(n log n) however it was chosen.
 *
 * A token that is not of type normal is never the result of a merge: text yields the special tokens only where
 * parse_special asks for them. Token bytes are unmapped from GPT-2's printable alphabet once, at load.
 *
 * Not done: the NFC normalisation of Qwen, so its ids are exact for text already in that form. Sources: byte-level BPE
 * of GPT-2, arXiv:1508.07909; SentencePiece, arXiv:1808.06226; patterns as published with each vocabulary. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <errno.h>
#include <math.h>
#include <pcre2.h>
#include <string.h>

#include "engine/internal.h"
#include "engine/utf8.h"

#define MAX_TOKENS (1u << 22)
#define MAX_MERGES (1u << 24)
#define MAX_TEXT   (1u << 28)

enum token_type { TOKEN_NORMAL = 1, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER, TOKEN_UNUSED, TOKEN_BYTE };

struct str { const char *s; uint32_t len; };

/* Strings by content: open addressing over ids, at most half full; -1 is an empty slot. */
struct table { int32_t *slots; uint32_t mask; };

/* Pairs of ids by content, open addressing, at most half full. */
struct merge { uint64_t pair; uint32_t rank; int32_t id; };
#define NO_PAIR UINT64_MAX

struct tokenizer {
    size_t n;
    bool spm;                         /* else byte-level */
    bool ignore_merges;               /* a whole word that is a token is that token */
    bool space_prefix;                /* spm: the text begins with a space */
    struct str *names, *pieces;       /* as in the vocabulary; as bytes of text */
    uint8_t *types;
    bool *ends;
    uint32_t *ranks;                  /* spm: order of the scores, best lowest */
    char *blob;                       /* what names and pieces point into */
    struct table by_name;             /* every token */
    struct table by_text;             /* normal tokens by what the merge loop sees: pieces, or names for spm */
    struct merge *merges;
    uint32_t merges_mask;
    int32_t bytes[256];               /* the token of a single byte, or -1 */
    int32_t bos, unknown;
    int32_t *specials;                /* control and user tokens, longest first */
    size_t n_specials;
    bool special_first[256];          /* bytes a special token can begin with */
    pcre2_code *regex;
};

int tokens_push(struct tokens *t, int32_t id)
{
    if (t->len == t->cap) {
        size_t cap = MAX(64, t->cap * 2);
        int32_t *ids = reallocarray(t->ids, cap, sizeof(*ids));
        if (!ids)
            return -ENOMEM;
        t->ids = ids;
        t->cap = cap;
    }
    t->ids[t->len++] = id;
    return 0;
}

void tokens_done(struct tokens *t)
{
    free(t->ids);
    *t = (struct tokens){ 0 };
}

static uint64_t mix(uint64_t h)
{
    h = (h ^ h >> 32) * 0xd6e8feb86659fd93u;
    return (h ^ h >> 32) * 0xd6e8feb86659fd93u;
}

static uint64_t hash(const char *s, size_t len)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (size_t i = 0; i < len; i++)
        h = (h ^ (uint8_t)s[i]) * 0x100000001b3u;
    return mix(h) >> 20;
}

/* The smallest power of two that n entries fill at most by half, less one. */
static uint32_t table_mask(size_t n)
{
    uint32_t size = 16;

    while (size < 2 * n)
        size *= 2;
    return size - 1;
}

static int table_init(struct table *t, size_t n)
{
    t->mask = table_mask(n);
    t->slots = malloc((t->mask + 1) * sizeof(*t->slots));
    if (!t->slots)
        return -ENOMEM;
    memset(t->slots, 0xff, (t->mask + 1) * sizeof(*t->slots));
    return 0;
}

/* The slot that holds the string, or the empty one where it belongs. */
static int32_t *table_slot(const struct table *t, const struct str *strs, const char *s, size_t len)
{
    for (uint64_t i = hash(s, len);; i++) {
        int32_t *slot = &t->slots[i & t->mask];
        if (*slot < 0 || (strs[*slot].len == len && memcmp(strs[*slot].s, s, len) == 0))
            return slot;
    }
}

static void table_add(struct table *t, const struct str *strs, int32_t id)
{
    int32_t *slot = table_slot(t, strs, strs[id].s, strs[id].len);

    if (*slot < 0)                    /* of two equal entries the first counts */
        *slot = id;
}

static const struct str *texts(const struct tokenizer *t)
{
    return t->spm ? t->names : t->pieces;
}

static int32_t find_text(const struct tokenizer *t, const char *s, size_t len)
{
    return *table_slot(&t->by_text, texts(t), s, len);
}

static struct merge *find_merge(const struct tokenizer *t, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;

    for (uint64_t i = mix(pair) >> 20;; i++) {
        struct merge *m = &t->merges[i & t->merges_mask];
        if (m->pair == pair || m->pair == NO_PAIR)
            return m;
    }
}

/* ---- loading ---- */

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
    int r;

    for (size_t i = 0; i < ARRAY_SIZE(end_keys); i++) {
        r = load_id(t, g, end_keys[i], &id, err);
        if (r < 0)
            return r;
        if (id >= 0)
            t->ends[id] = true;
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
    if (r < 0)
        return r;

    /* Files exist that call these normal; then a user could write them. */
    for (size_t i = 0; i < t->n; i++)
        if ((t->ends[i] || (int32_t)i == t->bos) && t->names[i].s[0] == '<' && t->types[i] == TOKEN_NORMAL)
            t->types[i] = TOKEN_CONTROL;
    if (!add_bos)
        t->bos = -1;
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
    int r = table_init(&t->by_text, t->n);
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
        if (t->types[i] == TOKEN_NORMAL && texts(t)[i].len)
            table_add(&t->by_text, texts(t), (int32_t)i);
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
    t->merges_mask = table_mask(n);
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
        left = find_text(t, text, a);
        right = find_text(t, text + a, b);
        id = find_text(t, text, a + b);
        if (left < 0 || right < 0 || id < 0)
            return err_set(err, -EINVAL, "%s: entry %u uses or makes a piece that is not a token", key, i);
        m = find_merge(t, left, right);
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

static int load(struct tokenizer *t, const struct gguf *g, struct err *err)
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
    r = table_init(&t->by_name, t->n);
    if (r < 0)
        return r;
    for (size_t i = 0; i < t->n; i++)
        table_add(&t->by_name, t->names, (int32_t)i);
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

int tokenizer_new(struct tokenizer **ret, const struct gguf *g, struct err *err)
{
    struct tokenizer *t = calloc(1, sizeof(*t));
    int r;

    if (!t)
        return -ENOMEM;
    r = load(t, g, err);
    if (r < 0) {
        tokenizer_free(t);
        return r;
    }
    *ret = t;
    return 0;
}

void tokenizer_free(struct tokenizer *t)
{
    if (!t)
        return;
    free(t->names);
    free(t->pieces);
    free(t->types);
    free(t->ends);
    free(t->ranks);
    free(t->blob);
    free(t->by_name.slots);
    free(t->by_text.slots);
    free(t->merges);
    free(t->specials);
    pcre2_code_free(t->regex);
    free(t);
}

/* ---- encoding ---- */

/* A piece of the word being merged, kept at the index of its first byte. */
struct node { uint32_t prev, next, len; int32_t id; };
#define NO_NODE UINT32_MAX

/* A possible merge of the piece at `at` with its right neighbour. Stale when their length is no longer `len`. */
struct candidate { uint32_t rank, at, len; int32_t id; };

struct encoder {
    const struct tokenizer *t;
    struct tokens *out;
    pcre2_match_data *match;
    struct node *nodes;
    size_t cap_nodes;
    struct candidate *heap;
    size_t n_heap, cap_heap;
};

static void encoder_done(struct encoder *e)
{
    pcre2_match_data_free(e->match);
    free(e->nodes);
    free(e->heap);
}

static bool before(const struct candidate *a, const struct candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static int heap_push(struct encoder *e, struct candidate c)
{
    size_t i = e->n_heap;

    if (i == e->cap_heap) {
        size_t cap = MAX(256, e->cap_heap * 2);
        struct candidate *heap = reallocarray(e->heap, cap, sizeof(*heap));
        if (!heap)
            return -ENOMEM;
        e->heap = heap;
        e->cap_heap = cap;
    }
    e->n_heap++;
    for (; i && before(&c, &e->heap[(i - 1) / 2]); i = (i - 1) / 2)
        e->heap[i] = e->heap[(i - 1) / 2];
    e->heap[i] = c;
    return 0;
}

static struct candidate heap_pop(struct encoder *e)
{
    struct candidate top = e->heap[0], last = e->heap[--e->n_heap];
    size_t i = 0;

    for (size_t child; (child = 2 * i + 1) < e->n_heap; i = child) {
        if (child + 1 < e->n_heap && before(&e->heap[child + 1], &e->heap[child]))
            child++;
        if (!before(&e->heap[child], &last))
            break;
        e->heap[i] = e->heap[child];
    }
    e->heap[i] = last;
    return top;
}

/* Note the merge of the piece at `at` with the next one, if there is such a merge. */
static int propose(struct encoder *e, const char *text, uint32_t at)
{
    const struct tokenizer *t = e->t;
    const struct node *a = &e->nodes[at], *b;
    struct candidate c = { .at = at };

    if (a->next == NO_NODE)
        return 0;
    b = &e->nodes[a->next];
    c.len = a->len + b->len;
    if (t->spm) {
        c.id = find_text(t, text + at, c.len);
        if (c.id < 0)
            return 0;
        c.rank = t->ranks[c.id];
    } else {
        const struct merge *m;
        if (a->id < 0 || b->id < 0)
            return 0;
        m = find_merge(t, a->id, b->id);
        if (m->pair == NO_PAIR)
            return 0;
        c.id = m->id;
        c.rank = m->rank;
    }
    return heap_push(e, c);
}

static int emit(struct encoder *e, const char *text, const struct node *n)
{
    const struct tokenizer *t = e->t;
    int r = 0;

    if (n->id >= 0)
        return tokens_push(e->out, n->id);
    for (uint32_t i = 0; i < n->len && r == 0; i++) {
        int32_t id = t->bytes[(uint8_t)text[i]];
        if (id < 0 && t->unknown >= 0)
            return tokens_push(e->out, t->unknown);
        r = id < 0 ? -EINVAL : tokens_push(e->out, id);
    }
    return r;
}

/* The merge loop over one word. */
static int encode_word(struct encoder *e, const char *text, size_t len)
{
    const struct tokenizer *t = e->t;
    uint32_t prev = NO_NODE;
    int r;

    if (t->ignore_merges) {
        int32_t id = find_text(t, text, len);
        if (id >= 0)
            return tokens_push(e->out, id);
    }
    if (len > e->cap_nodes) {
        size_t cap = MAX(256, len + len / 2);
        struct node *nodes = reallocarray(e->nodes, cap, sizeof(*nodes));
        if (!nodes)
            return -ENOMEM;
        e->nodes = nodes;
        e->cap_nodes = cap;
    }
    for (uint32_t i = 0, k; i < len; i += k) {
        int scanned = t->spm ? utf8_scan(text + i, len - i, NULL) : 1;
        k = scanned > 0 ? (uint32_t)scanned : 1;
        e->nodes[i] = (struct node){ .prev = prev, .next = NO_NODE, .len = k,
                                     .id = t->spm ? find_text(t, text + i, k) : t->bytes[(uint8_t)text[i]] };
        if (prev != NO_NODE)
            e->nodes[prev].next = i;
        prev = i;
    }

    e->n_heap = 0;
    for (uint32_t i = 0; i != NO_NODE; i = e->nodes[i].next) {
        r = propose(e, text, i);
        if (r < 0)
            return r;
    }
    while (e->n_heap) {
        struct candidate c = heap_pop(e);
        struct node *a = &e->nodes[c.at];

        if (!a->len || a->next == NO_NODE || a->len + e->nodes[a->next].len != c.len)
            continue;
        e->nodes[a->next].len = 0;    /* gone: what was proposed there is stale */
        a->len = c.len;
        a->id = c.id;
        a->next = e->nodes[a->next].next;
        if (a->next != NO_NODE)
            e->nodes[a->next].prev = c.at;
        r = propose(e, text, c.at);
        if (r == 0 && a->prev != NO_NODE)
            r = propose(e, text, a->prev);
        if (r < 0)
            return r;
    }
    for (uint32_t i = 0; i != NO_NODE; i = e->nodes[i].next) {
        r = emit(e, text + i, &e->nodes[i]);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Byte-level: cut valid UTF-8 into words; a byte that is no part of a character is a word of its own. */
static int encode_words(struct encoder *e, const char *text, size_t len)
{
    size_t end = 0;
    int r;

    for (size_t at = 0, word; at < len; at += word) {
        if (at == end) {              /* find the next stretch that PCRE2 may read */
            int k;
            while (end < len && (k = utf8_scan(text + end, len - end, NULL)) > 0)
                end += (size_t)k;
        }
        if (at == end) {
            word = 1;
            end++;
        } else {
            r = pcre2_match(e->t->regex, (PCRE2_SPTR)text, end, at, PCRE2_NO_UTF_CHECK, e->match, NULL);
            if (r < 0 && r != PCRE2_ERROR_NOMATCH)
                return r == PCRE2_ERROR_NOMEMORY ? -ENOMEM : -EINVAL;
            word = r < 0 ? 0 : pcre2_get_ovector_pointer(e->match)[1] - at;
            if (!word)                /* the patterns leave nothing out; a character is a safe step if one did */
                word = (size_t)utf8_scan(text + at, end - at, NULL);
        }
        r = encode_word(e, text + at, word);
        if (r < 0)
            return r;
    }
    return 0;
}

/* SentencePiece: spaces become U+2581 and the whole text is one word. */
static int encode_sentence(struct encoder *e, const char *text, size_t len)
{
    cleanup(freep) char *s = NULL;
    size_t n = 0;

    s = malloc(3 * (len + 1));
    if (!s)
        return -ENOMEM;
    if (e->t->space_prefix)
        n = (size_t)(stpcpy(s, "\u2581") - s);
    for (size_t i = 0; i < len; i++) {
        if (text[i] == ' ')
            memcpy(s + n, "\u2581", 3);
        else
            s[n] = text[i];
        n += text[i] == ' ' ? 3 : 1;
    }
    return encode_word(e, s, n);
}

static int encode_plain(struct encoder *e, const char *text, size_t len)
{
    if (!len)
        return 0;
    return e->t->spm ? encode_sentence(e, text, len) : encode_words(e, text, len);
}

/* The special token the text begins with, the longest, or -1. */
static int32_t special_at(const struct tokenizer *t, const char *text, size_t len)
{
    if (!t->special_first[(uint8_t)*text])
        return -1;
    for (size_t i = 0; i < t->n_specials; i++) {
        const struct str *name = &t->names[t->specials[i]];
        if (name->len <= len && memcmp(name->s, text, name->len) == 0)
            return t->specials[i];
    }
    return -1;
}

static int encode(struct encoder *e, const char *text, size_t len, bool parse_special)
{
    size_t start = 0;
    int r;

    for (size_t i = 0; parse_special && i < len;) {
        int32_t id = special_at(e->t, text + i, len - i);
        if (id < 0) {
            i++;
            continue;
        }
        r = encode_plain(e, text + start, i - start);
        if (r == 0)
            r = tokens_push(e->out, id);
        if (r < 0)
            return r;
        start = i += e->t->names[id].len;
    }
    return encode_plain(e, text + start, len - start);
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, bool parse_special, struct tokens *out)
{
    cleanup(encoder_done) struct encoder e = { .t = t, .out = out };
    size_t kept = out->len;
    int r;

    if (len > MAX_TEXT)
        return -EINVAL;
    e.match = pcre2_match_data_create(1, NULL);
    if (!e.match)
        return -ENOMEM;
    r = encode(&e, text, len, parse_special);
    if (r < 0)
        out->len = kept;
    return r;
}

/* ---- the rest ---- */

const char *tokenizer_piece(const struct tokenizer *t, int32_t id, size_t *ret_len)
{
    bool shown = t->types[id] != TOKEN_CONTROL && t->types[id] != TOKEN_UNKNOWN;

    *ret_len = shown ? t->pieces[id].len : 0;
    return t->pieces[id].s;
}

const char *tokenizer_name(const struct tokenizer *t, int32_t id)
{
    return t->names[id].s;
}

int32_t tokenizer_find(const struct tokenizer *t, const char *token)
{
    return *table_slot(&t->by_name, t->names, token, strlen(token));
}

size_t tokenizer_size(const struct tokenizer *t)
{
    return t->n;
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

bool tokenizer_is_end(const struct tokenizer *t, int32_t id)
{
    return t->ends[id];
}
