/* test_anchors.c - cloud/anchors.c, anchors_file.c, generic.c, make.c around a small deterministic model: what is made, what a file that
 * is there saves, what a damaged one costs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "anchors.h"
#include "fake_model.h"
#include "fit.h"
#include "generic.h"
#include "make.h"

#include <dirent.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { N = 10, PATH = 512 };
#define TEN "0123456789"
#define HUNDRED TEN TEN TEN TEN TEN TEN TEN TEN TEN TEN
static const char *const prompts[] = {
    "hi", "what is it?", "a longer question, so that it needs two batches of the model", "one", "two", "three", "four", "five", "six", "seven",
    /* and one that fits no slot */
    HUNDRED HUNDRED HUNDRED HUNDRED HUNDRED HUNDRED HUNDRED HUNDRED,
};
static const uint32_t layers[] = { 0, 1, FAKE_LAYERS };

/* The fake model with its calls counted. */
static struct spa_model model, inner;
static unsigned decodes, heads;
static char folder[PATH], logged[4096];

static int counted_decode(void *self, const struct spa_batch_token *b, uint32_t n, const uint32_t *l, uint32_t n_l, struct spa_states *out)
{
    decodes++;
    return inner.decode(self, b, n, l, n_l, out);
}

static void counted_head(void *self, const float *states, uint32_t n, float *logits)
{
    heads++;
    inner.head(self, states, n, logits);
}

static void keep_log(void *user, enum spa_log_level level, const char *line)
{
    (void)user;
    (void)level;
    const size_t at = strlen(logged);
    snprintf(logged + at, sizeof logged - at, "%s\n", line);
}

static int set_up(void **state)
{
    (void)state;
    fake_model_open(&inner);
    model = inner;
    model.decode = counted_decode;
    model.head = counted_head;
    snprintf(folder, sizeof folder, "/tmp/spa-anchors-XXXXXX");
    assert_non_null(mkdtemp(folder));
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    char path[2 * PATH];
    DIR *dir = opendir(folder);
    for (struct dirent *d; dir && (d = readdir(dir));)
        if (d->d_name[0] != '.') {
            snprintf(path, sizeof path, "%s/%s", folder, d->d_name);
            unlink(path);
        }
    if (dir)
        closedir(dir);
    rmdir(folder);
    fake_model_close(&inner);
    return 0;
}

static struct spa_anchors *start(const char *in)
{
    const struct spa_anchors_config cfg = { .model = &model, .prompts = prompts, .n_prompts = N + 1, .folder = in, .log = keep_log };
    logged[0] = '\0';
    struct spa_anchors *a = spa_anchors_new(&cfg);
    assert_non_null(a);
    assert_int_equal(spa_anchors_n(a), N);
    return a;
}

static void make(struct spa_anchors *a, const uint32_t *l, uint32_t n)
{
    char why[256];
    decodes = heads = 0;
    assert_int_equal(spa_make_anchors(a, &model, l, n, (struct spa_make_progress){ 0 }, why, sizeof why), 0);
}

/* The n-th file of the folder with this suffix, by name; false: there are not so many. */
static bool file_with(const char *suffix, unsigned which, char path[2 * PATH])
{
    DIR *dir = opendir(folder);
    bool found = false;
    for (struct dirent *d; !found && (d = readdir(dir));) {
        const size_t len = strlen(d->d_name), end = strlen(suffix);
        found = len > end && strcmp(d->d_name + len - end, suffix) == 0 && which-- == 0;
        snprintf(path, 2 * PATH, "%s/%s", folder, d->d_name);
    }
    closedir(dir);
    return found;
}

/* Turns one byte of a file over; from its end when at is negative. */
static void damage(const char *suffix, long at)
{
    char path[2 * PATH];
    assert_true(file_with(suffix, 0, path));
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, at, at < 0 ? SEEK_END : SEEK_SET), 0);
    const int byte = fgetc(f);
    assert_int_equal(fseek(f, -1, SEEK_CUR), 0);
    fputc(byte ^ 0x40, f);
    fclose(f);
}

