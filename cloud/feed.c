/* feed.c - in: turns and training rows with tokens to decode; the states that the decode left. out: one batch for all of
 * them; questions to devices, states for the head, features of rows.
 *
 * Order in a batch: first the turns that need one token, so that nobody's stream waits for another's prompt; then prompts,
 * beginning with another slot each round; then guesses, where few tokens are in it so far (ahead.c). Training rows beside them, of one connection at a time, up to n_learn_batch, or some
 * tokens of anchors. */
#include "engine_parts.h"
#include "secret.h"
#include "gate.h"

#include <stdlib.h>
#include <string.h>

/* peer.c checked at HELLO that a full row and a context row fit into the device's messages and ours (engine_fit_rows). */
bool feed_asks(const struct peer *p, const struct spa_turn *t)
{
    return p->host.has_plugin && t->gate != spa_GateMode_GATE_NEVER;
}

static bool wants_layer_n(const struct spa_engine *e, const struct spa_shape *s)
{
    return s->n_ctx_taps && s->ctx_taps[s->n_ctx_taps - 1] == e->model->info.n_layers;
}

static void add_layers(struct spa_engine *e, const uint32_t *layers, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        e->layer_at[layers[i]] = 0;
}

/* Adds tokens from..from+n-1 of a sequence. last_is_output: the last one's state is wanted; context: every one's taps are. */
static void add_run(struct spa_engine *e, struct fed f, const int32_t *tokens, uint32_t from, uint32_t n, uint32_t seq)
{
    const struct spa_shape *s = &f.peer->host.shape;
    const bool asks = f.turn ? feed_asks(f.peer, f.turn) : true;
    const bool fits_only = f.row && f.row->fit && !f.row->raw && !spa_fit_reads_context(s);   /* of loss tokens, whose taps are no use beyond it */
    const bool context = asks && s->n_ctx_taps && !fits_only;
    const enum spa_want other = !context ? SPA_WANT_NONE : wants_layer_n(e, s) ? SPA_WANT_ALL : SPA_WANT_MID;
    f.at = e->n_batch;
    f.n = n;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t pos = from + i;
        const bool all = f.turn ? pos + 1 >= f.turn->n_tokens : spa_learn_is_loss(f.row, pos);
        e->batch[e->n_batch++] = (struct spa_batch_token){ tokens[pos], pos, seq, all ? SPA_WANT_ALL : other };
    }
    if (asks && (f.row || from + n >= f.turn->n_tokens))
        add_layers(e, s->taps, s->n_taps);
    if (context)
        add_layers(e, s->ctx_taps, s->n_ctx_taps);
    e->fed[e->n_fed++] = f;
}

/* The next tokens of a turn, at most `room`. Those of the answer that were confirmed are not decoded with the prompt's, and in pieces
 * that give them the bits which they had when they were said, one after the other. */
static uint32_t next_piece(const struct spa_engine *e, const struct spa_turn *t, uint32_t room)
{
    const uint32_t all = t->n_tokens - t->n_past, width = e->cfg.replay_width, until = e->cfg.replay_until;
    uint32_t n = all;
    if (t->n_past < t->n_prompt)
        n = t->n_prompt - t->n_past;
    else if (all > 1)
        n = width < 2 || t->n_past >= until ? 1 : width < until - t->n_past ? width : until - t->n_past;
    n = n < all ? n : all;
    return n < room ? n : room;
}

/* Single tokens no more than the call should have (pace.h): the next call begins where this one left off. Prompts as they are. */
static void collect_turns(struct spa_engine *e, bool prompts)
{
    const uint32_t n_slots = e->model->info.n_slots, room = prompts || e->width > e->model->info.n_batch ? e->model->info.n_batch : e->width;
    for (uint32_t i = 0; i < n_slots && e->n_batch < room; i++) {
        const uint32_t slot = (e->next_slot + i) % n_slots;
        struct spa_turn *t = e->slots[slot];
        if (!t || t->status != SPA_TURN_FEEDING || (t->n_tokens - t->n_past > 1) != prompts)
            continue;
        const uint32_t n = next_piece(e, t, room - e->n_batch);
        if (!prompts && e->n_batch + 1 == room)
            e->then_slot = (slot + 1) % n_slots;
        add_run(e, (struct fed){ .peer = e->slot_peer[slot], .turn = t }, t->tokens, t->n_past, n, slot);
    }
}

