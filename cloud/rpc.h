/* rpc.h - a model that is larger than one machine: its layers lie with workers, reached through ggml's RPC backend.
 *
 * The backend has no authentication and no encryption, and who reaches a worker's port can do on its machine what the worker can. So both ends
 * stay on loopback unless forced; between machines that means a tunnel. It speaks to workers of the same libllama version only.
 *
 * ggml ends the process when a worker is lost. Here it does not come to that: the thread that noticed it sleeps for ever, `lost` is told, and
 * the program says goodbye and exits (main.c); nothing that the model did since can be used. */
#ifndef SPA_RPC_H
#define SPA_RPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SPA_RPC_WORKERS_MAX = 16 };

/* May the list "HOST:PORT,HOST:PORT" be used? Loopback alone unless forced. 0, or -1 with one sentence. */
int  spa_rpc_check(const char *list, bool force, char *why, size_t why_len);
/* Makes the workers devices of this process: models that are opened from now on lie there, by the memory that each has. The list was checked.
 * A worker that is not there, is busy with another cloud or speaks another version ends the process with one sentence, by `lost`. timeout_ms: a
 * call between begin and end that takes longer counts as a lost worker. 0, or -1 with one sentence. */
int  spa_rpc_connect(const char *list, uint32_t timeout_ms, void (*lost)(void *user, const char *why), void *user, char *why, size_t why_len);
/* Around what waits for workers; from one thread. Another begin before the end gives the whole time again. They do nothing when none are
 * connected. */
void spa_rpc_begin(void);
void spa_rpc_end(void);
/* A worker: lends this machine's GPUs, or where there is none its processor, to one cloud at a time. Returns when it cannot listen, -1 with one
 * sentence. host: a numeric IPv4 address. */
int  spa_rpc_work(const char *host, int port, int n_threads, char *why, size_t why_len);

#endif
