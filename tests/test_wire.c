/* test_wire.c - the bytes: frame, heads, parts, shapes; and that spa.proto, spa.options and wire.h name the same limits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "request.h"
#include "wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CAP = SPA_MESSAGE_MIN };
static uint8_t sent[CAP], buf[CAP];
static size_t sent_len;

static enum spa_err keep(void *user, const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
    (void)user;
    assert_true(sent_len + a_len + b_len <= sizeof sent);
    memcpy(sent + sent_len, a, a_len);
    if (b_len) memcpy(sent + sent_len + a_len, b, b_len);
    sent_len += a_len + b_len;
    return SPA_OK;
}
static const struct spa_sink sink = { NULL, keep };

static enum spa_err feed_all(struct spa_reader *r, const uint8_t *in, size_t len, size_t piece, struct spa_message *msg)
{
    for (size_t at = 0; at < len;) {
        size_t used, n = len - at < piece ? len - at : piece;
        enum spa_err err = spa_reader_feed(r, in + at, n, &used, msg);
        if (err != SPA_NONE) return err;
        assert_int_equal(used, n);
        at += n;
    }
    return SPA_NONE;
}

/* A message of every type, every field in use, as large as its limits allow. */
static void fill(enum spa_msg type, union spa_head *h)
{
    memset(h, 0, sizeof *h);
    switch (type) {
    case SPA_MSG_HELLO: {
        spa_Plugin *p = &h->hello.plugin;
        h->hello.version = UINT32_MAX;
        memset(h->hello.client, 'c', sizeof h->hello.client - 1);
        h->hello.max_message = UINT32_MAX;
        h->hello.has_plugin = true;
        p->d = p->n_layers = p->k = UINT32_MAX;
        p->rms = p->basis = p->add = p->has_gate = true;
        p->taps_count = p->ctx_taps_count = 256;
        for (uint32_t i = 0; i < 256; i++) { p->taps[i] = UINT32_MAX - i; p->ctx_taps[i] = i; }
        p->basis_hash.size = p->model_hash.size = 32;
        memset(p->basis_hash.bytes, 1, 32);
        p->tap_dtype = spa_Dtype_I8;
        p->state_dtype = spa_Dtype_F16;
        p->gate_bias = -1.5f;
        break;
    }
    case SPA_MSG_WELCOME:
        h->welcome = (spa_Welcome){ .version = 1, .server = "s", .model = "m", .d = 2, .n_layers = 3, .n_vocab = 4, .n_ctx = 5,
            .max_message = 6, .max_requests = 7, .learn_window = 8, .need_basis = true, .head_type = 9, .head_bytes = UINT64_MAX,
            .logit_scale = 0.5f, .softcap = 30.0f, .head_hash.size = 32, .model_hash.size = 32 };
        break;
    case SPA_MSG_FETCH: h->fetch = (spa_Fetch){ .kind = spa_BlobKind_BLOB_BASIS, .hash.size = 32, .offset = UINT64_MAX }; break;
    case SPA_MSG_BLOB: h->blob = (spa_Blob){ .hash.size = 32, .offset = 1, .total = UINT64_MAX }; break;
    case SPA_MSG_GENERATE:
        h->generate = (spa_Generate){ .request = 1, .raw = true, .n_predict = -1, .temp = 0.8f, .top_k = 40, .top_p = 0.95f,
            .min_p = 0.05f, .repeat_penalty = 1.1f, .repeat_last_n = -1, .seed = UINT64_MAX, .gate = spa_GateMode_GATE_NEVER,
            .late = spa_Late_LATE_ERROR, .answer_ms = 250, .ignore_eos = true, .after = 7, .after_from = 8, .after_to = 9 };
        break;
    case SPA_MSG_CANCEL: h->cancel.request = 3; break;
    case SPA_MSG_TAPS:
        h->taps = (spa_Taps){ .request = 1, .epoch = 2, .pos = 3, .n_rows = 40, .asked_count = SPA_ASKED_MAX };
        for (uint32_t i = 0; i < SPA_ASKED_MAX; i++) h->taps.asked[i] = i;
        break;
    case SPA_MSG_STATE: 
        h->state = (spa_State){ .request = 1, .epoch = 2, .pos = 3, .n = 1, .draft_index = 5, .draft_count = SPA_DRAFT_MAX };
        for (uint32_t i = 0; i < SPA_DRAFT_MAX; i++) h->state.draft[i] = i * i;
        break;
    case SPA_MSG_TOKENS:
        h->tokens = (spa_Tokens){ .request = 1, .index = 2, .ids_count = 32, .by_count = 32 };
        for (int i = 0; i < 32; i++) { h->tokens.ids[i] = -i; h->tokens.by[i] = (spa_Speaker)(i & 1); }
        break;
    case SPA_MSG_DONE: h->done = (spa_Done){ 1, spa_Finish_FINISH_CONTEXT, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, { .size = 2, .bytes = { 1, 2 } } }; break;
    case SPA_MSG_ERROR: h->error = (spa_Error){ 1, spa_Code_NOT_FOUND, 2, true, true, 4000 }; break;
    case SPA_MSG_LEARN: h->learn = (spa_Learn){ .row = 9, .fit = true, .last = true, .anchor = true, .more = true }; break;
    case SPA_MSG_FITTED: h->fitted = (spa_Fitted){ .hash.size = 32, .total = 1, .n_states = 2 }; break;
    case SPA_MSG_FEATURES: h->features = (spa_Features){ 1, 2, 3, 4 }; break;
    case SPA_MSG_LOSS: h->loss = (spa_Loss){ 1, UINT32_MAX, true, true }; break;
    case SPA_MSG_LOSSES: h->losses = (spa_Losses){ UINT32_MAX, 2, true, true }; break;
    case SPA_MSG_LOGPROBS: h->logprobs = (spa_Logprobs){ 1, UINT32_MAX, 21 }; break;
    default: fail();
    }
}

