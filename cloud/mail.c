/* mail.c - in: bytes of connections and messages for them. out: the same, on the other thread. */
#include "mail.h"
#include "secret.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PACK_BYTES = 12 * 1024 };   /* of messages that leave together: they fit one TLS record */

struct spa_conn {
    struct spa_outgoing *out_head, *out_tail;
    size_t in_bytes, out_bytes;
    bool gone, gone_taken, hang_up, released, alone;
    enum spa_close close_as;
    uint64_t who;
    void *note;
};

struct node {
    struct node *next;
    struct spa_letter letter;
};

struct spa_mail {
    pthread_mutex_t lock;
    pthread_cond_t came;
    struct node *head, *tail;
    size_t room, out_max;
    bool unflushed;
    bool decodes, asleep;          /* the decode thread */
    uint64_t seen_ms;              /* when it last came for letters */
    struct spa_metrics shown;
    struct spa_metrics_sockets counts;
    void (*wake)(void *user);
    void *user;
};

uint64_t spa_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

struct spa_mail *spa_mail_new(size_t room, size_t out_max, void (*wake)(void *user), void *user)
{
    struct spa_mail *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->came, &attr);
    pthread_condattr_destroy(&attr);
    m->room = room;
    m->out_max = out_max;
    m->wake = wake;
    m->user = user;
    return m;
}

void spa_outgoing_free(struct spa_outgoing *o)
{
    if (o)
        explicit_bzero(o->data, o->len);
    free(o);
}

/* The lock is held; both sides have let go. */
static void drop(struct spa_conn *c)
{
    while (c->out_head) {
        struct spa_outgoing *o = c->out_head;
        c->out_head = o->next;
        spa_outgoing_free(o);
    }
    free(c);
}

