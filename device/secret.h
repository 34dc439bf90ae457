/* secret.h - what every program of ours does about secrets: no core dumps, a look at who can read a key file, and memory that is cleared
 * before it is given back. */
#ifndef SPA_SECRET_H
#define SPA_SECRET_H

#include <stdbool.h>
#include <stddef.h>

/* From now on this process leaves no core dump, and others of the same user may not look into it. Once, at the start. */
void spa_secret_no_core_dumps(void);
/* Can others than its owner and group read the file, or others than its owner write it? false as well when there is none. */
bool spa_secret_is_open(const char *path);

/* Clears and frees n bytes; takes NULL. */
void  spa_secret_free(void *p, size_t n);
/* As realloc, of a block of `had` bytes: what is given back is cleared. NULL: no memory, and p stays as it is. */
void *spa_secret_grow(void *p, size_t had, size_t wanted);

/* For a program's option table. */
#define SPA_CORE_DUMPS_OPTION(value) { "core-dumps", NULL, NULL, "leave core dumps and debuggers on; a dump holds texts and keys", SPA_OPT_FLAG, (value), 0, 0 }

#endif