/* All anchors against the model itself: greedy tokens, states of every position. */
static void check_all(struct spa_anchors *a)
{
    struct spa_anchor_set *set = spa_anchor_set_get(a, layers, 3);
    assert_non_null(set);
    static float logits[FAKE_VOCAB], y[3 * FAKE_D], y_fin[FAKE_D];
    for (uint32_t i = 0; i < N; i++) {
        struct spa_anchor v;
        assert_int_equal(spa_anchor_get(set, i, &v), SPA_ANCHOR_HERE);
        assert_int_equal(v.n_tokens, v.n_prompt + SPA_ANCHOR_ANSWER);   /* the fake model never ends by itself */
        for (uint32_t pos = 0; pos + 1 < v.n_tokens; pos++) {
            struct spa_states s;
            const struct spa_batch_token t = { v.tokens[pos], pos, FAKE_SLOTS, SPA_WANT_ALL };
            assert_int_equal(inner.decode(inner.self, &t, 1, layers, 3, &s), 0);
            spa_anchor_taps(set, &v, pos, y);
            for (int k = 0; k < 3 * FAKE_D; k++)
                assert_true(fabsf(y[k] - s.taps[k]) < 2e-3f);   /* F16 of numbers below 4 */
            if (pos + 1 < v.n_prompt)
                continue;
            spa_anchor_y_fin(set, &v, pos + 1 - v.n_prompt, y_fin);
            for (int k = 0; k < FAKE_D; k++)
                assert_true(fabsf(y_fin[k] - s.y_fin[k]) < 2e-3f);
            inner.head(inner.self, s.y_fin, 1, logits);
            for (int k = 0; k < FAKE_VOCAB; k++)
                assert_true(logits[k] <= logits[v.tokens[pos + 1]]);
        }
        inner.seq_rm(inner.self, FAKE_SLOTS, 0);
    }
    spa_anchor_set_put(set);
}

static void test_anchors_are_the_models_own_greedy_answers_and_states(void **state)
{
    (void)state;
    char path[2 * PATH];
    struct stat st;
    struct spa_anchors *a = start(folder);
    make(a, layers, 3);
    assert_true(heads > 0);
    check_all(a);
    spa_anchors_free(a);
    for (int i = 0; i < 2; i++) {
        assert_true(file_with(i ? ".states" : ".answers", 0, path));
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 0777, 0600);
    }
    /* Another start finds all there. */
    a = start(folder);
    make(a, layers, 3);
    assert_int_equal(decodes, 0);
    check_all(a);
    spa_anchors_free(a);
}

static void test_anchors_another_set_of_layers_costs_no_answers(void **state)
{
    (void)state;
    static const uint32_t other[] = { 2 };
    struct spa_anchors *a = start(folder);
    make(a, layers, 3);
    make(a, other, 1);
    assert_int_equal(heads, 0);
    assert_true(decodes > 0);
    spa_anchors_free(a);
    a = start(folder);
    make(a, other, 1);
    assert_int_equal(decodes, 0);
    spa_anchors_free(a);
}

static void test_anchors_damaged_files_are_made_again(void **state)
{
    (void)state;
    static const struct { const char *suffix; long at; bool answers; } places[] = {
        { ".states", -9, false },        /* the last record */
        { ".states", 100, false },       /* the table */
        { ".states", 3, false },         /* what it says it is */
        { ".answers", 60, true },
    };
    struct spa_anchors *a = start(folder);
    make(a, layers, 3);
    const unsigned all = decodes;
    spa_anchors_free(a);
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        damage(places[i].suffix, places[i].at);
        a = start(folder);
        if (places[i].answers)
            damage(".states", 100);   /* or nobody would ask for the answers */
        make(a, layers, 3);
        assert_non_null(strstr(logged, "made again"));
        assert_true(decodes > 0 && (i > 0 || decodes < all / 2));
        assert_true((heads > 0) == places[i].answers);
        check_all(a);
        spa_anchors_free(a);
        a = start(folder);
        make(a, layers, 3);
        assert_int_equal(decodes, 0);
        spa_anchors_free(a);
    }
    char path[2 * PATH];
    assert_true(file_with(".states", 0, path));
    assert_int_equal(truncate(path, 700), 0);
    a = start(folder);
    make(a, layers, 3);
    check_all(a);
    spa_anchors_free(a);
}

static void test_anchors_without_a_folder_stay_in_memory(void **state)
{
    (void)state;
    struct spa_anchors *a = start(NULL);
    make(a, layers, 3);
    check_all(a);
    spa_anchors_free(a);
    /* A folder that is gone when the first file is to be written: one line says so. */
    char gone[2 * PATH];
    snprintf(gone, sizeof gone, "%s/gone", folder);
    a = start(gone);
    make(a, layers, 3);
    check_all(a);
    assert_non_null(strstr(logged, "stay in memory"));
    assert_null(strstr(strstr(logged, "stay in memory") + 1, "stay in memory"));
    spa_anchors_free(a);
}