static void collect_guesses(struct spa_engine *e)
{
    const uint32_t n_slots = e->model->info.n_slots, room = e->model->info.n_batch;
    for (uint32_t i = 0, left = ahead_room(e); i < n_slots && left > 0 && e->n_batch < room; i++) {
        const uint32_t slot = (e->next_slot + i) % n_slots;
        struct spa_turn *t = e->slots[slot];
        if (!t || !ahead_wants_decode(e, t))
            continue;
        add_run(e, (struct fed){ .peer = e->slot_peer[slot], .turn = t }, t->tokens, t->n_past, 1, slot);
        left--;
    }
}

/* The model's learning sequences and cells: a share of both is for anchors, so that these never decide how rows are batched. */
static uint32_t row_seqs(const struct spa_model_info *info) { return info->n_learn_seqs - (info->n_learn_seqs + 3) / 4; }
static uint32_t row_cells(const struct spa_model_info *info) { return info->n_learn_cells - info->n_ctx_slot; }

static int32_t free_seq(const struct spa_engine *e, uint32_t from, uint32_t to)
{
    for (uint32_t i = from; i < to; i++)
        if (!e->seq_taken[i])
            return (int32_t)i;
    return -1;
}

/* A device that does not read what it asked for gets no new rows into the model until it does. */
bool feed_may_send(const struct spa_engine *e, const struct peer *p)
{
    return spa_mail_out_bytes(e->cfg.mail, p->conn) < LEARN_OUT_MAX;
}

/* The model holds one group at a time, so that what a batch is made of never depends on other devices. They wait for it: once begun it goes on
 * for as long as the queue to its device, which may read slowly, has room. Who has used up a minute's tokens begins no other group: rows wait,
 * they are not refused. */
bool feed_may_learn(const struct spa_engine *e, const struct peer *p)
{
    if (p->groups_ready == 0 || p->fit_running || peer_broken(p))
        return false;
    if (e->learner)
        return e->learner == p && spa_mail_out_bytes(e->cfg.mail, p->conn) < e->cfg.max_out / 2;
    return feed_may_send(e, p) && spa_account_wait_ms(&e->accounts, p->account, 0, spa_now_ms()) == 0;
}

/* What all rows of the group begin with, or the next part of it. The rows themselves come behind, when it is there. */
static void collect_lead(struct spa_engine *e, struct peer *p)
{
    const struct spa_model_info *info = &e->model->info;
    if (!e->lead.placed) {
        const int32_t seq = free_seq(e, 0, row_seqs(info));
        if (seq < 0)
            return;
        lead_place(e, p->rows, (uint32_t)seq);
    }
    const uint32_t left = e->lead.n - e->lead.n_done, n = left < info->n_learn_batch ? left : info->n_learn_batch;
    add_run(e, (struct fed){ .peer = p, .row = p->rows, .lead = true }, p->rows->tokens, e->lead.n_done, n, info->n_slots + e->lead.seq);
}

/* Fills a batch with the rows of one group, in order; the last one may be cut and goes on in the next batch. */
static void collect_rows(struct spa_engine *e, struct peer *p)
{
    const struct spa_model_info *info = &e->model->info;
    uint32_t room = info->n_learn_batch;
    bool end = false;
    e->learner = p;
    if (p->rows->n_lead > e->lead.n_done) {
        collect_lead(e, p);
        return;
    }
    for (struct spa_learn_row *r = p->rows; r && room > 0 && !end; r = r->next) {
        if (!r->placed) {
            const int32_t seq = free_seq(e, 0, row_seqs(info));
            if (seq < 0 || e->learn_cells + r->n_feed - r->n_lead > row_cells(info))
                return;
            r->placed = true;
            r->seq = (uint32_t)seq;
            e->seq_taken[seq] = true;
            e->learn_cells += r->n_feed - r->n_lead;
            lead_continue(e, r);
        }
        const uint32_t left = r->n_feed - r->n_done, n = left < room ? left : room;
        add_run(e, (struct fed){ .peer = p, .row = r }, r->tokens, r->n_done, n, info->n_slots + r->seq);
        room -= n;
        end = r->group_end;
    }
}

