/* pace.c - in: widths and times of decode calls, users, round trips. out: how wide a call should be (pace.h). */
#include "pace.h"

static const double keep = 63.0 / 64, enough = 8, outlier = 3, idle = 1.05;

struct line { double a, b; };

/* Least squares. While widths have hardly varied, a token is believed to cost as much as the call itself. */
static struct line fit(const struct spa_pace *p)
{
    if (p->n <= 0)
        return (struct line){ 0, 0 };
    const double w = p->w / p->n, t = p->t / p->n, spread = p->ww / p->n - w * w;
    if (spread < 0.25)
        return (struct line){ t / (1 + w), t / (1 + w) };
    double b = (p->wt / p->n - w * t) / spread;
    b = b > 0 ? b : 0;
    return b * w < t ? (struct line){ t - b * w, b } : (struct line){ 0, t / w };
}

void spa_pace_took(struct spa_pace *p, uint32_t width, double ms)
{
    const double w = width, expected = spa_pace_ms(p, width);
    if (p->n > enough && ms > outlier * expected)   /* another process had the cores: no news of ours */
        ms = outlier * expected;
    p->n = keep * p->n + 1;
    p->w = keep * p->w + w;
    p->t = keep * p->t + ms;
    p->ww = keep * p->ww + w * w;
    p->wt = keep * p->wt + w * ms;
}

double spa_pace_ms(const struct spa_pace *p, uint32_t width)
{
    const struct line l = fit(p);
    return l.a + l.b * width;
}

/* All users' calls, one after the other, in calls of that width; the last one takes what is left. */
static double busy(struct line l, uint32_t n_users, uint32_t width)
{
    return l.a * ((n_users + width - 1) / width) + l.b * n_users;
}

uint32_t spa_pace_width(const struct spa_pace *p, uint32_t n_users, double wait_ms)
{
    const struct line l = fit(p);
    uint32_t best = n_users;
    double least = l.a + l.b * n_users + wait_ms;
    for (uint32_t k = 2; k <= n_users; k++) {
        const uint32_t width = (n_users + k - 1) / k;
        const double work = busy(l, n_users, width), trip = l.a + l.b * width + wait_ms, round = work > trip ? work : trip;
        if (round < least) {
            least = round;
            best = width;
        }
    }
    return best;
}

bool spa_pace_full(const struct spa_pace *p, uint32_t n_users, double wait_ms)
{
    const uint32_t width = spa_pace_width(p, n_users, wait_ms);
    const struct line l = fit(p);
    return width > 0 && l.a + l.b * width + wait_ms <= idle * busy(l, n_users, width);
}
