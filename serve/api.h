/* api.h - what stands at which path of the local server, but for the answers of models: pages, lists, health, metrics. */
#ifndef SPA_API_H
#define SPA_API_H

#include "models.h"
#include "reply.h"

enum spa_api_kind { SPA_API_OTHER, SPA_API_CHAT, SPA_API_COMPLETIONS, SPA_API_KINDS };

enum { SPA_API_STATUSES = 15 };
struct spa_api_counts {
    uint64_t requests[SPA_API_KINDS][SPA_API_STATUSES];   /* by the status' place in a table */
    uint64_t prompt_tokens, base_tokens, plugin_tokens, gated, round_trips;
    uint32_t connections;
    uint64_t refused;          /* connections closed at once, since there were as many as may be */
    uint64_t unfinished;       /* that ended before a whole request had come: its head was too long, or its time over */
};
void spa_api_count(struct spa_api_counts *c, enum spa_api_kind kind, int status);

/* The way of a path: which methods it has, and whether a key is needed there. */
struct spa_api_way { bool get, post, is_public; enum spa_api_kind kind; };
struct spa_api_way spa_api_way(const char *path);   /* neither get nor post: nothing is there */

/* The body at a path that has GET; *type its content type (static). Returns the HTTP status. */
int spa_api_get(struct spa_models *m, const struct spa_api_counts *counts, int64_t started_unix_s, const char *path, struct spa_text *out,
                const char **type);

/* Files in the program: the chat page and the API's description. page.c is made by the build (serve/embed.cmake). */
struct spa_page { const char *path, *type; const unsigned char *bytes; size_t len; };
extern const struct spa_page spa_pages[];
extern const size_t spa_n_pages;

#endif
