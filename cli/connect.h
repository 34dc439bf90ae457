/* connect.h - what every verb that talks to a cloud shares: the options that name it, and the link with a plugin on it. */
#ifndef SPA_CONNECT_H
#define SPA_CONNECT_H

#include "head.h"
#include "options.h"
#include "plugin_file.h"
#include "retry.h"
#include "secret.h"

struct spa_connect {
    const char *cloud;           /* URL, or several with commas between; NULL: SPA_CLOUD or ws://127.0.0.1:8080 */
    const char *api_key_file;    /* NULL: SPA_API_KEY, or none */
    const char *ca_file;         /* NULL: the system's authorities */
    const char *cert_file, *key_file;   /* of this device, for clouds that want one; NULL: none */
    int32_t ping_s;              /* as in link.h */
    int32_t retry_s;             /* for a head in the cloud, and whoever else takes it from here: see spa_connect_pause */
    bool core_dumps;             /* for the table alone: main looks at it before all else */
};

enum { SPA_CONNECT_OPTIONS = 7 };

/* The value of --state-dtype that keeps what the plugin's file says; the others are those of enum spa_dtype. */
enum { SPA_AS_TRAINED = 3 };
#define SPA_STATE_DTYPE_OPTION(value) { "state-dtype", NULL, "f32|f16|i8", "form of states on the wire (the plugin's own)", SPA_OPT_CHOICE, (value), 0, 0 }
#define SPA_PAD_OPTION(value) { "pad", NULL, NULL, "every token makes the same round trip in messages of the same length, so that the line does not tell which are the plugin's", SPA_OPT_FLAG, (value), 0, 0 }

/* Fills SPA_CONNECT_OPTIONS rows of an option table; values go to c. */
void spa_connect_options(struct spa_connect *c, struct spa_option *rows);

#define SPA_RETRY_OPTION(value) { "retry", NULL, "S", "a connection that breaks in the middle of an answer is made again for so many seconds, and the answer goes on; 0: not (30)", SPA_OPT_INT, (value), 0, 86400 }

/* Opens the link to the first cloud that takes us, in the order of the list. plugin NULL: the base model alone. threshold in (0, 1) replaces the plugin's gate threshold; 0 keeps it.
 * A plugin that was made for another model than the cloud serves is refused with both names. plugin is borrowed until
 * the link is closed. 0, or as spa_link_open, with one sentence: that of the cloud asked last. */
int spa_connect_open(const struct spa_connect *c, const struct spa_plugin_file *plugin, float threshold, size_t max_message,
                     struct spa_link **out, char *why, size_t why_len);
/* The same again and again, with a memory: clouds that refused us are not asked any more, and one that serves another model than the first
 * connection had refuses us. SPA_LINK_REFUSED: all of them did. */
int spa_connect_again(const struct spa_connect *c, struct spa_clouds *clouds, const struct spa_plugin_file *plugin, float threshold,
                      size_t max_message, struct spa_link **out, char *why, size_t why_len);

/* Waits until the next try of a lost cloud is due: with jitter, longer each time. r begins now, unless it has. false: its retry_s seconds are over,
 * or 0. */
bool spa_connect_pause(struct spa_retry *r, int32_t retry_s);

/* Calls attempt, which returns as spa_link_open, until it succeeds, is refused, the time is up (r begins now, unless it has) or `stop` (may be
 * NULL) says so. 0; 1: stopped; -1: in vain, with the sentence of the last attempt, or the caller's where there was none. */
int spa_connect_until(struct spa_retry *r, int32_t retry_s, int (*attempt)(void *user, char *why, size_t why_len), void *user, bool (*stop)(void),
                      char *why, size_t why_len);

/* Where the LM head of training and measuring is: the values of --head, and the row of an option table. */
enum { SPA_HEAD_LOCAL, SPA_HEAD_CLOUD };
#define SPA_HEAD_OPTION(value) { "head", NULL, "local|cloud", "the model's LM head: fetched once and kept here, or left in the cloud for small devices (default local)", SPA_OPT_CHOICE, (value), 0, 0 }

/* Opens the head in the way that `where` says. l: a link of c's, greeted; only borrowed for the call, but c must live as long as h.
 * cache_dir, progress: of spa_lm_head_open. 0, or -1 with one sentence. */
int spa_connect_head(const struct spa_connect *c, int32_t where, struct spa_lm_head *h, struct spa_link *l, const char *cache_dir,
                     void (*progress)(void *user, uint64_t done, uint64_t of), void *user, char *why, size_t why_len);

#endif
