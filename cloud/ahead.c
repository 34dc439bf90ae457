/* ahead.c - guesses while a state is on its way (ahead.h). In: turns that wait, drafts, logits of the base, states that come for
 * positions behind the front. Out: tokens to decode, and, when the true token is there, what of them holds.
 *
 * A guess changes speed and never text: a row that is confirmed was decoded from the same tokens, by the same arithmetic, as if it had
 * been decoded then. */
#include "engine_parts.h"

#include <stdlib.h>
#include <string.h>

enum {
    ROWS_DEFAULT = 4,
    TEXT_MATCH   = 4,    /* words of the text are believed when so many tokens before them are the same */
    TEXT_BACK    = 32,   /* and no more than so many are compared */
    SMOOTH       = 8,    /* a new measurement counts one part in so many */
    FORGET       = 64,   /* without guesses, the share of right ones goes back to what was hoped this slowly */
};
static const float hope[SPA_GUESSES] = { [SPA_GUESS_BASE] = 0.5f, [SPA_GUESS_TEXT] = 0.6f, [SPA_GUESS_DRAFT] = 0.8f };

/* ---- rows ---- */

static struct spa_ahead_row *row(const struct spa_ahead *a, uint32_t i)
{
    return &a->rows[(a->first + i) % a->window];
}

static float *row_state(const struct spa_engine *e, const struct spa_ahead *a, uint32_t i)
{
    return a->states + (size_t)((a->first + i) % a->window) * e->model->info.d;
}

/* Rows behind the front that are decoded. */
static uint32_t n_rows(const struct spa_turn *t) { return t->n_past > t->n_tokens ? t->n_past - t->n_tokens : 0; }

void ahead_begin(struct spa_engine *e, struct peer *p, struct spa_turn *t)
{
    const struct spa_host_request *r = spa_host_request(&p->host, t->request);
    struct spa_ahead *a = &t->ahead;
    const uint32_t window = r && feed_asks(p, t) ? r->run_ahead : 0;
    if (window == 0 || t->logprobs)   /* a guess that proves right is said without its logits */
        return;
    a->rows = calloc(window, sizeof *a->rows);
    a->states = malloc((size_t)window * e->model->info.d * sizeof *a->states);
    a->window = a->rows && a->states ? window : 0;   /* without memory it waits for every state */
}

/* ---- words to guess by ---- */

/* Is the token behind the newest row already certain, if all before it are? */
static bool sure(const struct spa_turn *t)
{
    const struct spa_ahead *a = &t->ahead;
    if (a->n == 0)
        return false;   /* the front waits */
    const struct spa_ahead_row *r = row(a, a->n - 1);
    return !r->asked || r->answered;
}

/* The token that followed the same words earlier in the text, or -1. */
static int32_t by_text(const struct spa_turn *t)
{
    const uint32_t n = t->n_tokens + t->ahead.n;
    const int32_t *s = t->tokens;
    uint32_t best = TEXT_MATCH - 1, at = 0;
    for (uint32_t i = n - 1; i > best; i--) {   /* s[i] would follow; the newest of equally long ones counts */
        uint32_t same = 0;
        while (same < i && same < TEXT_BACK && s[i - 1 - same] == s[n - 1 - same])
            same++;
        if (same > best) {
            best = same;
            at = i;
        }
    }
    return at ? s[at] : -1;
}

/* The token that follows in the first way of the draft that says what is there so far, or -1. */
static int32_t by_draft(const struct spa_turn *t)
{
    const struct spa_ahead *a = &t->ahead;
    const uint32_t n = t->n_tokens + a->n;
    if (a->n_draft == 0 || a->draft_at > n)
        return -1;
    const uint32_t said = n - a->draft_at;
    for (uint32_t at = 0; at < a->n_draft; at++) {
        uint32_t len = 0, same = 0;
        while (at + len < a->n_draft && a->draft[at + len] != 0)
            len++;
        while (same < len && same < said && a->draft[at + same] == (uint32_t)t->tokens[a->draft_at + same] + 1)
            same++;
        if (same == said && said < len)
            return (int32_t)a->draft[at + said] - 1;
        at += len;
    }
    return -1;
}