static int32_t lend_seat(void *engine, uint32_t cells)
{
    struct spa_engine *e = engine;
    const struct spa_model_info *info = &e->model->info;
    const int32_t seq = e->anchor_cells + cells <= info->n_ctx_slot ? free_seq(e, row_seqs(info), info->n_learn_seqs) : -1;
    if (seq >= 0) {
        e->seq_taken[seq] = true;
        e->anchor_cells += cells;
    }
    return seq;
}

static void take_seat_back(void *engine, uint32_t seq, uint32_t cells)
{
    struct spa_engine *e = engine;
    e->seq_taken[seq] = false;
    e->anchor_cells -= cells;
}

void feed_seats(struct spa_engine *e)
{
    spa_anchors_sit(e->cfg.anchors, (struct spa_anchors_seats){ lend_seat, take_seat_back, e });
}

static void collect_anchors(struct spa_engine *e)
{
    const uint32_t at = e->n_batch, n = spa_anchors_collect(e->cfg.anchors, e->batch + at, e->model->info.n_learn_batch, e->layer_at);
    if (n)
        e->fed[e->n_fed++] = (struct fed){ .at = at, .n = n };
    e->n_batch += n;
}

/* A group that its device does not read holds up all others. */
static void cut_stalled_learner(struct spa_engine *e)
{
    struct peer *p = e->learner;
    const uint64_t now_ms = spa_now_ms();
    if (!p || peer_broken(p) || feed_may_learn(e, p))
        e->learner_stalled_ms = 0;
    else if (!e->learner_stalled_ms)
        e->learner_stalled_ms = now_ms;
    else if (now_ms - e->learner_stalled_ms > LEARNER_STALL_MS)
        peer_cut(p, SPA_CUT_UNREAD, spa_Code_LATE_ANSWER, "the rows that were asked for are not read, and others wait for their turn; ask for fewer at once");
}

/* Rows of the connection whose turn it is. Between two groups anchors have a round. */
static bool collect_a_group(struct spa_engine *e)
{
    struct peer *p = e->next_learner ? e->next_learner : e->peers;
    const bool pause = !e->learner && e->anchors_next && spa_anchors_busy(e->cfg.anchors);
    e->anchors_next = false;
    for (uint32_t i = 0; !pause && i < e->n_peers; i++, p = p->next ? p->next : e->peers)
        if (feed_may_learn(e, p)) {
            collect_rows(e, p);
            return true;
        }
    return false;
}

void feed_collect(struct spa_engine *e)
{
    e->n_batch = e->n_fed = e->n_layers = 0;
    for (uint32_t l = 0; l <= e->model->info.n_layers; l++)
        e->layer_at[l] = -1;
    e->then_slot = (e->next_slot + 1) % e->model->info.n_slots;
    collect_turns(e, false);
    collect_turns(e, true);
    collect_guesses(e);
    e->next_slot = e->then_slot;
    cut_stalled_learner(e);
    if (!collect_a_group(e) && e->cfg.anchors)
        collect_anchors(e);
    for (uint32_t l = 0; l <= e->model->info.n_layers; l++)
        if (e->layer_at[l] >= 0) {
            e->layer_at[l] = (int32_t)e->n_layers;
            e->layers[e->n_layers++] = l;
        }
}

/* ---- after the decode ---- */

