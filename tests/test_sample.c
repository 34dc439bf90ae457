/* test_sample.c - the sampler against a naive one that sorts everything, its frequencies against the softmax, and what
 * the noise must be independent of. */
#include "sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static const struct spa_sampling plain = { .temp = 1, .top_k = 0, .top_p = 1, .min_p = 0, .repeat_penalty = 1,
                                           .repeat_last_n = 64, .seed = 11 };

static void fill_logits(float *logits, int32_t n, uint64_t key, float spread)
{
    for (int32_t i = 0; i < n; i++)
        logits[i] = spread * (float)((double)spa_noise64(key, 3, (uint64_t)i) * 0x1p-63 - 1.0);
}

static int by_logit(const void *a, const void *b)
{
    const struct spa_candidate *x = a, *y = b;
    return x->logit != y->logit ? (x->logit > y->logit ? -1 : 1) : (x->id > y->id) - (x->id < y->id);
}

/* Each stage written out, with a full sort. */
static int32_t naive(const struct spa_sampling *cfg, const float *logits, int32_t n_vocab, const int32_t *recent,
                     size_t n_recent, uint64_t pos)
{
    struct spa_candidate *c = malloc((size_t)n_vocab * sizeof *c);
    size_t n = (size_t)n_vocab;
    for (int32_t i = 0; i < n_vocab; i++) {
        c[i] = (struct spa_candidate){ logits[i], 0, i };
        const size_t window = cfg->repeat_last_n < 0 || (size_t)cfg->repeat_last_n > n_recent ? n_recent : (size_t)cfg->repeat_last_n;
        for (size_t j = n_recent - window; j < n_recent; j++)
            if (recent[j] == i) {
                c[i].logit = logits[i] > 0 ? logits[i] / cfg->repeat_penalty : logits[i] * cfg->repeat_penalty;
                break;
            }
    }
    qsort(c, n, sizeof *c, by_logit);
    if (cfg->temp <= 0) {
        const int32_t id = c[0].id;
        free(c);
        return id;
    }
    if (cfg->top_k > 0 && (size_t)cfg->top_k < n)
        n = (size_t)cfg->top_k;
    double sum = 0, mass = 0;
    for (size_t i = 0; i < n; i++)
        sum += exp((double)c[i].logit - (double)c[0].logit);
    if (cfg->top_p < 1)
        for (size_t i = 0; i < n; i++) {
            mass += exp((double)c[i].logit - (double)c[0].logit) / sum;
            if (mass >= (double)cfg->top_p) {
                n = i + 1;
                break;
            }
        }
    double best = -INFINITY;
    int32_t token = -1;
    for (size_t i = 0; i < n; i++) {
        if (cfg->min_p > 0 && exp((double)c[i].logit - (double)c[0].logit) < (double)cfg->min_p)
            continue;
        const double u = ((double)(spa_noise64(cfg->seed, pos, (uint64_t)c[i].id) >> 11) + 0.5) / 9007199254740992.0;
        const double score = (double)c[i].logit / (double)cfg->temp - log(-log(u));
        if (score > best) {
            best = score;
            token = c[i].id;
        }
    }
    free(c);
    return token;
}

static void test_sample_equals_a_naive_sampler(void **state)
{
    (void)state;
    enum { V = 3001, RECENT = 90 };
    float logits[V];
    int32_t recent[RECENT];
    struct spa_candidate *work = malloc(V * sizeof *work);
    const float temps[] = { 0, 0.3f, 1, 2 }, top_ps[] = { 1, 0.95f, 0.5f, 0 }, min_ps[] = { 0, 0.05f }, penalties[] = { 1, 1.3f };
    const int32_t top_ks[] = { 0, 1, 40, V - 1, V + 5 }, last_ns[] = { 0, 7, 64, -1 };
    uint64_t pos = 0;
    for (size_t i = 0; i < 4 * 4 * 2 * 2 * 5 * 4; i++, pos++) {
        const struct spa_sampling cfg = { .temp = temps[i % 4], .top_p = top_ps[i / 4 % 4], .min_p = min_ps[i / 16 % 2],
                                          .repeat_penalty = penalties[i / 32 % 2], .top_k = top_ks[i / 64 % 5],
                                          .repeat_last_n = last_ns[i / 320], .seed = 99 };
        fill_logits(logits, V, pos, i & 1 ? 12 : 1);
        const int32_t best = naive(&(struct spa_sampling){ .repeat_penalty = 1 }, logits, V, NULL, 0, 0);
        for (size_t j = 0; j < RECENT; j++)   /* the best often, so that the penalty matters */
            recent[j] = j % 2 ? best : (int32_t)(j * j % V);
        const int32_t got = spa_sample(&cfg, logits, V, recent, RECENT, pos, work);
        assert_int_equal(got, naive(&cfg, logits, V, recent, RECENT, pos));
    }
    free(work);
}