void ahead_draft(struct spa_turn *t, const spa_State *s)
{
    struct spa_ahead *a = &t->ahead;
    if (a->window == 0 || s->draft_count == 0 || s->draft_index > t->n_tokens - t->n_prompt)
        return;   /* of tokens that nobody has said yet */
    a->n_draft = s->draft_count;
    a->draft_at = t->n_prompt + s->draft_index;
    memcpy(a->draft, s->draft, s->draft_count * sizeof *a->draft);
}

/* Of what there is to guess by, the source that was right most often; *token (may be NULL): what it says, unless it is the base. */
static enum spa_guess choose(const struct spa_engine *e, const struct spa_turn *t, int32_t *token)
{
    const float *share = e->slot_peer[t->slot]->guesses_right;
    const int32_t says[SPA_GUESSES] = { [SPA_GUESS_BASE] = -1, [SPA_GUESS_TEXT] = by_text(t), [SPA_GUESS_DRAFT] = by_draft(t) };
    enum spa_guess best = SPA_GUESS_BASE;
    for (enum spa_guess s = 0; s < SPA_GUESSES; s++)
        if (says[s] >= 0 && share[s] > share[best])
            best = s;
    if (token)
        *token = says[best];
    return best;
}

/* ---- measured ---- */

void ahead_came(struct peer *p, uint64_t asked_ms)
{
    const float ms = p->came_ms > asked_ms ? (float)(p->came_ms - asked_ms) : 0;
    spa_metrics_answer(&p->engine->metrics, p->came_ms > asked_ms ? p->came_ms - asked_ms : 0);
    p->round_trip_ms = p->round_trip_known ? p->round_trip_ms + (ms - p->round_trip_ms) / SMOOTH : ms;
    p->round_trip_known = true;
}

void ahead_step_took(struct spa_engine *e, float ms)
{
    e->step_ms = e->step_ms > 0 ? e->step_ms + (ms - e->step_ms) / SMOOTH : ms;
}

static void note_guess(struct peer *p, const struct spa_ahead *a, bool right)
{
    const enum spa_guess source = a->n ? row(a, 0)->source : SPA_GUESS_SURE;
    for (enum spa_guess s = 0; s < SPA_GUESSES; s++) {
        float *share = &p->guesses_right[s];
        *share += s == source ? ((right ? 1.0f : 0.0f) - *share) / SMOOTH : (hope[s] - *share) / FORGET;
    }
}

void ahead_hope(struct peer *p)
{
    memcpy(p->guesses_right, hope, sizeof hope);
}

/* Is one more guess of this turn, decoded now, more likely to save time than to cost some?
 *
 * With a the share of right guesses, p the chance that this one and all before it are, t a step, and `left` the time until the front's
 * state is due: without the step the cloud idles for `left`, which is lost if the guess was right; with it, the true token waits for
 * the rest of the step, t - left, if the front's guess was wrong. In a full house nobody idles
 * anyway. */
static bool worth(const struct spa_engine *e, const struct spa_turn *t)
{
    const struct peer *p = e->slot_peer[t->slot];
    const struct spa_ahead *a = &t->ahead;
    if (e->cfg.run_ahead_always)
        return true;
    if (!p->round_trip_known || e->full_house)
        return false;
    const uint64_t now_ms = spa_now_ms();
    const float since = now_ms > a->asked_ms ? (float)(now_ms - a->asked_ms) : 0, quarter = p->round_trip_ms / 4;
    const float left = p->round_trip_ms - since > quarter ? p->round_trip_ms - since : quarter;   /* overdue: nobody knows */
    float first = 1, chance = 1;
    for (uint32_t i = 0; i < a->n; i++) {
        chance *= row(a, i)->source == SPA_GUESS_SURE ? 1.0f : p->guesses_right[row(a, i)->source];
        first = i ? first : chance;
    }
    if (t->n_past == t->n_tokens + a->n && !sure(t)) {   /* it is still to be made */
        const enum spa_guess source = choose(e, t, NULL);
        chance *= p->guesses_right[source];
        first = a->n ? first : chance;
    }
    return chance > 0.02f && chance * left > (1 - first) * (e->step_ms - left);
}