static void test_wire_every_type_comes_back_as_sent_however_it_is_cut(void **state)
{
    (void)state;
    static const size_t pieces[] = { CAP, 1, 2, 3, 7, 8, 9 };
    static const uint8_t bulk[] = { 9, 8, 7, 6, 5 };
    for (int t = SPA_MSG_HELLO; t < SPA_MSG_END; t++) {
        static union spa_head head;
        fill((enum spa_msg)t, &head);
        sent_len = 0;
        assert_int_equal(spa_wire_send(&sink, (enum spa_msg)t, &head, bulk, sizeof bulk), SPA_OK);
        assert_true(sent_len <= SPA_PREFIX_LEN + SPA_HEAD_MAX + sizeof bulk);
        for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
            static struct spa_message msg;
            memset(&msg, 0, sizeof msg);
            struct spa_reader r;
            spa_reader_init(&r, buf, sizeof buf);
            assert_int_equal(feed_all(&r, sent, sent_len, pieces[i], &msg), SPA_OK);
            assert_int_equal(msg.type, t);
            assert_memory_equal(&msg.head, &head, sizeof head);
            assert_int_equal(msg.bulk_len, sizeof bulk);
            assert_memory_equal(msg.bulk, bulk, sizeof bulk);
        }
    }
}

static void test_wire_messages_in_one_piece_come_out_one_by_one(void **state)
{
    (void)state;
    union spa_head head = { .cancel.request = 1 };
    sent_len = 0;
    spa_wire_send(&sink, SPA_MSG_CANCEL, &head, NULL, 0);
    head.cancel.request = 2;
    spa_wire_send(&sink, SPA_MSG_CANCEL, &head, NULL, 0);
    struct spa_reader r;
    struct spa_message msg;
    size_t used, at = 0;
    spa_reader_init(&r, buf, sizeof buf);
    for (uint32_t i = 1; i <= 2; i++, at += used) {
        assert_int_equal(spa_reader_feed(&r, sent + at, sent_len - at, &used, &msg), SPA_OK);
        assert_int_equal(msg.head.cancel.request, i);
    }
    assert_int_equal(at, sent_len);
    assert_int_equal(spa_reader_feed(&r, sent, 0, &used, &msg), SPA_NONE);
}