void spa_mail_free(struct spa_mail *m)
{
    if (!m)
        return;
    while (m->head) {
        struct node *n = m->head;
        m->head = n->next;
        if (n->letter.kind == SPA_LETTER_GONE)
            drop(n->letter.conn);
        spa_secret_free(n->letter.bytes, n->letter.len);
        free(n);
    }
    pthread_cond_destroy(&m->came);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

/* Bytes that a piece takes up while it waits: many small ones take more than they bring. */
static size_t cost_of(size_t len) { return len + sizeof(struct node) + 32; }

/* The lock is held. */
static bool put(struct spa_mail *m, struct spa_letter letter)
{
    struct node *n = malloc(sizeof *n);
    if (!n)
        return false;
    letter.at_ms = spa_now_ms();
    *n = (struct node){ NULL, letter };
    if (m->tail)
        m->tail->next = n;
    else
        m->head = n;
    m->tail = n;
    pthread_cond_signal(&m->came);
    return true;
}

struct spa_conn *spa_mail_open(struct spa_mail *m, uint64_t who)
{
    struct spa_conn *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->who = who;
    pthread_mutex_lock(&m->lock);
    const bool ok = put(m, (struct spa_letter){ .kind = SPA_LETTER_OPEN, .conn = c });
    m->counts.open += ok;
    m->counts.opened += ok;
    pthread_mutex_unlock(&m->lock);
    if (!ok) {
        free(c);
        return NULL;
    }
    return c;
}

size_t spa_mail_bytes(struct spa_mail *m, struct spa_conn *c, const void *bytes, size_t len)
{
    uint8_t *copy = malloc(len ? len : 1);
    if (!copy)
        return SIZE_MAX;
    memcpy(copy, bytes, len);
    pthread_mutex_lock(&m->lock);
    size_t waiting = SIZE_MAX;
    if (put(m, (struct spa_letter){ .kind = SPA_LETTER_BYTES, .conn = c, .bytes = copy, .len = len }))
        waiting = c->in_bytes += cost_of(len);
    else
        spa_secret_free(copy, len);
    m->counts.bytes_in += len;
    pthread_mutex_unlock(&m->lock);
    return waiting;
}

size_t spa_mail_waiting(struct spa_mail *m, struct spa_conn *c)
{
    pthread_mutex_lock(&m->lock);
    const size_t waiting = c->in_bytes;
    pthread_mutex_unlock(&m->lock);
    return waiting;
}

void spa_mail_gone(struct spa_mail *m, struct spa_conn *c)
{
    pthread_mutex_lock(&m->lock);
    c->gone = true;
    m->counts.open--;
    /* Without memory for the letter the decode thread learns of it when it next sends: the connection leaks, no more. */
    put(m, (struct spa_letter){ .kind = SPA_LETTER_GONE, .conn = c });
    pthread_mutex_unlock(&m->lock);
}

void spa_mail_denied(struct spa_mail *m, struct spa_conn *c)
{
    pthread_mutex_lock(&m->lock);
    put(m, (struct spa_letter){ .kind = SPA_LETTER_DENIED, .conn = c });
    pthread_mutex_unlock(&m->lock);
}

void spa_mail_drain(struct spa_mail *m)
{
    pthread_mutex_lock(&m->lock);
    put(m, (struct spa_letter){ .kind = SPA_LETTER_DRAIN });
    pthread_mutex_unlock(&m->lock);
}

/* The lock is held. There is a first message. */
static struct spa_outgoing *take_out(struct spa_conn *c)
{
    struct spa_outgoing *o = c->out_head;
    c->out_head = o->next;
    if (!c->out_head)
        c->out_tail = NULL;
    c->out_bytes -= o->len;
    o->next = NULL;
    return o;
}

static struct spa_outgoing *new_out(const struct spa_mail *m, size_t len)
{
    struct spa_outgoing *o = malloc(sizeof *o + m->room + len);
    if (o)
        *o = (struct spa_outgoing){ .len = len, .data = (uint8_t *)(o + 1) + m->room };
    return o;
}

/* The lock is held. As many of the first messages as go together; NULL: only one does, or there is no memory. */
static struct spa_outgoing *take_packed(const struct spa_mail *m, struct spa_conn *c)
{
    size_t len = 0, n = 0;
    for (const struct spa_outgoing *o = c->out_head; o && !c->alone && len + o->len <= PACK_BYTES; o = o->next) {
        len += o->len;
        n++;
    }
    struct spa_outgoing *all = n > 1 ? new_out(m, len) : NULL;
    for (size_t at = 0; all && at < len;) {
        struct spa_outgoing *o = take_out(c);
        memcpy(all->data + at, o->data, o->len);
        at += o->len;
        spa_outgoing_free(o);
    }
    return all;
}

struct spa_outgoing *spa_mail_next_out(struct spa_mail *m, struct spa_conn *c, bool *hang_up)
{
    pthread_mutex_lock(&m->lock);
    struct spa_outgoing *o = take_packed(m, c);
    if (!o && c->out_head)
        o = take_out(c);
    *hang_up = c->hang_up && !c->out_head;
    m->counts.bytes_out += o ? o->len : 0;
    pthread_mutex_unlock(&m->lock);
    return o;
}

enum spa_close spa_mail_close_as(struct spa_mail *m, struct spa_conn *c)
{
    pthread_mutex_lock(&m->lock);
    const enum spa_close as = c->close_as;
    pthread_mutex_unlock(&m->lock);
    return as;
}

bool spa_mail_hangs_up(struct spa_mail *m, struct spa_conn *c)
{
    pthread_mutex_lock(&m->lock);
    const bool hangs_up = c->hang_up;
    pthread_mutex_unlock(&m->lock);
    return hangs_up;
}

bool spa_mail_is_gone(struct spa_mail *m, struct spa_conn *c)
{
    pthread_mutex_lock(&m->lock);
    const bool gone = c->gone;
    pthread_mutex_unlock(&m->lock);
    return gone;
}

bool spa_mail_busy(struct spa_mail *m)
{
    pthread_mutex_lock(&m->lock);
    const bool busy = m->counts.open > 0;
    pthread_mutex_unlock(&m->lock);
    return busy;
}

bool spa_mail_has_out(struct spa_mail *m, struct spa_conn *c)
{
    pthread_mutex_lock(&m->lock);
    const bool has = c->out_head || c->hang_up;
    pthread_mutex_unlock(&m->lock);
    return has;
}

enum spa_decoder spa_mail_decoder(struct spa_mail *m, uint64_t stall_ms)
{
    pthread_mutex_lock(&m->lock);
    const bool runs = m->decodes, stalled = !m->asleep && spa_now_ms() > m->seen_ms + stall_ms;
    pthread_mutex_unlock(&m->lock);
    return !runs ? SPA_DECODER_OFF : stalled ? SPA_DECODER_STALLED : SPA_DECODER_RUNS;
}

void spa_mail_look(struct spa_mail *m, struct spa_metrics *shown, struct spa_metrics_sockets *s)
{
    pthread_mutex_lock(&m->lock);
    *shown = m->shown;
    s->bytes_in = m->counts.bytes_in;
    s->bytes_out = m->counts.bytes_out;
    s->opened = m->counts.opened;
    s->open = m->counts.open;
    pthread_mutex_unlock(&m->lock);
}

void spa_mail_decodes(struct spa_mail *m, bool runs)
{
    pthread_mutex_lock(&m->lock);
    m->decodes = runs;
    m->seen_ms = spa_now_ms();
    pthread_mutex_unlock(&m->lock);
}

void spa_mail_show(struct spa_mail *m, const struct spa_metrics *metrics)
{
    pthread_mutex_lock(&m->lock);
    m->shown = *metrics;
    pthread_mutex_unlock(&m->lock);
}

/* The lock is held. Takes the first letter out; false: there was none to hand out. */
static bool take_first(struct spa_mail *m, struct spa_letter *out)
{
    while (m->head) {
        struct node *n = m->head;
        m->head = n->next;
        if (!m->head)
            m->tail = NULL;
        *out = n->letter;
        free(n);
        if (out->kind == SPA_LETTER_BYTES) {
            out->conn->in_bytes -= cost_of(out->len);
            m->unflushed = true;   /* the socket thread may have stopped reading: let it look again */
        }
        if (out->kind == SPA_LETTER_GONE) {
            out->conn->gone_taken = true;
            if (out->conn->released) {
                drop(out->conn);
                continue;
            }
        }
        return true;
    }
    return false;
}

bool spa_mail_take(struct spa_mail *m, uint64_t deadline_ms, struct spa_letter *out)
{
    pthread_mutex_lock(&m->lock);
    bool took = take_first(m, out);
    m->asleep = true;
    while (!took && deadline_ms != 0) {
        if (deadline_ms == UINT64_MAX) {
            pthread_cond_wait(&m->came, &m->lock);
        } else {
            const struct timespec until = { (time_t)(deadline_ms / 1000), (long)(deadline_ms % 1000) * 1000000 };
            if (pthread_cond_timedwait(&m->came, &m->lock, &until) != 0)
                deadline_ms = 0;
        }
        took = take_first(m, out);
    }
    m->asleep = false;
    m->seen_ms = spa_now_ms();
    pthread_mutex_unlock(&m->lock);
    return took;
}

enum spa_err spa_mail_send(struct spa_mail *m, struct spa_conn *c, const void *a, size_t a_len, const void *b, size_t b_len)
{
    struct spa_outgoing *o = new_out(m, a_len + b_len);
    if (!o)
        return SPA_ERR_CLOSED;
    memcpy(o->data, a, a_len);
    if (b_len)
        memcpy(o->data + a_len, b, b_len);
    pthread_mutex_lock(&m->lock);
    const bool ok = !c->gone && !c->hang_up && c->out_bytes + o->len <= m->out_max;
    if (ok) {
        if (c->out_tail)
            c->out_tail->next = o;
        else
            c->out_head = o;
        c->out_tail = o;
        c->out_bytes += o->len;
        m->unflushed = true;
    }
    pthread_mutex_unlock(&m->lock);
    if (!ok)
        spa_outgoing_free(o);
    return ok ? SPA_OK : SPA_ERR_CLOSED;
}

void spa_mail_alone(struct spa_mail *m, struct spa_conn *c)
{
    pthread_mutex_lock(&m->lock);
    c->alone = true;
    pthread_mutex_unlock(&m->lock);
}

size_t spa_mail_out_bytes(struct spa_mail *m, struct spa_conn *c)
{
    pthread_mutex_lock(&m->lock);
    const size_t n = c->out_bytes;
    pthread_mutex_unlock(&m->lock);
    return n;
}

void spa_mail_hang_up(struct spa_mail *m, struct spa_conn *c, enum spa_close as)
{
    pthread_mutex_lock(&m->lock);
    c->hang_up = true;
    c->close_as = as;
    m->unflushed = true;
    pthread_mutex_unlock(&m->lock);
}

void spa_mail_flush(struct spa_mail *m)
{
    pthread_mutex_lock(&m->lock);
    const bool wake = m->unflushed;
    m->unflushed = false;
    pthread_mutex_unlock(&m->lock);
    if (wake)
        m->wake(m->user);
}

void spa_mail_release(struct spa_mail *m, struct spa_conn *c)
{
    pthread_mutex_lock(&m->lock);
    c->released = true;
    if (c->gone_taken)
        drop(c);
    pthread_mutex_unlock(&m->lock);
}

void **spa_conn_note(struct spa_conn *c)
{
    return &c->note;
}

uint64_t spa_conn_who(const struct spa_conn *c)
{
    return c->who;
}