/* Where each of the plugin's taps of one decoded row is: y [n_taps]. */
static void taps_of(const struct spa_engine *e, const struct spa_shape *sh, const struct spa_states *s, uint32_t wanted, const float **y)
{
    for (uint32_t i = 0; i < sh->n_taps; i++)
        y[i] = s->taps + ((size_t)(e->layer_at[sh->taps[i]] < 0 ? 0 : e->layer_at[sh->taps[i]]) * s->n_wanted + wanted) * sh->d;
}

/* All taps, or the context taps alone, as the device wants them. */
static void prepare(struct spa_engine *e, const struct peer *p, const float *const *y, bool context_only, float *x)
{
    const struct spa_shape *sh = &p->host.shape;
    const float *basis = p->basis ? p->basis->floats : NULL;
    uint32_t c = 0;
    for (uint32_t i = 0; i < sh->n_taps; i++) {
        if (context_only && (c == sh->n_ctx_taps || sh->taps[i] != sh->ctx_taps[c]))
            continue;
        spa_tap_prepare(sh, basis, i, y[i], e->scratch, x + (size_t)c * sh->k);
        c++;
    }
}

/* Is the device asked for this token? Then, and whenever its gate reads them, its taps are in e->x. */
static bool ask_for(struct spa_engine *e, const struct peer *p, const struct spa_turn *t, const float *const *y, const float *y_fin)
{
    const struct spa_shape *sh = &p->host.shape;
    const uint32_t d = e->model->info.d;
    const bool always = t->gate == spa_GateMode_GATE_ALWAYS || !p->gate;
    if (always || p->gate_taps)
        prepare(e, p, y, false, e->x);
    if (always)
        return true;
    float score = spa_gate_score(d, p->gate, p->gate_bias, y_fin);
    if (p->gate_taps)
        return spa_gate_score((size_t)sh->n_taps * sh->k, p->gate + d, score, e->x) > 0;
    if (score > 0)
        prepare(e, p, y, false, e->x);
    return score > 0;
}

static bool keep_ctx_row(struct spa_engine *e, const struct peer *p, struct spa_turn *t)
{
    const size_t bytes = spa_wire_ctx_row_bytes(&p->host.shape, p->host.tap_dtype);
    const size_t at = t->n_ctx_rows * bytes;
    if (at + bytes > t->ctx_rows_cap) {
        const size_t cap = 2 * (at + bytes);
        uint8_t *more = cap <= UINT32_MAX ? spa_secret_grow(t->ctx_rows, t->ctx_rows_cap, cap) : NULL;
        if (!more)
            return false;
        t->ctx_rows = more;
        t->ctx_rows_cap = (uint32_t)cap;
    }
    spa_dtype_pack(p->host.tap_dtype, e->x_ctx, p->host.shape.n_ctx_taps, p->host.shape.k, t->ctx_rows + at);
    t->n_ctx_rows++;
    return true;
}

bool feed_house(struct spa_engine *e, const struct peer *p, struct spa_turn *t, uint32_t n)
{
    const struct spa_shape *sh = &p->host.shape;
    const float *first[SPA_MAX_TAPS] = { 0 }, *y[SPA_MAX_TAPS];
    uint32_t c = 0;
    for (uint32_t i = 0; i < sh->n_taps && c < sh->n_ctx_taps; i++)
        if (sh->taps[i] == sh->ctx_taps[c]) {
            first[i] = spa_house_taps(t->house, sh->taps[i], n);
            if (!first[i])
                return false;
            c++;
        }
    for (uint32_t pos = 0; pos < n; pos++) {
        for (uint32_t i = 0; i < sh->n_taps; i++)
            y[i] = first[i] ? first[i] + (size_t)pos * sh->d : NULL;
        prepare(e, p, y, true, e->x_ctx);
        if (!keep_ctx_row(e, p, t)) {
            t->n_ctx_rows = 0;
            return false;
        }
    }
    return true;
}