static void test_wire_the_prefix_is_what_WIRE_says(void **state)
{
    (void)state;
    static const uint8_t want[] = { 8, 0, 6, 0, 4, 0, 0, 0,   0x08, 1, 0x18, 5, 0x20, 1,   1, 2, 3, 4 };
    static const uint8_t z[] = { 1, 2, 3, 4 };
    union spa_head head = { .state = { .request = 1, .pos = 5, .n = 1 } };
    sent_len = 0;
    assert_int_equal(spa_wire_send(&sink, SPA_MSG_STATE, &head, z, sizeof z), SPA_OK);
    assert_int_equal(sent_len, sizeof want);
    assert_memory_equal(sent, want, sizeof want);
}

static void check_refused(const uint8_t *in, size_t len, enum spa_err want)
{
    for (size_t piece = 1; piece <= len; piece += len - 1) {
        struct spa_reader r;
        struct spa_message msg;
        size_t used;
        spa_reader_init(&r, buf, sizeof buf);
        assert_int_equal(feed_all(&r, in, len, piece, &msg), want);
        assert_int_equal(spa_reader_feed(&r, in, len, &used, &msg), want);   /* errors stay */
        assert_int_equal(used, 0);
    }
}

static void test_wire_limits_and_malformed_prefixes_are_refused(void **state)
{
    (void)state;
    check_refused((uint8_t[]){ 0, 0, 0, 0, 0, 0, 0, 0 }, 8, SPA_ERR_FORMAT);             /* no type 0 */
    check_refused((uint8_t[]){ SPA_MSG_END, 0, 0, 0, 0, 0, 0, 0 }, 8, SPA_ERR_FORMAT);
    check_refused((uint8_t[]){ 255, 0, 0, 0, 0, 0, 0, 0 }, 8, SPA_ERR_FORMAT);
    check_refused((uint8_t[]){ 1, 1, 0, 0, 0, 0, 0, 0 }, 8, SPA_ERR_FORMAT);             /* reserved byte */
    check_refused((uint8_t[]){ 1, 0, 1, 0x10, 0, 0, 0, 0 }, 8, SPA_ERR_LIMIT);           /* head of 4097 bytes */
    check_refused((uint8_t[]){ 1, 0, 0, 0, 0xF9, 0xFF, 0, 0 }, 8, SPA_ERR_LIMIT);        /* one byte more than buf */
    check_refused((uint8_t[]){ 1, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF }, 8, SPA_ERR_LIMIT);
    check_refused((uint8_t[]){ 1, 0, 1, 0, 0, 0, 0, 0, 0x08 }, 9, SPA_ERR_FORMAT);       /* head ends in a field */
    /* Exactly full is fine. */
    struct spa_reader r;
    struct spa_message msg;
    size_t used;
    spa_reader_init(&r, buf, sizeof buf);
    static uint8_t zeros[CAP];
    assert_int_equal(spa_reader_feed(&r, (uint8_t[]){ 6, 0, 0, 0, 0xF8, 0xFF, 0, 0 }, 8, &used, &msg), SPA_NONE);
    assert_int_equal(spa_reader_feed(&r, zeros, CAP, &used, &msg), SPA_OK);
    assert_int_equal(msg.bulk_len, CAP - 8);
}

static void test_wire_lists_and_strings_beyond_their_limits_are_FORMAT(void **state)
{
    (void)state;
    uint8_t m[8 + 33 * 2 + 8] = { SPA_MSG_TAPS, 0, 66 };
    for (int i = 0; i < 33; i++) { m[8 + 2 * i] = 5 << 3; m[9 + 2 * i] = (uint8_t)i; }   /* 33 asked */
    check_refused(m, 8 + 66, SPA_ERR_FORMAT);
    uint8_t hello[8 + 2 + 64] = { SPA_MSG_HELLO, 0, 66, 0, 0, 0, 0, 0, 2 << 3 | 2, 64 };   /* client of 64 bytes */
    memset(hello + 10, 'x', 64);
    check_refused(hello, sizeof hello, SPA_ERR_FORMAT);
}