static void test_sample_frequencies_follow_the_softmax(void **state)
{
    (void)state;
    enum { V = 6, N = 200000 };
    const float logits[V] = { 0.5f, -1, 2, 0, 1.5f, -3 };
    struct spa_sampling cfg = plain;
    cfg.temp = 0.7f;
    struct spa_candidate work[V];
    double p[V], sum = 0;
    int count[V] = {0};
    for (int i = 0; i < V; i++)
        sum += p[i] = exp((double)logits[i] / 0.7);
    for (uint64_t pos = 0; pos < N; pos++)
        count[spa_sample(&cfg, logits, V, NULL, 0, pos, work)]++;
    for (int i = 0; i < V; i++) {
        const double want = N * p[i] / sum;
        assert_true(fabs(count[i] - want) < 5 * sqrt(want));
    }
}

static void test_sample_greedy_takes_the_smaller_id_of_equals(void **state)
{
    (void)state;
    enum { V = 300 };
    float logits[V] = {0};
    struct spa_candidate work[V];
    struct spa_sampling cfg = plain;
    cfg.temp = 0;
    assert_int_equal(spa_sample(&cfg, logits, V, NULL, 0, 0, work), 0);
    logits[120] = logits[250] = logits[70] = 4;
    assert_int_equal(spa_sample(&cfg, logits, V, NULL, 0, 0, work), 70);
    const int32_t recent[] = { 70, 70 };
    cfg.repeat_penalty = 1.5f;
    assert_int_equal(spa_sample(&cfg, logits, V, recent, 2, 0, work), 120);
    cfg.repeat_last_n = 0;
    assert_int_equal(spa_sample(&cfg, logits, V, recent, 2, 0, work), 70);
}

static void test_sample_repeat_penalty_counts_a_token_once_and_only_in_its_window(void **state)
{
    (void)state;
    const float logits[3] = { 2.0f, 1.9f, -1 };
    struct spa_candidate work[3];
    struct spa_sampling cfg = plain;
    cfg.temp = 0;
    cfg.repeat_penalty = 1.04f;   /* once: 1.923, twice would be 1.849 */
    const int32_t recent[] = { 0, 0, 0, 2 };
    assert_int_equal(spa_sample(&cfg, logits, 3, recent, 4, 0, work), 0);
    cfg.repeat_penalty = 1.2f;
    assert_int_equal(spa_sample(&cfg, logits, 3, recent, 4, 0, work), 1);
    cfg.repeat_last_n = 1;
    assert_int_equal(spa_sample(&cfg, logits, 3, recent, 4, 0, work), 0);
    const float negative[2] = { -1, -1.1f };   /* a penalty moves these down, too */
    cfg.repeat_last_n = 64;
    assert_int_equal(spa_sample(&cfg, negative, 2, recent, 3, 0, work), 1);
    const int32_t foreign[] = { -1, 3, 1000000 };
    assert_int_equal(spa_sample(&cfg, logits, 3, foreign, 3, 0, work), 0);
}

static void test_sample_never_chooses_nan_unless_all_are(void **state)
{
    (void)state;
    enum { V = 200 };
    float logits[V];
    struct spa_candidate work[V];
    const int32_t recent[] = { 150 };
    for (int way = 0; way < 32; way++) {
        struct spa_sampling cfg = plain;
        cfg.temp = way & 1 ? 1.0f : 0.0f;
        cfg.top_k = way & 2 ? 5 : 0;
        cfg.top_p = way & 4 ? 0.9f : 1;
        cfg.min_p = way & 8 ? 0.1f : 0;
        cfg.repeat_penalty = way & 16 ? 1.1f : 1;
        for (int i = 0; i < V; i++)
            logits[i] = NAN;
        assert_in_range(spa_sample(&cfg, logits, V, recent, 1, 0, work), 0, V - 1);
        logits[150] = -2;
        for (uint64_t pos = 0; pos < 20; pos++)
            assert_int_equal(spa_sample(&cfg, logits, V, recent, 1, pos, work), 150);
        for (int i = 0; i < V; i++)
            if (i != 150)
                logits[i] = -INFINITY;
        assert_int_equal(spa_sample(&cfg, logits, V, recent, 1, 1, work), 150);
        logits[7] = INFINITY;
        assert_int_equal(spa_sample(&cfg, logits, V, recent, 1, 1, work), 7);
    }
}