/* What a prompt's decoding tells about its house prompt. y: the plugin's taps; those that are not context taps may be any. */
static void note_house(const struct peer *p, const struct spa_turn *t, uint32_t pos, const float *const *y)
{
    const struct spa_shape *sh = &p->host.shape;
    for (uint32_t i = 0, c = 0; pos < t->n_house && i < sh->n_taps && c < sh->n_ctx_taps; i++)
        if (sh->taps[i] == sh->ctx_taps[c]) {
            spa_house_note(t->house, sh->taps[i], pos, y[i]);
            c++;
        }
}

/* Sends the context rows that wait, then the full row: in as many messages as the device's limit asks for. */
static enum spa_err ask(struct spa_engine *e, struct peer *p, struct spa_turn *t, uint64_t now_ms)
{
    const size_t row = spa_wire_row_bytes(&p->host.shape, p->host.tap_dtype);
    const size_t ctx = spa_wire_ctx_row_bytes(&p->host.shape, p->host.tap_dtype);
    const size_t room = p->host.peer_max_message - SPA_HEAD_MAX - row, limit = room < CTX_PIECE ? room : CTX_PIECE;
    uint32_t done = 0;
    enum spa_err err = SPA_OK;
    while (err == SPA_OK && ctx && (t->n_ctx_rows - done) * ctx > limit) {
        const uint32_t n = (uint32_t)(limit / ctx);
        err = spa_host_ask(&p->host, t->request, t->epoch, t->sent_pos + done, n, NULL, 0, t->ctx_rows + done * ctx, n * ctx, now_ms);
        done += n;
    }
    if (err != SPA_OK)
        return err;
    const uint32_t left = t->n_ctx_rows - done, pos = t->n_past - 1;
    const size_t left_bytes = left * ctx;
    uint8_t *bulk = e->packed;
    if (left_bytes)
        memcpy(bulk, t->ctx_rows + done * ctx, left_bytes);
    spa_dtype_pack(p->host.tap_dtype, e->x, p->host.shape.n_taps, p->host.shape.k, bulk + left_bytes);
    t->n_ctx_rows = 0;
    t->sent_pos = t->n_past;
    return spa_host_ask(&p->host, t->request, t->epoch, pos - left, left + 1, &left, 1, bulk, left_bytes + row, now_ms);
}

static void deliver_turn(struct spa_engine *e, const struct fed *f, const struct spa_states *s, uint64_t now_ms)
{
    struct spa_turn *t = f->turn;
    struct peer *p = f->peer;
    const uint32_t d = e->model->info.d;
    const bool asks = feed_asks(p, t), context = asks && p->host.shape.n_ctx_taps;
    const bool guess = t->n_past >= t->n_tokens, last = t->n_past + f->n >= t->n_tokens;
    float *y_fin = guess ? ahead_row_state(e, t) : t->y_fin;
    const float *y[SPA_MAX_TAPS];
    bool fire = false;
    const uint32_t of_prompt = t->n_past >= t->n_prompt ? 0 : f->n < t->n_prompt - t->n_past ? f->n : t->n_prompt - t->n_past;
    e->metrics.prompt_tokens_decoded += of_prompt;
    spa_account_spend(&e->accounts, p->account, of_prompt);
    t->steps++;
    t->shared_steps += e->n_fed > 1;
    if (last) {
        const uint32_t wanted = f->wanted_at + (context ? f->n - 1 : 0);
        memcpy(y_fin, s->y_fin + (size_t)wanted * d, d * sizeof *y_fin);
        if (asks)
            taps_of(e, &p->host.shape, s, wanted, y);
        fire = asks && ask_for(e, p, t, y, y_fin);
        t->quiet = asks && t->pad && !fire;
        if (t->quiet) {   /* asked like any other token, and then the base speaks */
            prepare(e, p, y, false, e->x);
            fire = true;
        }
    }
    for (uint32_t i = 0; context && i < f->n; i++) {
        if (last && fire && i == f->n - 1)
            break;   /* its context taps are part of the full row */
        if (t->n_past + i < t->sent_pos + t->n_ctx_rows)
            continue;   /* decoded again: the device has it, or will */
        taps_of(e, &p->host.shape, s, f->wanted_at + i, y);
        note_house(p, t, t->n_past + i, y);
        prepare(e, p, y, true, e->x_ctx);
        if (!keep_ctx_row(e, p, t)) {
            peer_turn_fail(p, t, spa_Code_INTERNAL, "the cloud is out of memory; try again later");
            return;
        }
    }
    if (guess)
        ahead_row_decoded(t, fire, now_ms);
    t->n_past += f->n;
    if (!guess)
        t->asked = fire && !t->quiet;   /* padding asks with the gate closed, too */
    if (fire && !guess) {
        t->by = spa_Speaker_BASE;
        t->status = SPA_TURN_AWAITING;
        t->ahead.waits++;
        t->ahead.asked_ms = now_ms;
    }
    if (fire) {
        /* An error here is the connection's: the loop finds it broken and hangs up. */
        if (ask(e, p, t, now_ms) == SPA_OK && t->quiet)
            spa_host_request(&p->host, t->request)->gated--;
    } else if (last && !guess) {
        t->by = spa_Speaker_BASE;
        memcpy(t->state, t->y_fin, d * sizeof *t->state);
        t->status = SPA_TURN_STATE;
    }
}

