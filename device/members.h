/* members.h - several ladders as one: trained from seeds of their own, they answer with the mean of their states z. Since the LM head is
 * linear, that is the mean of their logits.
 *
 * n ladders of width r are one of width n r whose matrices hold theirs on the diagonal and zeros elsewhere; W_out takes all of them, divided by
 * n. Heads own neighbouring numbers of q, K and V, so a member's heads stay its own. So a plugin file, a runtime and a cloud know nothing of
 * members, and `spa convert` and --from take such a plugin like any other. */
#ifndef SPA_DEVICE_MEMBERS_H
#define SPA_DEVICE_MEMBERS_H

#include "ladder.h"

/* The shape of n members of this one together: r, m, e and n_heads times n. SPA_OK, or what spa_shape_check says of it. */
enum spa_err spa_members_shape(const struct spa_shape *member, uint32_t n, struct spa_shape *whole);
/* And back. SPA_ERR_SHAPE: a width is no multiple of n. */
enum spa_err spa_members_one(const struct spa_shape *whole, uint32_t n, struct spa_shape *member);

/* members: [n][spa_param_count(member)], one after the other; params: [spa_param_count(whole)]. */
void spa_members_join(const struct spa_shape *member, uint32_t n, const float *members, float *params);
/* The members that were joined, W_out and b_out but for rounding. false: the weights are not those of n ladders side by side; members is then undefined. */
bool spa_members_split(const struct spa_shape *member, uint32_t n, const float *params, float *members);

#endif