static void test_wire_unknown_fields_are_skipped(void **state)
{
    (void)state;
    static const uint8_t m[] = { SPA_MSG_CANCEL, 0, 16, 0, 0, 0, 0, 0,
        0x90, 0x03, 7,                       /* field 50, varint */
        0x9A, 0x03, 2, 'h', 'i',             /* field 51, bytes */
        0x08, 4,                             /* request */
        0xA5, 0x03, 1, 2, 3, 4 };            /* field 52, fixed32 */
    struct spa_reader r;
    struct spa_message msg;
    size_t used;
    spa_reader_init(&r, buf, sizeof buf);
    assert_int_equal(spa_reader_feed(&r, m, sizeof m, &used, &msg), SPA_OK);
    assert_int_equal(msg.head.cancel.request, 4);
}

static void test_wire_random_mutations_never_crash(void **state)
{
    (void)state;
    const char *env = getenv("SPA_SEED");
    uint64_t seed = env ? strtoull(env, NULL, 0) : 1;
    print_message("seed %llu\n", (unsigned long long)seed);
    static uint8_t good[SPA_MSG_END][CAP / 8], bad[CAP];
    size_t good_len[SPA_MSG_END] = { 0 };
    for (int t = SPA_MSG_HELLO; t < SPA_MSG_END; t++) {
        static union spa_head head;
        fill((enum spa_msg)t, &head);
        sent_len = 0;
        spa_wire_send(&sink, (enum spa_msg)t, &head, (const uint8_t *)"\1\0\0\0\2\0\0\0hi", 10);
        memcpy(good[t], sent, good_len[t] = sent_len);
    }
    for (uint64_t i = 0; i < 40000; i++) {
        uint64_t dice = spa_noise64(seed, i, 0);
        int t = 1 + (int)(dice % (SPA_MSG_END - 1));
        size_t len = good_len[t];
        memcpy(bad, good[t], len);
        for (uint64_t k = 0; k <= dice >> 60; k++) {
            uint64_t d = spa_noise64(seed, i, k + 1);
            bad[d % len] = (uint8_t)(d >> 32);
        }
        if (dice >> 59 & 1) len = (dice >> 20) % len + 1;
        struct spa_reader r;
        static struct spa_message msg;
        spa_reader_init(&r, buf, sizeof buf);
        if (feed_all(&r, bad, len, CAP, &msg) != SPA_OK) continue;
        struct spa_part part;
        const char *why;
        for (size_t at = 0; spa_part_next(msg.bulk, msg.bulk_len, &at, &part) == SPA_OK;)
            (void)spa_text_check(part.bytes, part.len);
        if (msg.type == SPA_MSG_GENERATE)
            (void)spa_request_check_generate(&msg.head.generate, msg.bulk, msg.bulk_len, true, 100, &why);
        struct spa_shape shape;
        if (msg.type == SPA_MSG_HELLO) (void)spa_wire_shape_from_plugin(&msg.head.hello.plugin, &shape);
    }
}

/* ---- parts ---- */

static void test_wire_parts_come_back_and_any_cut_of_them_is_FORMAT(void **state)
{
    (void)state;
    static const int32_t ids[] = { 5, 6 };
    const struct spa_part parts[] = {
        { SPA_PART_SYSTEM, false, (const uint8_t *)"be kind", 7 },
        { SPA_PART_USER, false, (const uint8_t *)"", 0 },
        { SPA_PART_ASSISTANT, true, (const uint8_t *)"yes", 3 },
        { SPA_PART_CONFIRMED, false, (const uint8_t *)ids, 8 },
        { SPA_PART_STOP, false, (const uint8_t *)"\n", 1 },
    };
    size_t n = sizeof parts / sizeof *parts, len = spa_parts_len(parts, n), at = 0, starts[6];
    assert_int_equal(len, 5 * 8 + 7 + 3 + 8 + 1);
    uint8_t *out = malloc(len);
    spa_parts_write(parts, n, out);
    struct spa_part p;
    for (size_t i = 0; i < n; i++) {
        starts[i] = at;
        assert_int_equal(spa_part_next(out, len, &at, &p), SPA_OK);
        assert_int_equal(p.kind, parts[i].kind);
        assert_int_equal(p.loss, parts[i].loss);
        assert_int_equal(p.len, parts[i].len);
        assert_memory_equal(p.bytes, parts[i].bytes, p.len);
    }
    assert_int_equal(spa_part_next(out, len, &at, &p), SPA_NONE);
    for (size_t cut = 1; cut < len; cut++) {
        bool between = false;
        for (size_t i = 0; i < n; i++) between = between || starts[i] == cut;
        uint8_t *exact = malloc(cut);   /* so that a read past the cut is seen */
        memcpy(exact, out, cut);
        enum spa_err err = SPA_OK;
        for (at = 0; err == SPA_OK;) err = spa_part_next(exact, cut, &at, &p);
        assert_int_equal(err, between ? SPA_NONE : SPA_ERR_FORMAT);
        free(exact);
    }
    free(out);
}

