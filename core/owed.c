/* owed.c - in: positions asked for and answered. out: those that are still under way (owed.h). */
#include "owed.h"

#include <string.h>

bool spa_owed_add(struct spa_owed *o, uint32_t pos)
{
    if (o->n == SPA_ASKED_MAX) return false;
    o->pos[o->n++] = pos;
    return true;
}

bool spa_owed_has(const struct spa_owed *o, uint32_t pos)
{
    for (uint32_t i = 0; i < o->n; i++)
        if (o->pos[i] == pos) return true;
    return false;
}

bool spa_owed_take(struct spa_owed *o, uint32_t pos)
{
    uint32_t i = 0;
    while (i < o->n && o->pos[i] != pos) i++;
    if (i == o->n) return false;
    o->n--;
    memmove(o->pos + i, o->pos + i + 1, (o->n - i) * sizeof *o->pos);
    return true;
}
