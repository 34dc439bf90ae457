/* commands.h - the verbs of `spa`, one file each. argv[0] is the verb. Each returns the process' exit code:
 * 0 done, 1 the world refused (one sentence on stderr), 2 the command line is wrong (options.h). */
#ifndef SPA_COMMANDS_H
#define SPA_COMMANDS_H

int spa_cmd_chat(int argc, char **argv);
int spa_cmd_complete(int argc, char **argv);
int spa_cmd_serve(int argc, char **argv);
int spa_cmd_train(int argc, char **argv);
int spa_cmd_eval(int argc, char **argv);
int spa_cmd_inspect(int argc, char **argv);
int spa_cmd_convert(int argc, char **argv);
int spa_cmd_bench(int argc, char **argv);

#endif
