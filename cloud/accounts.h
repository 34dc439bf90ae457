/* accounts.h - who asks, and how much of the cloud each may have: one account for a key, a client certificate or, where there is neither,
 * an address. Counts and a bucket of tokens; no clock and no sockets. The decode thread's own. */
#ifndef SPA_ACCOUNTS_H
#define SPA_ACCOUNTS_H

#include <stdint.h>

struct spa_account {
    struct spa_account *next;
    uint64_t who;
    uint32_t connections;     /* that hold it */
    uint32_t open, queued;    /* requests: under way or waiting; waiting for a slot. The caller counts */
    double   tokens;          /* that may be decoded at once, below 0 where an answer took more, */
    uint64_t at_ms;           /* as of then */
};

struct spa_accounts {
    struct spa_account *first;
    uint32_t tokens_per_minute;   /* each account's; 0: no limit */
};

/* Holds who's account, made if need be; NULL: no memory. One that nobody holds is kept until its bucket is full again, so that nobody gains by
 * connecting anew. */
struct spa_account *spa_account_get(struct spa_accounts *all, uint64_t who, uint64_t now_ms);
void     spa_account_put(struct spa_accounts *all, struct spa_account *a, uint64_t now_ms);   /* takes NULL */
void     spa_account_spend(const struct spa_accounts *all, struct spa_account *a, uint32_t tokens);
/* Until it may ask for more; 0: it may now. A minute's tokens may be spent at once, and behind them, for what has begun, so many minutes' more. */
uint64_t spa_account_wait_ms(const struct spa_accounts *all, struct spa_account *a, uint32_t more_minutes, uint64_t now_ms);
void     spa_accounts_free(struct spa_accounts *all);

#endif
