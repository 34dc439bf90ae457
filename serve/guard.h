/* guard.h - whether a request to the local server may be answered at all: its Host and Origin. */
#ifndef SPA_GUARD_H
#define SPA_GUARD_H

#include <stdbool.h>
#include <stddef.h>

/* A web page of anybody's can make a name of its own point to this machine (DNS rebinding), and its requests then carry that name.
 * So Host may be an address, localhost, or one of `names`, with or without a port; nothing else. */
bool spa_guard_host(const char *host, const char *const *names, size_t n_names);
/* Browsers say which site a request comes from. Only pages of this very server may ask: origin is http:// or https:// and host. */
bool spa_guard_origin(const char *origin, const char *host);

#endif