/* One position of a row: its features, from wherever its raw taps are. */
static void row_position(struct spa_engine *e, struct peer *p, struct spa_learn_row *r, uint32_t pos, const float *const *y, const float *y_fin)
{
    const bool loss = spa_learn_is_loss(r, pos);
    if (r->n_ctx)
        prepare(e, p, y, true, e->x_ctx);
    if (loss)
        prepare(e, p, y, false, e->x);
    spa_learn_row_state(r, &p->host.shape, p->host.tap_dtype, pos, r->n_ctx ? e->x_ctx : NULL, loss ? e->x : NULL, loss ? y_fin : NULL);
}

/* Prompts are longer than answers, and their first tokens the same in all rows: every fourth token, not always the same. */
enum { FIT_EVERY = 4 };

static void note_raw(const struct spa_shape *sh, struct spa_learn_row *r, uint32_t pos, const float *const *y)
{
    float *to = spa_learn_raw_at(r, sh, pos, r->loss_done);
    for (uint32_t i = 0; i < sh->n_taps; i++)
        memcpy(to + (size_t)i * sh->d, y[i], sh->d * sizeof *to);
}

static void fit_position(struct peer *p, struct spa_learn_row *r, uint32_t pos, const float *const *y, const float *y_fin)
{
    const struct spa_shape *sh = &p->host.shape;
    const bool loss = spa_learn_is_loss(r, pos);
    if (r->raw) {
        note_raw(sh, r, pos, y);
        if (loss)
            memcpy(r->raw_fin + (size_t)r->loss_done * sh->d, y_fin, sh->d * sizeof *r->raw_fin);
    }
    if (loss) {
        spa_fit_add(p->fit, y);
        r->loss_done++;
    } else if (spa_fit_reads_context(sh) && (pos + r->id) % FIT_EVERY == 0) {
        spa_fit_add_context(p->fit, y);
    }
}

/* Context for every row of the group. No basis is fitted on it: what is the same in all rows tells none from another, and a long system prompt
 * would have most of the directions. */
static void deliver_lead(struct spa_engine *e, const struct fed *f, const struct spa_states *s)
{
    struct peer *p = f->peer;
    const struct spa_shape *sh = &p->host.shape;
    const float *y[SPA_MAX_TAPS];
    uint32_t wanted = f->wanted_at;
    for (uint32_t i = 0; i < f->n && sh->n_ctx_taps; i++) {
        if (e->batch[f->at + i].want == SPA_WANT_NONE)
            continue;
        const uint32_t pos = e->lead.n_done + i;
        bool ready = false;
        taps_of(e, sh, s, wanted++, y);
        for (struct spa_learn_row *r = f->row; r && r->group == f->row->group; r = r->next) {
            if (r->n_ctx && !ready)
                prepare(e, p, y, true, e->x_ctx);
            ready = ready || r->n_ctx;
            if (r->raw)
                note_raw(sh, r, pos, y);
            if (r->n_ctx)
                spa_learn_row_state(r, sh, p->host.tap_dtype, pos, e->x_ctx, NULL, NULL);
        }
    }
    e->lead.n_done += f->n;
    e->metrics.training_tokens += f->n;
    spa_account_spend(&e->accounts, p->account, f->n);
}

