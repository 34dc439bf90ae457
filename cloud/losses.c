/* losses.c - in: LOSS messages, states of a device that has no LM head. out: LOSSES, computed with the head that is here.
 *
 * They wait per connection, in order. Each round of the loop computes one slice of one connection's: that bounds what a chat waits
 * for, and the slices' length never changes, so neither do the bits. */
#include "engine_parts.h"
#include "secret.h"

#include <stdlib.h>
#include <string.h>

enum { SLICE = 64 };   /* states at a time: a tile of the head is dequantised once for all of them */

struct loss {
    struct loss *next;
    spa_Losses head;       /* of the answer */
    uint32_t n_done;
    int32_t *target;       /* [n] */
    float   *states;       /* [n, d] */
    uint8_t *bulk;         /* of the answer */
    size_t   bulk_len;
};

static void loss_free(struct loss *l, uint32_t d)
{
    if (!l)
        return;
    spa_secret_free(l->target, l->head.n * sizeof *l->target);
    spa_secret_free(l->states, (size_t)l->head.n * d * sizeof *l->states);
    spa_secret_free(l->bulk, l->bulk_len);
    free(l);
}

void losses_take(struct peer *p, const struct spa_message *m)
{
    struct spa_engine *e = p->engine;
    const spa_Loss *asked = &m->head.loss;
    const uint32_t n = asked->n, d = e->model->info.d;
    if (e->draining) {
        spa_host_loss_error(&p->host, asked->id, spa_Code_DRAINING, "the cloud is shutting down; train with another one, or try again in a moment");
        return;
    }
    struct loss *l = calloc(1, sizeof *l);
    if (l) {
        l->head = (spa_Losses){ .id = asked->id, .n = n, .gradient = asked->gradient, .top = asked->top };
        l->bulk_len = (size_t)spa_wire_losses_bytes(d, n, asked->gradient, asked->top);
        l->target = malloc(n * sizeof *l->target);
        l->states = malloc((size_t)n * d * sizeof *l->states);
        l->bulk = malloc(l->bulk_len);
    }
    if (!l || !l->target || !l->states || !l->bulk) {
        loss_free(l, d);
        spa_host_loss_error(&p->host, asked->id, spa_Code_INTERNAL, "the cloud is out of memory; try again later");
        return;
    }
    memcpy(l->target, m->bulk, n * sizeof *l->target);
    memcpy(l->states, m->bulk + n * sizeof *l->target, (size_t)n * d * sizeof *l->states);
    struct loss **end = &p->losses;
    while (*end)
        end = &(*end)->next;
    *end = l;
}

bool losses_wait(const struct spa_engine *e, const struct peer *p)
{
    return p->losses && !peer_broken(p) && spa_mail_out_bytes(e->cfg.mail, p->conn) < LEARN_OUT_MAX &&
           spa_account_wait_ms(&e->accounts, p->account, 0, spa_now_ms()) == 0;
}

static void drop_first(struct peer *p)
{
    struct loss *l = p->losses;
    p->losses = l->next;
    loss_free(l, p->engine->model->info.d);
}

void losses_free(struct peer *p)
{
    while (p->losses)
        drop_first(p);
}

/* The next slice of the first LOSS that waits; answers it when it was the last one. */
static void slice(struct spa_engine *e, struct peer *p)
{
    struct loss *l = p->losses;
    const size_t d = e->model->info.d, n_all = l->head.n, at = l->n_done;
    const uint32_t n = l->head.n - l->n_done < SLICE ? l->head.n - l->n_done : SLICE;
    float *dstates = l->head.gradient ? e->loss_dstates : NULL;
    int32_t *top = l->head.top ? e->loss_top : NULL;
    if (spa_lm_head_loss(&e->lm_head, l->states + at * d, l->target + at, n, e->loss, dstates, top) != 0) {
        spa_host_loss_error(&p->host, l->head.id, spa_Code_INTERNAL, "the cloud is out of memory; try again later");
        drop_first(p);
        return;
    }
    memcpy(l->bulk + 4 * at, e->loss, 4 * (size_t)n);
    if (dstates)
        memcpy(l->bulk + 4 * (n_all + at * d), dstates, 4 * n * d);
    if (top)
        memcpy(l->bulk + l->bulk_len - 4 * n_all + 4 * at, top, 4 * (size_t)n);
    l->n_done += n;
    spa_account_spend(&e->accounts, p->account, n);
    if (l->n_done == l->head.n) {
        spa_host_losses(&p->host, &l->head, l->bulk, l->bulk_len);
        drop_first(p);
    }
}

void losses_step(struct spa_engine *e)
{
    struct peer *first = e->next_losses ? e->next_losses : e->peers, *p = first;
    for (uint32_t i = 0; i < e->n_peers; i++, p = p->next ? p->next : e->peers)
        if (losses_wait(e, p)) {
            slice(e, p);
            e->next_losses = p->next;
            return;
        }
}

void losses_clear(struct spa_engine *e)
{
    if (!e->lm_head.work)   /* nothing was computed */
        return;
    explicit_bzero(e->loss, SLICE * sizeof *e->loss);
    explicit_bzero(e->loss_dstates, (size_t)SLICE * e->model->info.d * sizeof *e->loss_dstates);
    explicit_bzero(e->loss_top, SLICE * sizeof *e->loss_top);
    spa_lm_head_release(&e->lm_head);
}

int losses_init(struct spa_engine *e)
{
    const struct spa_model_info *info = &e->model->info;
    char why[256];
    if (spa_lm_head_view(&e->lm_head, info->d, (uint32_t)info->n_vocab, info->head_type, info->head_bytes, info->head_len, why,
                         sizeof why) != 0) {
        engine_log_at(e, SPA_LOG_WARN, "no losses for devices without LM head: %s", why);
        e->cfg.limits.loss_window = 0;
        return 0;
    }
    e->lm_head.scale = info->logit_scale;
    e->lm_head.softcap = info->softcap;
    e->lm_head.n_threads = e->cfg.n_threads;
    e->loss = malloc(SLICE * sizeof *e->loss);
    e->loss_dstates = malloc((size_t)SLICE * info->d * sizeof *e->loss_dstates);
    e->loss_top = malloc(SLICE * sizeof *e->loss_top);
    return e->loss && e->loss_dstates && e->loss_top ? 0 : -1;
}
