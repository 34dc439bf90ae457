/* main.c - `spa`: a table of verbs (commands.h), one file each. */
#include "commands.h"
#include "options.h"
#include "secret.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name, *help;
    int (*run)(int argc, char **argv);
} verbs[] = {
    { "chat",     "talk with the model through your plugin",             spa_cmd_chat },
    { "complete", "continue raw text through your plugin",               spa_cmd_complete },
    { "serve",    "serve an OpenAI-compatible API and a chat page here",  spa_cmd_serve },
    { "train",    "train a plugin from your rows, on this machine",      spa_cmd_train },
    { "eval",     "measure a plugin against the base model on rows",     spa_cmd_eval },
    { "inspect",  "say what is in a plugin file",                        spa_cmd_inspect },
    { "convert",  "plugin file to safetensors checkpoint, or back",      spa_cmd_convert },
    { "bench",    "measure how fast a cloud answers this machine",       spa_cmd_bench },
};
enum { N_VERBS = sizeof verbs / sizeof verbs[0] };

static void print_help(FILE *to)
{
    fputs("usage: spa VERB [arguments]\n\n"
          "A large base model stays frozen in the cloud; your small plugin stays on this machine.\n\n", to);
    for (size_t i = 0; i < N_VERBS; i++)
        fprintf(to, "  %-10s %s\n", verbs[i].name, verbs[i].help);
    fputs("\n'spa VERB --help' lists the options of a verb; 'spa --version' names this version.\n", to);
}

/* Texts, keys and the plugin are in memory. */
static void keep_secrets(int argc, char **argv)
{
    for (int i = 2; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--core-dumps") == 0)
            return;
    spa_secret_no_core_dumps();
}

static int unknown_verb(const char *word)
{
    const char *names[N_VERBS];
    for (size_t i = 0; i < N_VERBS; i++)
        names[i] = verbs[i].name;
    const char *nearest = spa_options_nearest(word, names, N_VERBS);
    if (nearest)
        fprintf(stderr, "spa: there is no verb '%s'; did you mean '%s'?\n", word, nearest);
    else
        fprintf(stderr, "spa: there is no verb '%s'; 'spa --help' lists them\n", word);
    return SPA_EXIT_USAGE;
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);   /* a peer or a pager that goes away is an error of that write, not our end */
    keep_secrets(argc, argv);
    if (argc < 2) {
        print_help(stderr);
        return SPA_EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        print_help(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--describe") == 0) {
        for (size_t i = 0; i < N_VERBS; i++)
            spa_options_describe_verb(verbs[i].name, verbs[i].help);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        puts("spa " SPA_VERSION);
        return 0;
    }
    for (size_t i = 0; i < N_VERBS; i++)
        if (strcmp(argv[1], verbs[i].name) == 0)
            return verbs[i].run(argc - 1, argv + 1);
    return unknown_verb(argv[1]);
}