static enum spa_err first_part(const uint8_t *bytes, size_t len)
{
    size_t at = 0;
    struct spa_part p;
    return spa_part_next(bytes, len, &at, &p);
}

static void test_wire_parts_that_break_the_rules_are_refused(void **state)
{
    (void)state;
    static uint8_t stop[8 + 257] = { SPA_PART_STOP, 0, 0, 0, 1, 1 };
    assert_int_equal(first_part(stop, sizeof stop), SPA_ERR_LIMIT);
    stop[4] = 0;
    assert_int_equal(first_part(stop, 8 + 256), SPA_OK);
    assert_int_equal(first_part((uint8_t[]){ 0, 0, 0, 0, 0, 0, 0, 0 }, 8), SPA_ERR_FORMAT);
    assert_int_equal(first_part((uint8_t[]){ 7, 0, 0, 0, 0, 0, 0, 0 }, 8), SPA_ERR_FORMAT);
    assert_int_equal(first_part((uint8_t[]){ 2, 0, 1, 0, 0, 0, 0, 0 }, 8), SPA_ERR_FORMAT);
    assert_int_equal(first_part((uint8_t[]){ 0x85, 0, 0, 0, 0, 0, 0, 0 }, 8), SPA_ERR_FORMAT);         /* a stop with loss */
    assert_int_equal(first_part((uint8_t[]){ 6, 0, 0, 0, 1, 0, 0, 0, 9 }, 9), SPA_ERR_FORMAT);         /* a quarter of an id */
    assert_int_equal(first_part((uint8_t[]){ 2, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF }, 8), SPA_ERR_FORMAT);
}

