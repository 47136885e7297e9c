/* The command table of tern-model. */
#include "model/tool.h"

#include <stdio.h>
#include <string.h>

static const struct verb *const verbs[] = { &inspect_verb, &convert_verb, &synth_verb, &perplexity_verb };

static void help(FILE *out)
{
    fputs("Usage: tern-model VERB [ARGUMENTS]\n\n"
          "Look at BitNet model files, make them and measure them.\n\n", out);
    for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
        fprintf(out, "  %-10s %-34s %s\n", verbs[i]->name, verbs[i]->arguments, verbs[i]->summary);
    fputs("\n  --version, --help; tern-model VERB --help tells more\n\n"
          "Exit status: 0 done, 1 it could not be done, 2 wrong usage.\n", out);
}

int main(int argc, char **argv)
{
    if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
        help(stdout);
        return TOOL_OK;
    }
    if (argc > 1 && (!strcmp(argv[1], "--version") || !strcmp(argv[1], "-V"))) {
        puts("tern-model " TERN_VERSION);
        return TOOL_OK;
    }
    if (argc < 2) {
        help(stderr);
        return TOOL_USAGE;
    }
    argv++;
    argc--;
    for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
        if (strcmp(verbs[i]->name, argv[0]))
            continue;
        if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
            printf("Usage: tern-model %s %s\n\n%s.\n%s", verbs[i]->name, verbs[i]->arguments, verbs[i]->summary,
                   verbs[i]->help);
            return TOOL_OK;
        }
        return verbs[i]->run(argc, argv);
    }
    fprintf(stderr, "tern-model: unknown verb '%s'; tern-model --help lists them\n", argv[0]);
    return TOOL_USAGE;
}