/* ---- what is to be done ---- */

uint32_t ahead_room(const struct spa_engine *e)
{
    const uint32_t rows = e->cfg.run_ahead_rows ? e->cfg.run_ahead_rows : ROWS_DEFAULT;
    uint32_t ready = 0;
    if (e->cannot_cut)
        return 0;
    for (uint32_t i = 0; i < e->model->info.n_slots && ready < rows; i++) {
        const struct spa_turn *t = e->slots[i];
        if (t && t->status != SPA_TURN_AWAITING)
            ready += t->status == SPA_TURN_FEEDING ? t->n_tokens - t->n_past : 1;
    }
    return ready < rows ? rows - ready : 0;
}

bool ahead_wants_guess(const struct spa_engine *e, const struct spa_turn *t)
{
    const struct spa_ahead *a = &t->ahead;
    return !e->cannot_cut && t->status == SPA_TURN_AWAITING && a->n < a->window && !a->closed && t->n_past == t->n_tokens + a->n && worth(e, t);
}

bool ahead_wants_decode(const struct spa_engine *e, const struct spa_turn *t)
{
    const struct spa_ahead *a = &t->ahead;
    return !e->cannot_cut && t->status == SPA_TURN_AWAITING && !a->closed && t->n_past < t->n_tokens + a->n && worth(e, t);
}

/* ---- guesses ---- */

static void add_guess(struct spa_turn *t, const struct spa_model *m, int32_t token, enum spa_guess source)
{
    struct spa_ahead *a = &t->ahead;
    const uint32_t at = t->n_tokens + a->n;
    t->tokens[at] = token;
    *row(a, a->n++) = (struct spa_ahead_row){ .source = source };
    a->closed = at + 1 >= t->n_limit || (!t->ignore_end && m->is_end(m->self, token));
}

bool ahead_guess_by_words(const struct spa_engine *e, struct spa_turn *t)
{
    int32_t token;
    const enum spa_guess source = sure(t) ? SPA_GUESS_BASE : choose(e, t, &token);
    if (source != SPA_GUESS_BASE)
        add_guess(t, e->model, token, source);
    return source != SPA_GUESS_BASE;
}

const float *ahead_guess_state(const struct spa_engine *e, const struct spa_turn *t)
{
    return t->ahead.n ? row_state(e, &t->ahead, t->ahead.n - 1) : t->y_fin;
}

void ahead_guess_by_base(struct spa_engine *e, struct spa_turn *t, const float *logits)
{
    const uint32_t n = t->n_tokens + t->ahead.n;
    const int32_t token = spa_sample(&t->sampling, logits, e->model->info.n_vocab, t->tokens, n, n, e->candidates);
    add_guess(t, e->model, token, sure(t) ? SPA_GUESS_SURE : SPA_GUESS_BASE);
}

/* ---- decoded, answered ---- */

float *ahead_row_state(const struct spa_engine *e, const struct spa_turn *t)
{
    return row_state(e, &t->ahead, t->n_past - t->n_tokens);
}

void ahead_row_decoded(struct spa_turn *t, bool asked, uint64_t now_ms)
{
    struct spa_ahead *a = &t->ahead;
    struct spa_ahead_row *r = row(a, t->n_past - t->n_tokens);
    r->asked = asked;
    r->asked_ms = now_ms;
    r->by = spa_Speaker_BASE;
    if (r->source < SPA_GUESSES)
        a->guessed[r->source]++;
}

void ahead_answer(struct peer *p, struct spa_turn *t, uint32_t pos, const float *z, spa_Code refused)
{
    const struct spa_engine *e = p->engine;
    const uint32_t i = pos - t->n_tokens;
    if (pos < t->n_tokens || i >= n_rows(t) || !row(&t->ahead, i)->asked || row(&t->ahead, i)->answered)
        return;
    struct spa_ahead_row *r = row(&t->ahead, i);
    if (z)
        ahead_came(p, r->asked_ms);
    float *state = row_state(e, &t->ahead, i);
    const bool add = p->host.shape.mode == SPA_ADD;
    for (uint32_t k = 0; z && k < e->model->info.d; k++)
        state[k] = z[k] + (add ? state[k] : 0.0f);
    r->by = z ? spa_Speaker_PLUGIN : spa_Speaker_BASE;
    r->answered = true;
    r->refused = refused;
}