static void test_wire_text_is_UTF8_without_zero(void **state)
{
    (void)state;
    static const struct { const char *text; size_t len; bool good; } cases[] = {
        { "", 0, true }, { "a", 1, true }, { "\xC3\xA4", 2, true }, { "\xE2\x82\xAC", 3, true }, { "\xF0\x9F\x98\x80", 4, true },
        { "\xF4\x8F\xBF\xBF", 4, true }, { "\xF4\x90\x80\x80", 4, false }, { "\xC0\x80", 2, false }, { "\xC1\xBF", 2, false },
        { "\xE0\x9F\xBF", 3, false }, { "\xED\xA0\x80", 3, false }, { "\xF0\x8F\xBF\xBF", 4, false }, { "\xF5\x80\x80\x80", 4, false },
        { "\x80", 1, false }, { "\xC3", 1, false }, { "\xE2\x82", 2, false }, { "\xE2\x28\xA1", 3, false }, { "\xE2\x82\x28", 3, false },
        { "\xFF", 1, false }, { "a\0b", 3, false }, { "\xF0\x9F\x98", 3, false },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (spa_text_check((const uint8_t *)cases[i].text, cases[i].len) != cases[i].good) fail_msg("case %zu", i);
}

/* ---- shapes ---- */

static void test_wire_shape_survives_its_announcement_without_the_ladder(void **state)
{
    (void)state;
    static struct spa_shape shape = { .d = 64, .n_layers = 8, .r = 16, .m = 12, .n_taps = 3, .taps = { 0, 4, 8 }, .k = 10,
        .basis = true, .normalise = SPA_NORM_RMS, .mode = SPA_ADD, .n_ctx_taps = 2, .ctx_taps = { 4, 8 }, .e = 8, .n_heads = 4,
        .n_att = 2, .att_rungs = { 1, 2 } };
    static spa_Plugin p;
    static struct spa_shape back;
    spa_wire_plugin_from_shape(&shape, &p);
    assert_int_equal(spa_wire_shape_from_plugin(&p, &back), SPA_OK);
    assert_int_equal(back.d, 64);
    assert_int_equal(back.n_layers, 8);
    assert_int_equal(back.k, 10);
    assert_int_equal(back.n_taps, 3);
    assert_memory_equal(back.taps, shape.taps, 3 * sizeof *shape.taps);
    assert_int_equal(back.n_ctx_taps, 2);
    assert_memory_equal(back.ctx_taps, shape.ctx_taps, 2 * sizeof *shape.ctx_taps);
    assert_true(back.basis && back.normalise == SPA_NORM_RMS && back.mode == SPA_ADD);
    assert_true(back.r == 1 && back.m == 1 && back.e == 1 && back.n_heads == 1 && back.n_att == 1);   /* not the device's */
    assert_int_equal(spa_wire_row_bytes(&back, SPA_I8), 3 * (2 + 10));
    assert_int_equal(spa_wire_ctx_row_bytes(&back, SPA_F16), 2 * 10 * 2);
    assert_int_equal(spa_wire_state_bytes(&back, SPA_F32), 64 * 4);
    p.taps[1] = 9;   /* no such layer, and not ascending */
    assert_int_not_equal(spa_wire_shape_from_plugin(&p, &back), SPA_OK);
}

/* ---- one set of limits ---- */

static long option(const char *field, const char *kind)
{
    FILE *f = fopen(SPA_TEST_DIR "/../core/spa.options", "r");
    assert_non_null(f);
    char line[256];
    long value = -1;
    while (fgets(line, sizeof line, f)) {
        char *v;
        size_t n = strlen(field);
        if (strncmp(line, field, n) == 0 && line[n] == ' ' && (v = strstr(line, kind))) value = strtol(v + strlen(kind) + 1, NULL, 10);
    }
    fclose(f);
    return value;
}

static void test_wire_limits_of_fields_are_those_of_the_headers(void **state)
{
    (void)state;
    assert_int_equal(option("spa.Plugin.taps", "max_count"), SPA_MAX_TAPS);
    assert_int_equal(option("spa.Plugin.ctx_taps", "max_count"), SPA_MAX_TAPS);
    assert_int_equal(option("spa.Taps.asked", "max_count"), SPA_ASKED_MAX);
    assert_int_equal(option("spa.Tokens.ids", "max_count"), option("spa.Tokens.by", "max_count"));
    static const char *hashes[] = { "spa.Plugin.basis_hash", "spa.Plugin.model_hash", "spa.Welcome.model_hash",
        "spa.Welcome.head_hash", "spa.Fetch.hash", "spa.Blob.hash", "spa.Fitted.hash" };
    for (size_t i = 0; i < sizeof hashes / sizeof *hashes; i++) assert_int_equal(option(hashes[i], "max_size"), SPA_HASH_BYTES);
}

/* A state in I8 has a scale for each 64 numbers, so that one large number costs only its 63 neighbours their precision. */
static void test_wire_state_i8_has_a_scale_for_each_64_numbers(void **state)
{
    (void)state;
    static const uint32_t widths[] = { 64, 576, 60, 100 };
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
        const struct spa_shape shape = { .d = widths[w] };
        const uint32_t d = shape.d, group = d % 64 ? d : 64;
        float z[576], back[576];
        uint8_t bytes[600];
        for (uint32_t i = 0; i < d; i++)
            z[i] = (float)((double)spa_noise64(3, w, i) * 0x1p-63 - 1.0) * (i < group ? 1000.0f : 0.5f);
        assert_int_equal(spa_wire_state_bytes(&shape, SPA_I8), d + 2 * (d / group));
        spa_wire_state_pack(&shape, SPA_I8, z, bytes);
        assert_int_equal(spa_wire_state_unpack(&shape, SPA_I8, bytes, back), SPA_OK);
        for (uint32_t i = 0; i < d; i++) {
            const float largest = i < group ? 1000.0f : 0.5f, gap = back[i] > z[i] ? back[i] - z[i] : z[i] - back[i];
            assert_true(gap <= 0.51f * largest / 127.0f);   /* half a step, and the scale's own rounding */
        }
        for (enum spa_dtype t = SPA_F32; t <= SPA_F16; t++)
            assert_int_equal(spa_wire_state_bytes(&shape, t), d * (t == SPA_F32 ? 4 : 2));
        z[d - 1] = __builtin_inff();
        spa_wire_state_pack(&shape, SPA_I8, z, bytes);
        assert_int_equal(spa_wire_state_unpack(&shape, SPA_I8, bytes, back), SPA_ERR_RANGE);
    }
}