/* A limit on file sizes stops the writes at different places, as a full disk does: in the answers, in the states' head, in a record. */
static void test_anchors_on_a_full_disk_stay_in_memory_and_leave_no_pieces(void **state)
{
    (void)state;
    static const rlim_t room[] = { 64, 500, 1200, 2000, 20000 };
    struct rlimit before, small;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    for (size_t i = 0; i < sizeof room / sizeof *room; i++) {
        char path[2 * PATH];
        small.rlim_cur = room[i];
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
        struct spa_anchors *a = start(folder);
        make(a, layers, 3);
        setrlimit(RLIMIT_FSIZE, &before);
        check_all(a);
        if (!strstr(logged, "stay in memory"))
            fail_msg("%zu bytes were enough: '%s'", (size_t)room[i], logged);
        spa_anchors_free(a);
        assert_false(file_with(".states", 0, path));
        while (file_with(".answers", 0, path))
            unlink(path);
        assert_int_equal(rmdir(folder), 0);   /* nothing else is there */
        assert_int_equal(mkdir(folder, 0700), 0);
    }
}

static void test_anchors_old_sets_leave_the_folder(void **state)
{
    (void)state;
    char path[2 * PATH];
    struct spa_anchors *a = start(folder);
    for (uint32_t i = 0; i < 7; i++) {
        const uint32_t two[] = { i % 3, 3 }, one[] = { i - 3 };
        make(a, i < 3 ? two : one, i < 3 ? 2 : 1);
    }
    assert_true(file_with(".states", SPA_ANCHOR_SETS - 1, path));
    assert_false(file_with(".states", SPA_ANCHOR_SETS, path));
    /* More sets than there is room for while all are held. */
    struct spa_anchor_set *held[SPA_ANCHOR_SETS];
    for (uint32_t i = 0; i < SPA_ANCHOR_SETS; i++) {
        held[i] = spa_anchor_set_get(a, &i, 1);
        assert_non_null(held[i]);
    }
    assert_null(spa_anchor_set_get(a, layers, 3));
    for (uint32_t i = 0; i < SPA_ANCHOR_SETS; i++)
        spa_anchor_set_put(held[i]);
    spa_anchors_free(a);
}

/* ---- the generic basis ---- */

static void write_file(const char *path, const void *bytes, size_t len)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, len, f), len);
    fclose(f);
}

