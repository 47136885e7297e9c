/* The engine as ternd sees it: a process on a socketpair, with the model that ships, and what it answers. */
#pragma once

#include "base/chat.h"
#include "engine/engine.h"

struct engine { pid_t pid; int fd; struct frame_reader reader; };

/* What became of one request. */
struct answer {
    char text[4096], name[80], arguments[4096];   /* by channel */
    uint32_t ids[512];
    float logprobs[512];
    size_t n, n_prompts;
    double sum_logprob;
    bool ended, refused;
    struct engine_prompt prompt;
    struct engine_end end;
    char code[64], message[512];
    struct engine_token first;        /* numbers only: its strings are gone */
};

struct engine_config config(unsigned sessions, unsigned context);
struct engine engine_start(const struct engine_config *cfg);
void engine_stop(struct engine *e);             /* closes its socket and expects a clean end */
int wait_exit(struct engine *e);                /* its status, or the signal, negative */
void expect_ready(struct engine *e);
/* The next frame; ends the test when none comes. false: the engine closed its end. */
bool next_frame(struct engine *e, struct frame *f);
void send_frame(struct engine *e, uint32_t type, uint64_t id, const char *payload);
/* Take one frame into the answers, whose ids are 1, 2, …. Returns its type. */
uint32_t take(struct engine *e, struct answer *answers);
void finish(struct engine *e, struct answer *answers, size_t n);
/* A START payload for one user message; more: further members, each with a comma before it. */
char *payload(const char *user, const char *more);
void start(struct engine *e, uint64_t id, const char *user, const char *more);
struct answer ask(struct engine *e, const char *user, const char *more);

/* Long, because what was said is said again: the model's answers are short otherwise. */
#define AGAIN ",\"repeat_penalty\":0.1"
#define LONG AGAIN ",\"max_tokens\":400"
