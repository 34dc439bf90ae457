/* request.c - the contents of GENERATE and LEARN, checked before anybody works on them.
 *
 * In: a head and its parts, as they came from a device. Out: fine, refused with a sentence, or malformed. */
#include "request.h"
#include "logprobs.h"

#include <math.h>
#include <string.h>

bool spa_text_check(const uint8_t *text, size_t len)
{
    for (size_t i = 0; i < len;) {
        uint8_t c = text[i++];
        if (c == 0) return false;
        if (c < 0x80) continue;
        /* The range of the second byte shuts out overlong forms, surrogates and what lies beyond U+10FFFF. */
        unsigned more, lo = 0x80, hi = 0xBF;
        if (c >= 0xC2 && c <= 0xDF) more = 1;
        else if (c >= 0xE0 && c <= 0xEF) { more = 2; if (c == 0xE0) lo = 0xA0; if (c == 0xED) hi = 0x9F; }
        else if (c >= 0xF0 && c <= 0xF4) { more = 3; if (c == 0xF0) lo = 0x90; if (c == 0xF4) hi = 0x8F; }
        else return false;
        if (len - i < more || text[i] < lo || text[i] > hi) return false;
        for (i++; more > 1; more--, i++)
            if ((text[i] & 0xC0) != 0x80) return false;
    }
    return true;
}

static enum spa_err refuse(const char **why, const char *sentence)
{
    *why = sentence;
    return SPA_ERR_RANGE;
}

/* What a walk over the parts found. */
struct census {
    uint32_t parts, chat, raw, stops, confirmed, loss;
    size_t   text_bytes;      /* of the prompt */
};

static bool ids_below(const uint8_t *bytes, uint32_t len, uint32_t n_vocab)
{
    for (uint32_t i = 0; i < len; i += 4) {
        uint32_t id;
        memcpy(&id, bytes + i, 4);
        if (id >= n_vocab) return false;   /* negative ids are large here */
    }
    return true;
}

static enum spa_err count_parts(const uint8_t *bulk, size_t bulk_len, uint32_t n_vocab, struct census *c, const char **why)
{
    *c = (struct census){ 0 };
    struct spa_part p;
    for (size_t at = 0;;) {
        enum spa_err err = spa_part_next(bulk, bulk_len, &at, &p);
        if (err == SPA_NONE) return SPA_OK;
        if (err == SPA_ERR_LIMIT) return refuse(why, "a stop string is longer than 256 bytes");
        if (err) return err;
        if (++c->parts > SPA_PARTS_MAX) return refuse(why, "more than 1024 parts");
        if (p.kind == SPA_PART_CONFIRMED) {
            if (c->confirmed++) return refuse(why, "confirmed tokens come in one part");
            if (!ids_below(p.bytes, p.len, n_vocab)) return refuse(why, "a confirmed token is not in the vocabulary");
            continue;
        }
        if (!spa_text_check(p.bytes, p.len)) return refuse(why, "a text is not UTF-8 or holds a zero byte");
        if (p.kind == SPA_PART_STOP) {
            if (p.len == 0) return refuse(why, "a stop string is empty");
            if (++c->stops > SPA_STOPS_MAX) return refuse(why, "more than 16 stop strings");
            continue;
        }
        if (p.kind == SPA_PART_TEXT) c->raw++; else c->chat++;
        if (p.loss) c->loss++;
        c->text_bytes += p.len;
    }
}

enum spa_err spa_request_check_generate(spa_Generate *g, const uint8_t *bulk, size_t bulk_len, bool has_plugin,
                                        uint32_t n_vocab, const char **why)
{
    struct census c;
    enum spa_err err = count_parts(bulk, bulk_len, n_vocab, &c, why);
    if (err) return err;
    if (c.loss) return refuse(why, "parts that carry loss belong to LEARN");
    if (c.text_bytes == 0) return refuse(why, "the prompt is empty");
    if (g->raw ? c.chat : c.raw) return refuse(why, "raw text and chat messages do not mix");

    if (g->gate > _spa_GateMode_MAX) return refuse(why, "unknown gate mode");
    if (g->late > _spa_Late_MAX) return refuse(why, "unknown policy for late answers");
    if (g->gate != spa_GateMode_GATE_NEVER && !has_plugin)
        return refuse(why, "no plugin was announced, so the gate must be NEVER");
    if (g->after_from > g->after_to) return refuse(why, "after_from lies beyond after_to");
    if (g->n_predict == 0) return refuse(why, "n_predict is 0");
    if (!isfinite(g->temp)) return refuse(why, "temp is not a finite number");
    if (!isfinite(g->top_p)) return refuse(why, "top_p is not a finite number");
    if (!isfinite(g->min_p)) return refuse(why, "min_p is not a finite number");
    if (!isfinite(g->repeat_penalty) || g->repeat_penalty < 0) return refuse(why, "repeat_penalty is not a positive number");
    if (g->repeat_last_n < -1) return refuse(why, "repeat_last_n is below -1");
    if (g->logprobs > SPA_LOGPROBS_MAX) return refuse(why, "logprobs of more than 20 alternatives");
    if (g->repeat_penalty == 0) g->repeat_penalty = 1;
    return SPA_OK;
}

enum spa_err spa_request_check_learn(const uint8_t *bulk, size_t bulk_len, const char **why)
{
    struct census c;
    enum spa_err err = count_parts(bulk, bulk_len, 0, &c, why);
    if (err) return err;
    if (c.stops || c.confirmed) return refuse(why, "a row has no stop strings and no confirmed tokens");
    if (c.raw && c.chat) return refuse(why, "raw text and chat messages do not mix");
    if (!c.loss) return refuse(why, "no part carries loss");
    return SPA_OK;
}
