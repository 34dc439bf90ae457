/* fuzz_anchors.c - any bytes as the two files of anchors in the cloud's cache folder: kept answers and kept states. What is taken from
 * them must be what an engine may use: tokens of the model, states within the record.
 *
 * Byte 0: bit 0 the answers' sums are put right first, bit 1 those of the states' head, bit 2 those of each record; bytes 1 and 2 say how
 * many bytes are the answers, the rest are states. */
#include "anchors_parts.h"
#include "fake_model.h"
#include "scratch.h"

#include <string.h>

enum { N = 3, MAGIC = 8, ANSWER = 4 + 4 * SPA_ANCHOR_ANSWER, ENTRY = 16 + ANCHOR_HASH };
static const char *const prompts[N] = { "hi", "what is it?", "a longer question" };
static const uint32_t layers[] = { 0, FAKE_LAYERS };
enum { N_LAYERS = sizeof layers / sizeof *layers, TABLE = MAGIC + ANCHOR_HASH + 16 + 4 * N_LAYERS, HEAD = TABLE + N * ENTRY + ANCHOR_HASH };

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static struct spa_model model;
static uint8_t key[ANCHOR_HASH];
static const char *answers_path, *states_path;

static void must(bool holds)
{
    if (!holds)
        abort();
}

static void hex(const uint8_t *bytes, char *out)
{
    for (size_t i = 0; i < 8; i++)
        snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

static void begin(void)
{
    char name[80], first[17], second[17];
    uint8_t hash[ANCHOR_HASH];
    fake_model_open(&model);
    const struct spa_anchors_config in_memory = { .model = &model, .prompts = prompts, .n_prompts = N };
    struct spa_anchors *a = spa_anchors_new(&in_memory);
    memcpy(key, a->key, sizeof key);
    spa_anchors_free(a);
    anchor_hash(layers, sizeof layers, hash);
    hex(key, first);
    hex(hash, second);
    snprintf(name, sizeof name, "anchors-%s.answers", first);
    answers_path = scratch_path(name);
    snprintf(name, sizeof name, "anchors-%s-%s.states", first, second);
    states_path = scratch_path(name);
}

static void right_answers(uint8_t *b, size_t len)
{
    if (len < MAGIC + ANCHOR_HASH + 8 + N * ANSWER + ANCHOR_HASH)
        return;
    memcpy(b, "SPAANSW1", MAGIC);
    memcpy(b + MAGIC, key, ANCHOR_HASH);
    anchor_hash(b, len - ANCHOR_HASH, b + len - ANCHOR_HASH);
}

static void right_states(uint8_t *b, size_t len, bool head, bool records)
{
    static const uint32_t numbers[4] = { FAKE_D, N, N_LAYERS, 0 };
    if (len < HEAD)
        return;
    for (size_t i = 0; records && i < N; i++) {
        uint64_t at, n;
        memcpy(&at, b + TABLE + i * ENTRY, 8);
        memcpy(&n, b + TABLE + i * ENTRY + 8, 8);
        if (at <= len && n <= len - at)
            anchor_hash(b + at, (size_t)n, b + TABLE + i * ENTRY + 16);
    }
    if (!head)
        return;
    memcpy(b, "SPAANCH1", MAGIC);
    memcpy(b + MAGIC, key, ANCHOR_HASH);
    memcpy(b + MAGIC + ANCHOR_HASH, numbers, sizeof numbers);
    memcpy(b + MAGIC + ANCHOR_HASH + sizeof numbers, layers, sizeof layers);
    anchor_hash(b, HEAD - ANCHOR_HASH, b + HEAD - ANCHOR_HASH);
}

static void check_answers(struct spa_anchors *a)
{
    struct spa_anchor_set *none = spa_anchor_set_get(a, NULL, 0);
    struct spa_anchor found;
    for (uint32_t i = 0; i < N; i++) {
        if (spa_anchor_get(none, i, &found) != SPA_ANCHOR_HERE)
            continue;
        must(found.n_tokens > found.n_prompt && found.n_tokens <= found.n_prompt + SPA_ANCHOR_ANSWER);
        for (uint32_t k = 0; k < found.n_tokens; k++)
            must(found.tokens[k] >= 0 && found.tokens[k] < FAKE_VOCAB);
    }
    spa_anchor_set_put(none);
}

static void check_states(struct spa_anchors *a)
{
    struct spa_anchor_set *s = spa_anchor_set_get(a, layers, N_LAYERS);
    struct spa_anchor found;
    float y[N_LAYERS * FAKE_D];
    volatile float sum = 0;
    for (uint32_t i = 0; i < N; i++) {
        if (spa_anchor_get(s, i, &found) != SPA_ANCHOR_HERE)
            continue;
        for (uint32_t k = 0; k < found.n_tokens; k++)
            must(found.tokens[k] >= 0 && found.tokens[k] < FAKE_VOCAB);
        for (uint32_t pos = 0; pos + 1 < found.n_tokens; pos++) {
            spa_anchor_taps(s, &found, pos, y);
            sum += y[0];
        }
        for (uint32_t k = 0; k < found.n_tokens - found.n_prompt; k++) {
            spa_anchor_y_fin(s, &found, k, y);
            sum += y[0];
        }
    }
    spa_anchor_set_put(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    if (!answers_path)
        begin();
    if (len < 3)
        return 0;
    const size_t want = bytes[1] | (size_t)bytes[2] << 8, n_answers = want < len - 3 ? want : len - 3, n_states = len - 3 - n_answers;
    uint8_t *answers = malloc(n_answers + 1), *states = malloc(n_states + 1);
    memcpy(answers, bytes + 3, n_answers);
    memcpy(states, bytes + 3 + n_answers, n_states);
    if (bytes[0] & 1)
        right_answers(answers, n_answers);
    right_states(states, n_states, bytes[0] & 2, bytes[0] & 4);
    scratch_write(answers_path, answers, n_answers);
    scratch_write(states_path, states, n_states);
    free(answers);
    free(states);
    const struct spa_anchors_config on_disk = { .model = &model, .prompts = prompts, .n_prompts = N, .folder = scratch };
    struct spa_anchors *a = spa_anchors_new(&on_disk);
    must(a && spa_anchors_n(a) == N);
    check_answers(a);
    check_states(a);
    spa_anchors_free(a);
    return 0;
}
