/* accounts.c - in: who connects, tokens that are decoded, the time. out: whether more may be asked, and when (accounts.h). */
#include "accounts.h"

#include <stdlib.h>

enum { MINUTE_MS = 60000 };

static void refill(const struct spa_accounts *all, struct spa_account *a, uint64_t now_ms)
{
    const double most = all->tokens_per_minute;
    if (now_ms > a->at_ms)
        a->tokens += most * (double)(now_ms - a->at_ms) / MINUTE_MS;
    a->tokens = a->tokens < most ? a->tokens : most;
    a->at_ms = now_ms > a->at_ms ? now_ms : a->at_ms;
}

/* Nobody holds it, and there is nothing to remember. */
static void sweep(struct spa_accounts *all, uint64_t now_ms)
{
    for (struct spa_account **at = &all->first; *at;) {
        struct spa_account *a = *at;
        refill(all, a, now_ms);
        if (a->connections == 0 && a->tokens >= all->tokens_per_minute) {
            *at = a->next;
            free(a);
        } else {
            at = &a->next;
        }
    }
}

struct spa_account *spa_account_get(struct spa_accounts *all, uint64_t who, uint64_t now_ms)
{
    struct spa_account *a = all->first;
    while (a && a->who != who)
        a = a->next;
    if (!a) {
        sweep(all, now_ms);
        a = calloc(1, sizeof *a);
        if (!a)
            return NULL;
        *a = (struct spa_account){ .next = all->first, .who = who, .tokens = all->tokens_per_minute, .at_ms = now_ms };
        all->first = a;
    }
    a->connections++;
    return a;
}

void spa_account_put(struct spa_accounts *all, struct spa_account *a, uint64_t now_ms)
{
    if (!a)
        return;
    a->connections--;
    if (a->connections == 0)
        sweep(all, now_ms);
}

void spa_account_spend(const struct spa_accounts *all, struct spa_account *a, uint32_t tokens)
{
    if (all->tokens_per_minute)
        a->tokens -= tokens;
}

uint64_t spa_account_wait_ms(const struct spa_accounts *all, struct spa_account *a, uint32_t more_minutes, uint64_t now_ms)
{
    if (!all->tokens_per_minute)
        return 0;
    refill(all, a, now_ms);
    const double tokens = a->tokens + (double)more_minutes * all->tokens_per_minute;
    return tokens >= 1 ? 0 : 1 + (uint64_t)((1 - tokens) * MINUTE_MS / all->tokens_per_minute);
}

void spa_accounts_free(struct spa_accounts *all)
{
    while (all->first) {
        struct spa_account *a = all->first;
        all->first = a->next;
        free(a);
    }
}