static void deliver_row(struct spa_engine *e, const struct fed *f, const struct spa_states *s)
{
    struct spa_learn_row *r = f->row;
    struct peer *p = f->peer;
    const float *y[SPA_MAX_TAPS];
    uint32_t wanted = f->wanted_at;
    for (uint32_t i = 0; i < f->n; i++) {
        if (e->batch[f->at + i].want == SPA_WANT_NONE)
            continue;
        const float *y_fin = s->y_fin + (size_t)wanted * e->model->info.d;
        taps_of(e, &p->host.shape, s, wanted++, y);
        if (r->fit)
            fit_position(p, r, r->n_done + i, y, y_fin);
        else
            row_position(e, p, r, r->n_done + i, y, y_fin);
    }
    r->n_done += f->n;
    e->metrics.training_tokens += f->n;
    spa_account_spend(&e->accounts, p->account, f->n);
    if (r->n_done == r->n_feed)
        peer_row_done(p, r);
}

void feed_kept(struct spa_engine *e, struct peer *p, const struct spa_learn_row *kept, struct spa_learn_row *r)
{
    const struct spa_shape *sh = &p->host.shape;
    const float *y[SPA_MAX_TAPS];
    for (uint32_t pos = 0; pos < r->n_feed; pos++) {
        if (!r->n_ctx && !spa_learn_is_loss(r, pos))
            continue;
        const float *raw = spa_learn_raw_at(kept, sh, pos, r->loss_done);
        for (uint32_t i = 0; i < sh->n_taps; i++)
            y[i] = raw + (size_t)i * sh->d;
        row_position(e, p, r, pos, y, kept->raw_fin + (size_t)r->loss_done * sh->d);
    }
}

void feed_anchor(struct spa_engine *e, struct peer *p, const struct spa_anchor *anchor, struct spa_learn_row *r, float *raw)
{
    const struct spa_shape *sh = &p->host.shape;
    float *y_fin = raw + (size_t)sh->n_taps * sh->d;
    const float *y[SPA_MAX_TAPS];
    for (uint32_t i = 0; i < sh->n_taps; i++)
        y[i] = raw + (size_t)i * sh->d;
    for (uint32_t pos = 0; pos < r->n_feed; pos++) {
        const bool loss = spa_learn_is_loss(r, pos);
        if (!r->n_ctx && !loss)
            continue;
        spa_anchor_taps(p->anchors, anchor, pos, raw);
        if (loss)
            spa_anchor_y_fin(p->anchors, anchor, r->loss_done, y_fin);
        row_position(e, p, r, pos, y, y_fin);
    }
}

void feed_deliver(struct spa_engine *e, const struct spa_states *s, uint64_t now_ms)
{
    uint32_t wanted = 0;
    for (uint32_t i = 0; i < e->n_fed; i++) {
        e->fed[i].wanted_at = wanted;
        for (uint32_t k = 0; k < e->fed[i].n; k++)
            wanted += e->batch[e->fed[i].at + k].want != SPA_WANT_NONE;
    }
    for (uint32_t i = 0; i < e->n_fed; i++) {
        if (!e->fed[i].peer)
            spa_anchors_deliver(e->cfg.anchors, s, e->fed[i].wanted_at, e->layer_at);
        else if (e->fed[i].turn)
            deliver_turn(e, &e->fed[i], s, now_ms);
        else if (e->fed[i].lead)
            deliver_lead(e, &e->fed[i], s);
        else
            deliver_row(e, &e->fed[i], s);
    }
}