/* WIRE.md's table of limits: lines "| `NAME` | number | ...". Three of them also stand in sentences of request.c. */
static void test_wire_limits_in_WIRE_md_are_those_of_the_header(void **state)
{
    (void)state;
    static const struct { const char *name; long value; } limits[] = {
        { "SPA_HEAD_MAX", SPA_HEAD_MAX }, { "SPA_MESSAGE_MIN", SPA_MESSAGE_MIN }, { "SPA_MESSAGE_MAX", SPA_MESSAGE_MAX },
        { "SPA_BLOB_PIECE", SPA_BLOB_PIECE }, { "SPA_PARTS_MAX", SPA_PARTS_MAX }, { "SPA_STOPS_MAX", SPA_STOPS_MAX },
        { "SPA_STOP_LEN_MAX", SPA_STOP_LEN_MAX }, { "SPA_REQUESTS_MAX", SPA_REQUESTS_MAX },
        { "SPA_ASKED_MAX", SPA_ASKED_MAX }, { "SPA_MAX_TAPS", SPA_MAX_TAPS }, { "SPA_MAX_WIDTH", SPA_MAX_WIDTH },
        { "SPA_MAX_LAYERS", SPA_MAX_LAYERS }, { "SPA_WIRE_VERSION", SPA_WIRE_VERSION },
    };
    FILE *f = fopen(SPA_TEST_DIR "/../WIRE.md", "r");
    assert_non_null(f);
    char line[1024];
    size_t seen = 0;
    while (fgets(line, sizeof line, f))
        for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
            char start[64];
            int n = snprintf(start, sizeof start, "| `%s` | ", limits[i].name);
            if (strncmp(line, start, (size_t)n)) continue;
            assert_int_equal(strtol(line + n, NULL, 10), limits[i].value);
            seen++;
        }
    fclose(f);
    assert_int_equal(seen, sizeof limits / sizeof *limits);
    assert_true(SPA_STOP_LEN_MAX == 256 && SPA_PARTS_MAX == 1024 && SPA_STOPS_MAX == 16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wire_every_type_comes_back_as_sent_however_it_is_cut),
        cmocka_unit_test(test_wire_messages_in_one_piece_come_out_one_by_one),
        cmocka_unit_test(test_wire_the_prefix_is_what_WIRE_says),
        cmocka_unit_test(test_wire_limits_and_malformed_prefixes_are_refused),
        cmocka_unit_test(test_wire_lists_and_strings_beyond_their_limits_are_FORMAT),
        cmocka_unit_test(test_wire_unknown_fields_are_skipped),
        cmocka_unit_test(test_wire_random_mutations_never_crash),
        cmocka_unit_test(test_wire_parts_come_back_and_any_cut_of_them_is_FORMAT),
        cmocka_unit_test(test_wire_parts_that_break_the_rules_are_refused),
        cmocka_unit_test(test_wire_text_is_UTF8_without_zero),
        cmocka_unit_test(test_wire_shape_survives_its_announcement_without_the_ladder),
        cmocka_unit_test(test_wire_state_i8_has_a_scale_for_each_64_numbers),
        cmocka_unit_test(test_wire_limits_of_fields_are_those_of_the_headers),
        cmocka_unit_test(test_wire_limits_in_WIRE_md_are_those_of_the_header),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
