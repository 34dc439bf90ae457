/* owed.h - positions of one request whose states are under way: the cloud asked for them, the device owes them. Each end keeps such
 * a list; the oldest stands first. */
#ifndef SPA_OWED_H
#define SPA_OWED_H

#include "wire.h"

struct spa_owed {
    uint32_t n;
    uint32_t pos[SPA_ASKED_MAX];   /* in the order in which they were asked for */
};

bool spa_owed_add(struct spa_owed *o, uint32_t pos);          /* false: it is full */
bool spa_owed_has(const struct spa_owed *o, uint32_t pos);
bool spa_owed_take(struct spa_owed *o, uint32_t pos);         /* false: it is not in it */

#endif
