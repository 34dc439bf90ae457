/* retry.c - backoff (retry.h). In: the time, a seed. Out: milliseconds. */
#include "retry.h"
#include "sample.h"

enum { AT_ONCE_MS = 100, FIRST_MS = 250, MOST_MS = 5000 };

void spa_retry_begin(struct spa_retry *r, uint64_t now_ms, uint64_t within_ms, uint64_t seed)
{
    if (!r->begun)
        *r = (struct spa_retry){ .begun = true, .until_ms = now_ms + within_ms, .seed = seed, .later_ms = r->later_ms };
}

int64_t spa_retry_next(struct spa_retry *r, uint64_t now_ms)
{
    if (now_ms >= r->until_ms)
        return -1;
    const uint32_t n = r->tries++;
    const uint64_t noise = spa_noise64(r->seed, n, 0);
    uint64_t ms = n == 0 ? AT_ONCE_MS : FIRST_MS;
    for (uint32_t i = 1; i < n && ms < MOST_MS; i++)
        ms *= 2;
    ms = ms < MOST_MS ? ms : MOST_MS;
    ms -= noise % (n == 0 ? ms + 1 : ms / 2 + 1);
    const uint64_t left = r->until_ms - now_ms, later = r->later_ms;
    r->later_ms = 0;
    if (later > left)
        return -1;
    ms = ms > later ? ms : later + noise % (ms + 1);   /* not all at the same moment */
    return (int64_t)(ms < left ? ms : left);
}