static void test_generic_equals_a_task_basis_of_the_same_states(void **state)
{
    (void)state;
    char why[256], path[2 * PATH];
    uint8_t *bytes;
    size_t len;
    struct spa_anchors *a = start(NULL);
    if (spa_make_generic_of_anchors(a, &model, 8, (struct spa_make_progress){ 0 }, &bytes, &len, why, sizeof why) != 0)
        fail_msg("%s", why);
    snprintf(path, sizeof path, "%s/fake.basis", folder);
    write_file(path, bytes, len);
    struct spa_generic *g;
    assert_int_equal(spa_generic_open(&g, path, &model.info, why, sizeof why), 0);

    struct spa_shape shape = { .d = FAKE_D, .n_layers = FAKE_LAYERS, .r = 1, .m = 1, .n_taps = 2, .taps = { 1, 3 }, .k = 5, .basis = true,
                               .normalise = SPA_NORM_RMS };
    struct spa_fit *fit = spa_fit_new(&shape);
    const uint32_t all[] = { 1, 3 };
    struct spa_anchor_set *answers = spa_anchor_set_get(a, all, 0);
    for (uint32_t i = 0; i < N; i++) {
        struct spa_anchor v;
        assert_int_equal(spa_anchor_get(answers, i, &v), SPA_ANCHOR_HERE);
        for (uint32_t pos = 0; pos < v.n_tokens; pos++) {
            struct spa_states s;
            const struct spa_batch_token t = { v.tokens[pos], pos, FAKE_SLOTS, SPA_WANT_ALL };
            assert_int_equal(inner.decode(inner.self, &t, 1, all, 2, &s), 0);
            const float *y[] = { s.taps, s.taps + FAKE_D };
            assert_true(spa_fit_add(fit, y));
        }
        inner.seq_rm(inner.self, FAKE_SLOTS, 0);
    }
    assert_int_equal(spa_generic_states(g), spa_fit_states(fit));
    float *task = NULL, *generic = spa_generic_basis(g, &shape);
    assert_non_null(generic);
    while (spa_fit_step(fit, &task) == SPA_NONE)
        ;
    assert_non_null(task);
    for (size_t i = 0; i < spa_basis_floats(&shape); i++)
        assert_true(fabsf(task[i] - generic[i]) < 1e-5f);   /* sums in double, taken in other blocks */
    shape.k = 9;
    assert_null(spa_generic_basis(g, &shape));
    spa_generic_why_not(g, &shape, why, sizeof why);
    assert_non_null(strstr(why, "spa-cloud basis --k 9"));
    spa_anchor_set_put(answers);
    spa_fit_free(fit);
    spa_generic_close(g);
    free(task);
    free(generic);

    /* Of another model, damaged, cut, absent. */
    struct spa_model_info other = model.info;
    other.hash[5] ^= 1;
    assert_int_equal(spa_generic_open(&g, path, &other, why, sizeof why), -1);
    assert_non_null(strstr(why, "another model"));
    bytes[len / 2] ^= 1;
    write_file(path, bytes, len);
    assert_int_equal(spa_generic_open(&g, path, &model.info, why, sizeof why), -1);
    assert_non_null(strstr(why, "damaged"));
    write_file(path, bytes, len - 1);
    assert_int_equal(spa_generic_open(&g, path, &model.info, why, sizeof why), -1);
    unlink(path);
    assert_int_equal(spa_generic_open(&g, path, &model.info, why, sizeof why), 1);
    assert_int_equal(spa_generic_open(&g, folder, &model.info, why, sizeof why), -1);
    assert_non_null(strstr(why, "cannot be read"));
    write_file(path, "SPABASE1", 8);
    assert_int_equal(spa_generic_open(&g, path, &model.info, why, sizeof why), -1);
    assert_non_null(strstr(why, "not a generic basis"));
    /* Whole, and yet not what a device may get: more directions than there are, numbers that are none. */
    bytes[len / 2] ^= 1;
    struct spa_generic_layer last = spa_generic_layer(bytes, &model.info, 8, FAKE_LAYERS);
    last.p[3] = NAN;
    spa_generic_seal(bytes, len);
    write_file(path, bytes, len);
    assert_int_equal(spa_generic_open(&g, path, &model.info, why, sizeof why), -1);
    assert_non_null(strstr(why, "damaged"));
    last.p[3] = 0;
    last.variances[1] = -1;
    spa_generic_seal(bytes, len);
    write_file(path, bytes, len);
    assert_int_equal(spa_generic_open(&g, path, &model.info, why, sizeof why), -1);
    bytes[8 + 32 + 8] = 9;   /* k */
    spa_generic_seal(bytes, len);
    write_file(path, bytes, len);
    assert_int_equal(spa_generic_open(&g, path, &model.info, why, sizeof why), -1);
    spa_generic_why_not(NULL, &shape, why, sizeof why);
    assert_non_null(strstr(why, "has no generic basis"));
    free(bytes);
    spa_anchors_free(a);
}

static void test_generic_of_a_text_needs_enough_of_it(void **state)
{
    (void)state;
    char why[256], text[4000];
    uint8_t *bytes;
    size_t len;
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (char)('a' + i * i % 23);
    assert_int_equal(spa_make_generic_of_text(&model, text, sizeof text, 8, (struct spa_make_progress){ 0 }, &bytes, &len, why, sizeof why), 0);
    free(bytes);
    assert_int_equal(spa_make_generic_of_text(&model, text, 7, 8, (struct spa_make_progress){ 0 }, &bytes, &len, why, sizeof why), -1);
    assert_non_null(strstr(why, "too few"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_anchors_are_the_models_own_greedy_answers_and_states, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_anchors_another_set_of_layers_costs_no_answers, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_anchors_damaged_files_are_made_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_anchors_without_a_folder_stay_in_memory, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_anchors_on_a_full_disk_stay_in_memory_and_leave_no_pieces, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_anchors_old_sets_leave_the_folder, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_generic_equals_a_task_basis_of_the_same_states, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_generic_of_a_text_needs_enough_of_it, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