uint32_t ahead_awaited(const struct spa_turn *t)
{
    uint32_t n = t->status == SPA_TURN_AWAITING;
    for (uint32_t i = 0; i < n_rows(t); i++)
        n += row(&t->ahead, i)->asked && !row(&t->ahead, i)->answered;
    return n;
}

/* ---- the true token ---- */

bool ahead_is_right(const struct spa_turn *t, int32_t token)
{
    return t->ahead.n > 0 && t->tokens[t->n_tokens] == token;
}

/* Only positions below keep hold. */
static void cut(struct spa_engine *e, struct peer *p, struct spa_turn *t, uint32_t keep)
{
    struct spa_ahead *a = &t->ahead;
    uint32_t asked = 0;
    const uint32_t dropped = t->n_past > keep ? t->n_past - keep : 0;
    const bool told = t->sent_pos > keep;
    for (uint32_t i = 0; i < a->n; i++) {
        asked += row(a, i)->asked;
        if (i < dropped && row(a, i)->source < SPA_GUESSES)
            e->metrics.guesses_wrong[row(a, i)->source]++;
    }
    a->n = 0;
    a->closed = false;
    a->wasted_steps += dropped;
    if (dropped)
        t->n_past = keep;
    if (dropped && !e->model->seq_rm(e->model->self, t->slot, keep)) {   /* all of it is decoded again, once */
        e->model->seq_rm(e->model->self, t->slot, 0);
        t->n_past = 0;
        if (!e->cannot_cut)
            engine_log_at(e, SPA_LOG_WARN, "this model's memory cannot go back to an earlier token: from now on every token waits for its state");
        e->cannot_cut = true;
    }
    if (t->sent_pos > keep) {
        t->sent_pos = keep;
        t->n_ctx_rows = 0;
    } else if (t->n_ctx_rows > keep - t->sent_pos) {
        t->n_ctx_rows = keep - t->sent_pos;
    }
    if (told || asked)
        spa_host_back(&p->host, t->request, ++t->epoch, asked);
}

/* Row 0 becomes the front. */
static void advance(struct spa_engine *e, struct spa_turn *t)
{
    struct spa_ahead *a = &t->ahead;
    const struct spa_ahead_row r = *row(a, 0);
    const size_t bytes = e->model->info.d * sizeof *t->state;
    const float *state = row_state(e, a, 0);
    const bool decoded = t->n_past >= t->n_tokens;   /* n_tokens counts the confirmed guess by now */
    if (decoded && r.source < SPA_GUESSES) {
        a->right[r.source]++;
        e->metrics.guesses_right[r.source]++;
    }
    t->asked = decoded && r.asked;
    a->first = (a->first + 1) % a->window;
    a->n--;
    t->status = SPA_TURN_FEEDING;
    if (!decoded)
        return;
    if (r.asked && !r.answered) {
        memcpy(t->y_fin, state, bytes);
        a->asked_ms = r.asked_ms;
        t->status = SPA_TURN_AWAITING;
    } else {
        memcpy(t->state, state, bytes);
        t->by = r.by;
        t->status = SPA_TURN_STATE;
    }
    t->refused = r.refused;   /* the loop sees it before the state goes to the head */
}

bool ahead_settle(struct spa_engine *e, struct peer *p, struct spa_turn *t, bool right, int32_t *token)
{
    struct spa_ahead *a = &t->ahead;
    if (a->window)
        note_guess(p, a, right);
    if (!right) {
        cut(e, p, t, t->n_tokens - 1);
        t->status = SPA_TURN_FEEDING;
        return false;
    }
    advance(e, t);
    if (t->status != SPA_TURN_STATE || t->refused || a->n == 0 || row(a, 0)->source != SPA_GUESS_SURE)
        return false;
    *token = t->tokens[t->n_tokens];
    return true;
}

void ahead_end(struct spa_engine *e, struct peer *p, struct spa_turn *t)
{
    cut(e, p, t, t->n_past < t->n_tokens ? t->n_past : t->n_tokens);
}
