/* members.c - in: weights of several ladders, or of one that was made of them. out: the other (members.h). */
#include "members.h"

#include <assert.h>
#include <string.h>

enum spa_err spa_members_shape(const struct spa_shape *member, uint32_t n, struct spa_shape *whole)
{
    *whole = *member;
    if (n > SPA_MAX_HEADS || member->r > SPA_MAX_WIDTH / n || member->m > SPA_MAX_WIDTH / n || member->e > SPA_MAX_WIDTH / n)
        return SPA_ERR_LIMIT;
    whole->r *= n;
    whole->m *= n;
    whole->e *= n;
    whole->n_heads *= n;
    return spa_shape_check(whole);
}

enum spa_err spa_members_one(const struct spa_shape *whole, uint32_t n, struct spa_shape *member)
{
    *member = *whole;
    if (whole->r % n || whole->m % n || whole->e % n || whole->n_heads % n)
        return SPA_ERR_SHAPE;
    member->r /= n;
    member->m /= n;
    member->e /= n;
    member->n_heads /= n;
    return spa_shape_check(member);
}

/* Where member i's numbers of a tensor lie in the whole's. A dimension that is as long in both (k, d) is everybody's. */
struct place {
    struct spa_tensor one, all;
    size_t row, col;
    bool   out;            /* W_out, b_out: the members' states are added up here */
};

static struct place place_of(const struct spa_shape *member, const struct spa_shape *whole, size_t index, uint32_t i)
{
    struct place p;
    spa_param_tensor(member, index, &p.one);
    spa_param_tensor(whole, index, &p.all);
    p.out = p.all.rows == p.one.rows;
    p.row = p.out ? 0 : (size_t)i * p.one.rows;
    p.col = p.all.cols == p.one.cols ? 0 : (size_t)i * p.one.cols;
    return p;
}

static size_t in_one(const struct place *p, size_t row, size_t col) { return p->one.offset + row * p->one.cols + col; }
static size_t in_all(const struct place *p, size_t row, size_t col) { return p->all.offset + (p->row + row) * p->all.cols + p->col + col; }

void spa_members_join(const struct spa_shape *member, uint32_t n, const float *members, float *params)
{
    struct spa_shape whole;
    const enum spa_err err = spa_members_shape(member, n, &whole);
    assert(err == SPA_OK);
    (void)err;
    memset(params, 0, spa_param_count(&whole) * sizeof *params);
    for (uint32_t i = 0; i < n; i++, members += spa_param_count(member))
        for (size_t t = 0; t < spa_tensor_count(member); t++) {
            const struct place p = place_of(member, &whole, t, i);
            for (size_t y = 0; y < p.one.rows; y++)
                for (size_t x = 0; x < p.one.cols; x++)
                    params[in_all(&p, y, x)] += members[in_one(&p, y, x)] / (p.out ? (float)n : 1.0f);
        }
}

bool spa_members_split(const struct spa_shape *member, uint32_t n, const float *params, float *members)
{
    struct spa_shape whole;
    size_t nonzero = 0, taken = 0;
    if (spa_members_shape(member, n, &whole) != SPA_OK)
        return false;
    for (size_t i = 0; i < spa_param_count(&whole); i++)
        nonzero += params[i] != 0;
    for (uint32_t i = 0; i < n; i++, members += spa_param_count(member))
        for (size_t t = 0; t < spa_tensor_count(member); t++) {
            const struct place p = place_of(member, &whole, t, i);
            const bool shared = p.out && p.one.cols == p.all.cols;   /* b_out: each has the mean */
            for (size_t y = 0; y < p.one.rows; y++)
                for (size_t x = 0; x < p.one.cols; x++) {
                    const float v = params[in_all(&p, y, x)];
                    members[in_one(&p, y, x)] = p.out && !shared ? v * (float)n : v;
                    taken += v != 0 && (i == 0 || !shared);
                }
        }
    return taken == nonzero;   /* nothing but zeros is left outside the members' places */
}
