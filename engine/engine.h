/* The engine: a local ternary language model, run in its own process.
 *
 * ternd talks to the worker in frames (base/frame.h) over one socketpair; the frame's id is the request's number. The
 * worker opens no file but the model and no socket at all; the file of repacked weights, which it may write, comes to it open.
 * One thread decodes for all sessions in turn (a chunk of prefill or one token for each, then a look at the socket), so a
 * cancel takes effect within one step; a pool of threads shares the rows of each product. */
#pragma once

#include "base/buf.h"
#include "base/chat.h"
#include "base/err.h"
#include "base/frame.h"

enum kv_type { KV_F16, KV_INT8, KV_F32 };     /* what keys and values are remembered as */
enum ffn_act { ACT_BY_MODEL, ACT_RELU2, ACT_SILU, ACT_GELU };

/* What to run; borrowed for the worker's life. */
struct engine_config {
    const char *model_path;      /* a GGUF file, or NULL for the model in memory below */
    const void *model_data;      /* an embedded model, read-only */
    size_t model_bytes;
    unsigned threads;            /* 0: all cores this process may use, at most 8 */
    unsigned context;            /* tokens a session may hold, 0: the model's own limit */
    unsigned sessions;           /* requests decoded side by side; more wait in ternd */
    size_t kv_bytes;             /* memory for keys and values of all of them and of prefixes; 0: a quarter of all */
    size_t prefix_bytes;         /* of that, for what was read before; 0: nothing is kept */
    bool draft;                  /* guess tokens where that is faster */
    bool draft_always;           /* and where it is not, for tests */
    unsigned max_tokens;         /* new tokens where the client gave none; 0: what the context leaves */
    double temperature;          /* where the client gave none */
    double top_p;
    enum kv_type kv;
    int cache_fd;                /* engine_cache_open()'s, borrowed; 0 or less: none */
    bool weight_only;            /* activations are not quantised, for checkpoints that were trained so */
    char i2s_layout;             /* of I2_S tensors: 'a' (0 too), 'b' or 'c' */
    enum ffn_act activation;     /* of the feed-forward network */
    const char *template;        /* what stands around messages, engine_template_check(); NULL or "auto": by the model */
};

/* Open the file in `dir`, made where it is missing, that keeps the weights of the model at `model_path` as this machine's
 * kernels read them, for engine_config.cache_fd. Files kept of earlier states of that model are taken away, and the oldest
 * of more than eight. To be called before the process gives up making files. The descriptor, or -errno with *err; of a model
 * of several files -ENOTSUP. */
int engine_cache_open(const char *dir, const char *model_path, struct err *err);

/* Run the worker on the socket `fd` until the peer closes it. Returns the process's exit status: 0 after a clean end,
 * 2 when the model could not be loaded (the reason was sent as ENGINE_FAILED and logged). */
int engine_worker_main(int fd, const struct engine_config *cfg);

/* Is it "auto", a template's name or a template's text (engine/template.c)? 0, or -EINVAL with *err saying what was
 * expected where. Whether a vocabulary has its control tokens is known when the model is loaded. */
int engine_template_check(const char *text, struct err *err);

/* Can answers be held to this JSON Schema (docs/model-metadata.md)? Needs no model. `path` is what the schema is called
 * in words, such as "response_format.json_schema.schema". 0, -ENOMEM, or -EINVAL with *err naming path and keyword. Its
 * time is bounded, whatever the schema: at most some tens of milliseconds. */
int engine_schema_check(const json_t *schema, const char *path, struct err *err);
/* The same for a whole request: its format, and its tools unless they may not be called. */
int engine_answer_check(const struct chat_request *r, struct err *err);

