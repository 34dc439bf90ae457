/* head.h - the frozen LM head for training and measuring (lm_head.h), in one of two ways: fetched once in its quantised form,
 * kept by hash and computed with here, or left in the cloud, which then computes losses and gradients for states that are sent. */
#ifndef SPA_HEAD_H
#define SPA_HEAD_H

#include "link.h"
#include "lm_head.h"
#include "retry.h"

/* Takes it from the cache folder (NULL: $XDG_CACHE_HOME/spa or ~/.cache/spa), or fetches it over the link and keeps it there
 * (whole or not at all, checked against its hash). 0, or -1 with a sentence. */
int  spa_lm_head_open(struct spa_lm_head *h, struct spa_link *l, const char *cache_dir,
                      void (*progress)(void *user, uint64_t done, uint64_t of), void *user, char *why, size_t why_len);
/* From the cache folder alone, without a link: the head that w describes. 1, 0 when it is not there, -1 with a sentence. */
int  spa_lm_head_open_cached(struct spa_lm_head *h, const spa_Welcome *w, const char *cache_dir, char *why, size_t why_len);
void spa_lm_head_close(struct spa_lm_head *h);   /* of either way */

/* How a head in the cloud gets a link of its own: to the same cloud, without a plugin. */
struct spa_head_connect {
    int (*open)(void *user, size_t max_message, struct spa_link **out, char *why, size_t why_len);   /* as spa_link_open */
    bool (*pause)(void *user, struct spa_retry *r);   /* waits until a lost cloud may be tried again; false: no more */
    void *user;   /* must live as long as the head */
};

/* Leaves the head where it is. l: a greeted link that says which model it is; it is not kept. Each call of spa_lm_head_loss then
 * sends its states in pieces and waits for the answers; the link is opened at the first one, and anew when it was lost, for as long as
 * `pause` allows (and once in any case: a cloud hangs up on who is silent for long). Nothing is allocated that grows with the model but a piece of states.
 * 0, or -1 with a sentence: no memory, or a cloud that computes no losses. */
int  spa_lm_head_in_cloud(struct spa_lm_head *h, struct spa_link *l, struct spa_head_connect connect, char *why, size_t why_len);
void spa_head_cloud_free(struct spa_head_cloud *c);   /* for spa_lm_head_close; takes NULL */
/* Bytes that its links have moved so far; none when it is here. */
struct spa_link_bytes spa_lm_head_wire(const struct spa_lm_head *h);

#endif
