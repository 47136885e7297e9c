/* What the readers of a Hugging Face directory share: huggingface.c the directory and its config.json,
 * huggingface_weights.c the files and tensors, huggingface_keys.c the keys. */
#pragma once

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/container.h"

#define NAME_ARGS(v) (int)MIN((v).len - 2, 96), (v).s + 1            /* "%.*s" of a string as the file spells it */

/* A family of models: how Hugging Face names it, and how GGUF does. */
struct family { const char *class, *model_type, *arch; uint32_t head_dim; };

struct checkpoint {
    struct source *s;
    const char *dir;
    struct err *err;
    struct keys keys;
    const struct family *family;
    struct json_view config, quant, tern, generation, tokenizer_config;      /* s NULL: none */
    struct safetensor *tensors;     /* of all files */
    size_t n_tensors;
    bool divide;                    /* packed weights: the product is divided by the scale */
    bool online;                    /* floats are masters; there are no packed weights */
    bool rms_norm;                  /* each linear has a norm of its input */
    uint64_t n_vocab;
};

/* config.json and its relatives. 1 found, 0 absent or null, -EINVAL with *c->err: of another kind, or stands twice. */
int checkpoint_get(const struct checkpoint *c, struct json_view in, const char *key, struct json_view *ret);
int checkpoint_size(const struct checkpoint *c, struct json_view in, const char *key, uint64_t *ret);   /* to 2^32-1 */
int checkpoint_double(const struct checkpoint *c, struct json_view in, const char *key, double *ret);
int checkpoint_bool(const struct checkpoint *c, struct json_view in, const char *key, bool *ret);
/* One of n strings: its place among them. */
int checkpoint_choice(const struct checkpoint *c, struct json_view in, const char *key, const char *const names[],
                      size_t n, size_t *ret);
/* Map and open a JSON file of the directory. Absent: 0, and *ret untouched. */
int checkpoint_json(struct checkpoint *c, const char *name, struct json_view *ret);
/* -EINVAL with "config.json: KEY WHY". */
int checkpoint_refuse(const struct checkpoint *c, const char *key, const char *why);

/* The steps of reading, in this order; 0, -ENOMEM, -EINVAL with *c->err. */
int checkpoint_weights(struct checkpoint *c);       /* fills tensors from all safetensors files */
int checkpoint_tensors(struct checkpoint *c);       /* gives them GGUF's names, into c->s */
int checkpoint_keys(struct checkpoint *c);          /* writes c->s->image and opens it */