enum engine_frame {
    /* to the worker */
    ENGINE_START = 1,     /* payload: JSON, chat_request_to_json() and "client":text, "batch":bool; id: a new request.
                             Prefixes are shared between requests of one client only; batch gives way to others */
    ENGINE_CANCEL,        /* no payload; the worker answers ENGINE_END with FINISH_CANCELLED if it was running */
    ENGINE_PING,          /* no payload, id echoed in ENGINE_PONG by the decode thread itself */
    ENGINE_EMBED,         /* JSON {"input":[text or array of token ids, …]}, 1 to ENGINE_MAX_INPUTS: answered by
                             ENGINE_EMBEDDING. Texts get the tokens that the vocabulary puts around them, ids do not */
    ENGINE_TOKENIZE,      /* JSON {"text":…,"add_special":bool}, or as ENGINE_START for the prompt it would make:
                             ENGINE_TOKENS */
    ENGINE_DETOKENIZE,    /* JSON {"tokens":[id, …]}: ENGINE_TEXT */
    /* from the worker */
    ENGINE_READY = 101,   /* once: JSON {"model":name,"digest":"sha256:hex","context":n,"vocab":n,"sessions":n,
                             "kernels":"avx2","threads":n,"bytes":n,"load_usec":n,"architecture":"bitnet-b1.58"} */
    ENGINE_FAILED,        /* once, before exit: text, why the model could not be loaded */
    ENGINE_PROMPT,        /* struct engine_prompt: prefill is done */
    ENGINE_TOKEN,         /* engine_token_encode(). The token that ends an answer comes too, with no piece: its
                             probability counts, and what was held back comes with it as text */
    ENGINE_END,           /* struct engine_end: nothing more for this id */
    ENGINE_REFUSED,       /* JSON {"code":…,"message":…}: this id was not run; codes below. Nothing more for this id */
    ENGINE_PONG,
    ENGINE_EMBEDDING,     /* struct engine_embedding, then n * width floats: a unit vector a text, pooled as the model
                             says (the mean where it says nothing). Nothing more for this id, as with the next two */
    ENGINE_TOKENS,        /* int32 ids */
    ENGINE_TEXT,          /* whole UTF-8 characters; control tokens have no text */
};
#define ENGINE_MAX_INPUTS 2048

/* Codes of ENGINE_REFUSED: */
#define ENGINE_E_CONTEXT "context_length_exceeded"   /* prompt does not leave room for one token */
#define ENGINE_E_INVALID "invalid_request"
#define ENGINE_E_BUSY    "engine_busy"               /* all sessions taken */
#define ENGINE_E_MEMORY  "out_of_memory"

/* FINISH_TOOL_CALLS: the answer is a call, whole and valid. FINISH_LENGTH: a call or document may be cut off. */
enum engine_finish { FINISH_STOP, FINISH_LENGTH, FINISH_CANCELLED, FINISH_ERROR, FINISH_TOOL_CALLS };

struct engine_prompt { uint32_t n_tokens; uint32_t n_cached; uint64_t prefill_usec; };

struct engine_embedding { uint32_t n, width, n_tokens, reserved; };

struct engine_end {
    uint32_t finish;          /* enum engine_finish */
    uint32_t n_prompt, n_tokens;   /* n_tokens: how many ENGINE_TOKEN frames there were */
    uint32_t stop;            /* 1 + which stop string of the request ended it, counted from 0; 0: none did */
    uint32_t n_guessed, reserved;   /* of the tokens, how many had been guessed and only needed checking */
    uint64_t prefill_usec, decode_usec;
};

/* One generated token. Probabilities are of the raw logits, before temperature, penalties and filters. */
struct engine_alternative { uint32_t id; float logprob; const char *piece; uint32_t piece_len; };
struct engine_token {
    uint32_t id;
    float logprob;            /* natural log of its probability, <= 0 */
    float margin;             /* top logit minus second logit, >= 0 */
    float entropy;            /* of the whole distribution, nats */
    const char *piece;        /* the token's own bytes, may be part of a UTF-8 character */
    uint32_t piece_len;
    const char *text;         /* what this step adds to the answer: whole UTF-8 characters, possibly none (held back for a
                                 stop string or an unfinished character), possibly from earlier tokens */
    uint32_t text_len;
    uint32_t channel;         /* enum answer_channel. An answer is words, or one call: first its name, in one piece, then its
                                 arguments in as many as it takes. A call's own wrapping is never shown */
    uint32_t n_top;           /* alternatives, best first, only when asked for */
    struct engine_alternative top[CHAT_MAX_TOP_LOGPROBS];
};

/* To and from a frame's payload. Encode: 0 or -ENOMEM. Decode: 0 or -EPROTO; strings point into data. */
int engine_token_encode(struct buf *out, const struct engine_token *t);
int engine_token_decode(struct engine_token *ret, const uint8_t *data, size_t len);
const char *engine_finish_name(enum engine_finish f);   /* "stop", "length", "cancelled", "error", "tool_calls" */
