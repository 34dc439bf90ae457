/* cut.c - in: a connection that is to end before its device likes. out: why, for metrics, the log and the WebSocket's close. */
#include "engine_parts.h"

static const char *const words[SPA_CUTS] = {
    [SPA_CUT_STATES] = "its states are of no use", [SPA_CUT_SILENT] = "it says nothing", [SPA_CUT_MESSAGE] = "a malformed message",
    [SPA_CUT_SIZE] = "a message larger than allowed", [SPA_CUT_ORDER] = "a message that is not allowed there", [SPA_CUT_UNREAD] = "it does not read what it asked for",
    [SPA_CUT_IDLE] = "it asked for nothing for as long as it may", [SPA_CUT_KEY] = "its key holds no longer",
};

static enum spa_cut why_cut(const struct peer *p)
{
    if (p->is_cut)
        return p->cut;
    if (p->unsendable)
        return SPA_CUT_UNREAD;
    switch (p->host.error) {
    case SPA_ERR_RANGE:   return SPA_CUT_STATES;
    case SPA_ERR_TIMEOUT: return SPA_CUT_SILENT;
    case SPA_ERR_LIMIT:   return SPA_CUT_SIZE;
    case SPA_ERR_ORDER:   return SPA_CUT_ORDER;
    default:              return SPA_CUT_MESSAGE;
    }
}

enum spa_close cut_count(const struct peer *p)
{
    struct spa_engine *e = p->engine;
    if (!p->is_cut && spa_mail_is_gone(e->cfg.mail, p->conn))   /* it left by itself, maybe in the middle */
        return SPA_CLOSE_DONE;
    if (!p->is_cut && !p->unsendable && p->host.error == SPA_ERR_CLOSED)   /* either end has said why in an ERROR */
        return e->draining ? SPA_CLOSE_GOING_AWAY : SPA_CLOSE_DONE;
    const enum spa_cut why = why_cut(p);
    e->metrics.cut[why]++;
    engine_log_at(e, SPA_LOG_WARN, "connection %u is cut: %s (%s)", p->number, words[why], spa_err_name(p->host.error));
    switch (why) {
    case SPA_CUT_SIZE:    return SPA_CLOSE_TOO_BIG;
    case SPA_CUT_MESSAGE:
    case SPA_CUT_ORDER:   return SPA_CLOSE_PROTOCOL;
    case SPA_CUT_IDLE:    return SPA_CLOSE_DONE;
    default:              return SPA_CLOSE_POLICY;
    }
}

void peer_cut(struct peer *p, enum spa_cut why, spa_Code code, const char *sentence)
{
    p->is_cut = true;
    p->cut = why;
    spa_host_error(&p->host, 0, code, sentence);
}

uint64_t peer_idle_deadline_ms(const struct peer *p)
{
    const uint32_t idle_ms = p->engine->cfg.idle_ms;
    const bool busy = p->n_turns || p->groups_ready || p->fit_running || p->losses || p->n_anchor_ids;   /* begun and left lying is not */
    return idle_ms && !busy && !peer_broken(p) ? p->busy_ms + idle_ms : UINT64_MAX;
}