static void test_sample_meets_the_same_noise_in_other_logits(void **state)
{
    (void)state;
    /* What run-ahead lives on: logits that differ a little draw the same token nearly always; independent noise would
     * agree in less than one case of ten here. */
    enum { V = 2000, N = 300 };
    float a[V], b[V];
    struct spa_candidate work[V];
    struct spa_sampling cfg = plain, other = plain;
    other.seed++;
    int same = 0, same_other = 0;
    fill_logits(a, V, 1, 3);
    for (int i = 0; i < V; i++)
        b[i] = a[i] + 0.01f * sinf((float)i);
    for (uint64_t pos = 0; pos < N; pos++) {
        const int32_t token = spa_sample(&cfg, a, V, NULL, 0, pos, work);
        same += token == spa_sample(&cfg, b, V, NULL, 0, pos, work);
        same_other += token == spa_sample(&other, a, V, NULL, 0, pos, work);
    }
    assert_true(same > N * 95 / 100);
    assert_true(same_other < N / 10);
}

static void test_sample_does_not_change_the_logits(void **state)
{
    (void)state;
    enum { V = 500 };
    float logits[V], keep[V];
    struct spa_candidate work[V];
    const int32_t recent[] = { 1, 2, 3 };
    const struct spa_sampling cfg = { .temp = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .repeat_penalty = 1.1f,
                                      .repeat_last_n = -1, .seed = 1 };
    fill_logits(logits, V, 4, 5);
    memcpy(keep, logits, sizeof logits);
    spa_sample(&cfg, logits, V, recent, 3, 9, work);
    assert_memory_equal(logits, keep, sizeof logits);
}

static void test_sample_noise_is_the_same_on_every_machine(void **state)
{
    (void)state;
    /* Fixed for good: seeds that people wrote down must go on to give the same text. */
    assert_true(spa_noise64(0, 0, 0) == 0x238275bc38fcbe91);
    assert_true(spa_noise64(1, 2, 3) == 0x6ae515c1c0ac7e37);
    /* Each argument counts, and one does not stand in for another. */
    assert_true(spa_noise64(1, 2, 3) != spa_noise64(1, 3, 2) && spa_noise64(1, 2, 3) != spa_noise64(2, 1, 3));
    /* Every bit is set half of the time, in whichever argument the counter runs. */
    for (int argument = 0; argument < 3; argument++) {
        enum { N = 4096 };
        int ones[64] = {0};
        for (uint64_t i = 0; i < N; i++) {
            const uint64_t bits = spa_noise64(argument == 0 ? i : 7, argument == 1 ? i : 7, argument == 2 ? i : 7);
            for (int b = 0; b < 64; b++)
                ones[b] += (int)(bits >> b & 1);
        }
        for (int b = 0; b < 64; b++)
            assert_true(abs(ones[b] - N / 2) < 5 * 32);   /* five standard deviations */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sample_equals_a_naive_sampler),
        cmocka_unit_test(test_sample_frequencies_follow_the_softmax),
        cmocka_unit_test(test_sample_greedy_takes_the_smaller_id_of_equals),
        cmocka_unit_test(test_sample_repeat_penalty_counts_a_token_once_and_only_in_its_window),
        cmocka_unit_test(test_sample_never_chooses_nan_unless_all_are),
        cmocka_unit_test(test_sample_meets_the_same_noise_in_other_logits),
        cmocka_unit_test(test_sample_does_not_change_the_logits),
        cmocka_unit_test(test_sample_noise_is_the_same_on_every_machine),
    };
    return cmocka_run_group_tests_name("sample", tests, NULL, NULL);
}
