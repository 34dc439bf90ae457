/* test_feature_file.c - the states of rows in a file: whole or not at all, every damage found, what was cut off taken over. Works in a
 * folder of its own under TMPDIR. */
#define _XOPEN_SOURCE 700
#include "basis.h"
#include "drafts.h"
#include "feature_file.h"
#include "store.h"

#include <limits.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "test_folder.h"

enum { ROWS = 5, ALL = 12, BASIS = 3 * (1 + 8 + 4 * 8), BULK_MAX = 512 };

static char path[300], part[310], why[SPA_WHY_MAX];
static spa_Welcome model;
static spa_Plugin plugin;
static float basis[BASIS];
static struct spa_session wire;
static struct spa_feature_key keys[ALL];

static int set_up(void **state)
{
    (void)state;
    if (folder_make() != 0)
        return -1;
    snprintf(path, sizeof path, "%s/p.features", folder);
    snprintf(part, sizeof part, "%s.part", path);
    model = (spa_Welcome){ .model = "a model", .model_hash = { .size = 32 }, .d = 8, .n_layers = 4, .n_vocab = 100, .n_ctx = 64,
                           .head_type = 1, .head_bytes = 1600, .head_hash = { .size = 32, .bytes = { 9 } }, .logit_scale = 1 };
    for (uint32_t i = 0; i < 32; i++)
        model.model_hash.bytes[i] = (uint8_t)(i + 1);
    for (int i = 0; i < BASIS; i++)
        basis[i] = 0.25f + (float)i;
    plugin = (spa_Plugin){ .d = 8, .n_layers = 4, .taps_count = 3, .taps = { 0, 2, 4 }, .k = 4, .rms = true, .basis = true, .basis_hash = { .size = 32 },
                           .ctx_taps_count = 1, .ctx_taps = { 2 }, .tap_dtype = spa_Dtype_I8 };
    spa_sha256(basis, sizeof basis, plugin.basis_hash.bytes);
    if (spa_wire_shape_from_plugin(&plugin, &wire.shape) != SPA_OK)
        return -1;
    wire.tap_dtype = SPA_I8;
    for (uint32_t i = 0; i < ALL; i++) {
        const struct spa_part row = { .kind = SPA_PART_USER, .bytes = (const uint8_t *)&i, .len = 4 };
        if (spa_feature_key_row(&row, 1, &keys[i]) != 0)
            return -1;
    }
    return 0;
}

static void assert_says(const char *what)
{
    if (!strstr(why, what))
        fail_msg("'%s' does not say '%s'", why, what);
}

static void good(int rc)
{
    if (rc != 0)
        fail_msg("%s", why);
}
#define WHY why, sizeof why

/* Row i's record; rows differ in length, and the last number is one that only row i has. */
static struct spa_feature_record record_of(uint32_t i, uint8_t bulk[BULK_MAX])
{
    const uint32_t n_loss = 1 + i % 3, n_ctx = n_loss + 2;
    struct spa_feature_record r = { .kind = SPA_FEATURE_ROW, .key = keys[i], .head = { .n_tokens = n_ctx + 1, .n_ctx = n_ctx, .n_loss = n_loss } };
    r.bulk_len = (uint32_t)(n_loss * (8 + spa_wire_row_bytes(&wire.shape, SPA_I8) + 16) + n_ctx * spa_wire_ctx_row_bytes(&wire.shape, SPA_I8));
    assert_true(r.bulk_len <= BULK_MAX);
    memset(bulk, (int)i, r.bulk_len);
    for (uint32_t k = 0; k < n_loss; k++) {
        const uint32_t pos = k + 1, target = (i * 7 + k) % 100;
        memcpy(bulk + 4 * k, &pos, 4);
        memcpy(bulk + 4 * (n_loss + k), &target, 4);
    }
    return r;
}

static int add_row(struct spa_feature_file *f, uint32_t i)
{
    uint8_t bulk[BULK_MAX];
    const struct spa_feature_record r = record_of(i, bulk);
    return spa_feature_file_add(f, &r, bulk, WHY);
}

static struct spa_feature_file *open_file(void)
{
    struct spa_feature_file *f = NULL;
    good(spa_feature_file_open(&f, path, NULL, WHY));
    return f;
}

static bool use(struct spa_feature_file *f, uint32_t n_keys)
{
    bool used;
    good(spa_feature_file_use(f, &model, &plugin, keys, n_keys, &used, WHY));
    return used;
}

static struct spa_feature_file *start_file(void)
{
    struct spa_feature_file *f = open_file();
    good(spa_feature_file_start(f, &model, &plugin, basis, WHY));
    return f;
}

static void assert_row_is_there(const struct spa_feature_file *f, uint32_t i)
{
    uint8_t bulk[BULK_MAX];
    const struct spa_feature_record expected = record_of(i, bulk), *r = spa_feature_file_find(f, SPA_FEATURE_ROW, &keys[i]);
    assert_non_null(r);
    assert_int_equal(r->bulk_len, expected.bulk_len);
    assert_memory_equal(spa_feature_file_bulk(f, r), bulk, r->bulk_len);
    assert_true(r->head.n_loss == expected.head.n_loss && r->head.n_ctx == expected.head.n_ctx && r->head.n_tokens == expected.head.n_tokens);
}

/* Rows 0 .. n-1, and one of each other sort. */
static void make_file(uint32_t n)
{
    struct spa_feature_file *f = start_file();
    for (uint32_t i = 0; i < n; i++)
        good(add_row(f, i));
    struct spa_feature_record refused = { .kind = SPA_FEATURE_ROW, .key = keys[ALL - 1], .refused = spa_Code_CONTEXT_FULL, .limit = 64, .bulk_len = 3 };
    good(spa_feature_file_add(f, &refused, (const uint8_t *)"no.", WHY));
    uint8_t bulk[BULK_MAX];
    struct spa_feature_record anchor = record_of(1, bulk);
    anchor.kind = SPA_FEATURE_ANCHOR;
    spa_feature_key_anchor(model.model_hash.bytes, 7, &anchor.key);
    good(spa_feature_file_add(f, &anchor, bulk, WHY));
    good(spa_feature_file_finish(f, WHY));
    spa_feature_file_close(f);
}

static uint8_t *read_file(const char *name, size_t *len)
{
    uint8_t *bytes = NULL;
    good(spa_store_read(name, 1 << 20, &bytes, len, WHY));
    return bytes;
}

static void write_file(const char *name, const uint8_t *bytes, size_t len)
{
    FILE *to = fopen(name, "wb");
    assert_non_null(to);
    assert_int_equal(fwrite(bytes, 1, len, to), len);
    assert_int_equal(fclose(to), 0);
}

static void test_feature_file_comes_again_as_it_was_written(void **state)
{
    (void)state;
    make_file(ROWS);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(folder_n_files(), 1);
    size_t len, len_again;
    uint8_t *bytes = read_file(path, &len);

    struct spa_feature_file *f = open_file();
    good(spa_feature_file_check(f, &model, &plugin, WHY));
    assert_string_equal(spa_feature_file_model(f)->model, "a model");
    assert_true(spa_feature_file_serves(f, &plugin, SPA_FEATURE_ROW, keys, ROWS));
    assert_false(spa_feature_file_serves(f, &plugin, SPA_FEATURE_ROW, keys, ROWS + 1));
    assert_true(use(f, ROWS));
    const struct spa_feature_base *base = spa_feature_file_base(f);
    assert_true(base->model.n_vocab == 100 && base->model.n_ctx == 64 && base->model.head_bytes == 1600 && base->model.logit_scale == 1);
    assert_memory_equal(base->basis, basis, sizeof basis);
    good(spa_feature_file_finish(f, WHY));
    for (uint32_t i = 0; i < ROWS; i++)
        assert_row_is_there(f, i);
    const struct spa_feature_record *refused = spa_feature_file_find(f, SPA_FEATURE_ROW, &keys[ALL - 1]);
    assert_true(refused->refused == spa_Code_CONTEXT_FULL && refused->limit == 64 && refused->bulk_len == 3);
    struct spa_feature_key anchor;
    spa_feature_key_anchor(model.model_hash.bytes, 7, &anchor);
    assert_non_null(spa_feature_file_find(f, SPA_FEATURE_ANCHOR, &anchor));
    assert_null(spa_feature_file_find(f, SPA_FEATURE_ROW, &anchor));
    spa_feature_file_close(f);

    uint8_t *again = read_file(path, &len_again);
    assert_int_equal(len, len_again);
    assert_memory_equal(bytes, again, len);
    assert_int_equal(folder_n_files(), 1);
    free(bytes);
    free(again);
}

static void test_feature_file_cut_anywhere_is_refused(void **state)
{
    (void)state;
    make_file(ROWS);
    size_t len;
    uint8_t *bytes = read_file(path, &len);
    for (size_t cut = 0; cut < len; cut++) {
        write_file(path, bytes, cut);
        struct spa_feature_file *f = open_file();
        why[0] = '\0';
        if (spa_feature_file_check(f, NULL, NULL, WHY) == 0)
            fail_msg("%zu of %zu bytes are taken for the whole", cut, len);
        assert_says(path);
        assert_false(use(f, ROWS));
        spa_feature_file_close(f);
    }
    free(bytes);
}

/* As PATH.part: what is whole in it is taken over, the rest can be added, and the end is as if nothing had happened. */
static void test_feature_file_unfinished_and_cut_anywhere_goes_on(void **state)
{
    (void)state;
    make_file(ROWS);
    size_t len, len_again, kept_at_all = 0;
    uint8_t *bytes = read_file(path, &len);
    for (size_t cut = 0; cut <= len; cut++) {
        unlink(path);
        write_file(part, bytes, cut);
        struct spa_feature_file *f = open_file();
        assert_int_equal(spa_feature_file_check(f, NULL, NULL, WHY), 0);
        if (!use(f, ROWS))
            good(spa_feature_file_start(f, &model, &plugin, basis, WHY));
        uint32_t kept = 0;
        for (uint32_t i = 0; i < ROWS; i++) {
            if (spa_feature_file_find(f, SPA_FEATURE_ROW, &keys[i])) {
                assert_int_equal(kept, i);   /* a beginning, without gaps */
                kept++;
            } else {
                good(add_row(f, i));
            }
        }
        kept_at_all += kept;
        good(spa_feature_file_finish(f, WHY));
        for (uint32_t i = 0; i < ROWS; i++)
            assert_row_is_there(f, i);
        spa_feature_file_close(f);
        f = open_file();
        good(spa_feature_file_check(f, &model, &plugin, WHY));
        spa_feature_file_close(f);
    }
    uint8_t *again = read_file(path, &len_again);
    assert_int_equal(len_again, len);   /* the last cut cut nothing */
    assert_memory_equal(again, bytes, len);
    assert_true(kept_at_all > 0);
    free(bytes);
    free(again);
}

static void test_feature_file_with_any_byte_flipped_is_refused(void **state)
{
    (void)state;
    make_file(ROWS);
    size_t len;
    uint8_t *bytes = read_file(path, &len);
    for (size_t i = 0; i < len; i++) {
        bytes[i] ^= (uint8_t)(1 << i % 8);
        write_file(path, bytes, len);
        struct spa_feature_file *f = open_file();
        if (spa_feature_file_check(f, NULL, NULL, WHY) == 0)
            fail_msg("byte %zu of %zu can be changed", i, len);
        assert_false(use(f, ROWS));
        spa_feature_file_close(f);
        bytes[i] ^= (uint8_t)(1 << i % 8);
    }
    free(bytes);
}

static void test_feature_file_is_its_owners_whoever_made_its_beginning(void **state)
{
    (void)state;
    struct stat st;
    write_file(part, (const uint8_t *)"x", 1);
    assert_int_equal(chmod(part, 0666), 0);
    make_file(ROWS);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
}

static void test_feature_file_of_another_kind_says_which(void **state)
{
    (void)state;
    make_file(ROWS);
    struct spa_feature_file *f = open_file();
    spa_Welcome other = model;
    other.model_hash.bytes[5] ^= 1;
    assert_int_equal(spa_feature_file_check(f, &other, &plugin, WHY), -1);
    assert_says("the same name, other weights");
    snprintf(other.model, sizeof other.model, "another model");
    assert_int_equal(spa_feature_file_check(f, &other, &plugin, WHY), -1);
    assert_says("of the model 'a model', not of 'another model'");
    spa_Plugin wanted = plugin;
    wanted.basis_hash.size = 0;
    good(spa_feature_file_check(f, &model, &wanted, WHY));
    wanted.generic = true;
    assert_int_equal(spa_feature_file_check(f, &model, &wanted, WHY), -1);
    assert_says("the rows' own, not the cloud's");
    wanted = plugin;
    wanted.basis_hash.bytes[0] ^= 1;
    assert_int_equal(spa_feature_file_check(f, &model, &wanted, WHY), -1);
    assert_says("another basis");
    wanted = plugin;
    wanted.taps[1] = 3;
    assert_int_equal(spa_feature_file_check(f, &model, &wanted, WHY), -1);
    assert_says("other taps");
    wanted = plugin;
    wanted.ctx_taps_count = 0;
    assert_int_equal(spa_feature_file_check(f, &model, &wanted, WHY), -1);
    assert_says("other context taps");
    wanted = plugin;
    wanted.tap_dtype = spa_Dtype_F16;
    assert_int_equal(spa_feature_file_check(f, &model, &wanted, WHY), -1);
    assert_says("in another form");
    wanted = plugin;
    wanted.k = 3;
    assert_int_equal(spa_feature_file_check(f, &model, &wanted, WHY), -1);
    assert_says("another width");
    bool used;
    good(spa_feature_file_use(f, &other, &plugin, keys, ROWS, &used, WHY));
    assert_false(used);
    spa_feature_file_close(f);

    size_t len;
    uint8_t *bytes = read_file(path, &len);
    bytes[8] = 2;
    write_file(path, bytes, len);
    f = open_file();
    assert_int_equal(spa_feature_file_check(f, NULL, NULL, WHY), -1);
    assert_says("another version");
    spa_feature_file_close(f);
    write_file(path, (const uint8_t *)"GGUF and more", 13);
    f = open_file();
    assert_int_equal(spa_feature_file_check(f, NULL, NULL, WHY), -1);
    assert_says("not a feature file");
    spa_feature_file_close(f);
    free(bytes);
}

static void test_feature_file_new_rows_are_added_and_the_old_stay(void **state)
{
    (void)state;
    make_file(ROWS);
    size_t len, len_now;
    uint8_t *bytes = read_file(path, &len), *now;
    struct spa_feature_file *f = open_file();
    assert_true(use(f, ROWS + 2));
    good(add_row(f, ROWS));
    good(add_row(f, ROWS + 1));
    assert_int_equal(spa_feature_file_added(f), 2);
    now = read_file(path, &len_now);
    assert_int_equal(len_now, len);   /* untouched until the end */
    assert_memory_equal(now, bytes, len);
    free(now);
    good(spa_feature_file_finish(f, WHY));
    for (uint32_t i = 0; i < ROWS + 2; i++)
        assert_row_is_there(f, i);
    spa_feature_file_close(f);

    f = open_file();
    good(spa_feature_file_check(f, &model, &plugin, WHY));
    assert_true(use(f, ROWS + 2));
    assert_int_equal(spa_feature_file_records(f), ROWS + 4);
    spa_feature_file_close(f);
    assert_int_equal(folder_n_files(), 1);
    free(bytes);
}

/* A refusal gives way when a cloud with a longer context takes the row. */
static void test_feature_file_newer_record_of_a_key_is_the_one_found(void **state)
{
    (void)state;
    make_file(ROWS);
    struct spa_feature_file *f = open_file();
    assert_true(use(f, ROWS));
    good(add_row(f, ALL - 1));
    good(spa_feature_file_finish(f, WHY));
    assert_row_is_there(f, ALL - 1);
    spa_feature_file_close(f);
    f = open_file();
    assert_true(use(f, ROWS));
    good(spa_feature_file_finish(f, WHY));
    assert_row_is_there(f, ALL - 1);
    spa_feature_file_close(f);
}

static void test_feature_file_of_other_rows_is_not_gone_on_from(void **state)
{
    (void)state;
    make_file(4);   /* of 8 keys half are there, of 9 less */
    struct spa_feature_file *f = open_file();
    assert_true(use(f, 8));
    spa_feature_file_close(f);
    f = open_file();
    assert_false(use(f, 9));
    good(spa_feature_file_start(f, &model, &plugin, basis, WHY));   /* fitted anew */
    good(add_row(f, 8));
    spa_feature_file_close(f);   /* cut off */
    f = open_file();
    assert_true(use(f, 8));   /* the old file has half of them */
    spa_feature_file_close(f);
    assert_int_equal(folder_n_files(), 2);
}

static void test_feature_file_unfinished_one_of_foreign_rows_is_not_gone_on_from(void **state)
{
    (void)state;
    struct spa_feature_file *f = start_file();
    good(add_row(f, ALL - 2));
    spa_feature_file_close(f);
    f = open_file();
    assert_false(use(f, ROWS));
    spa_feature_file_close(f);
    f = open_file();
    bool used;
    good(spa_feature_file_use(f, &model, &plugin, keys + ALL - 2, 2, &used, WHY));
    assert_true(used);
    spa_feature_file_close(f);
}

/* The process is killed while it adds to an old file; nothing of either is lost. */
static void test_feature_file_killed_run_is_taken_over(void **state)
{
    (void)state;
    make_file(ROWS);
    pid_t child = fork();
    if (child == 0) {
        struct spa_feature_file *f = NULL;
        bool used = false;
        if (spa_feature_file_open(&f, path, NULL, WHY) == 0 && spa_feature_file_use(f, &model, &plugin, keys, ROWS + 3, &used, WHY) == 0 && used &&
            add_row(f, ROWS) == 0 && add_row(f, ROWS + 1) == 0)
            raise(SIGKILL);
        _exit(1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_int_equal(folder_n_files(), 2);
    struct spa_feature_file *f = open_file();
    good(spa_feature_file_check(f, &model, &plugin, WHY));
    assert_true(spa_feature_file_serves(f, &plugin, SPA_FEATURE_ROW, keys, ROWS + 2));
    assert_true(use(f, ROWS + 3));
    good(add_row(f, ROWS + 2));
    assert_int_equal(spa_feature_file_added(f), 1);
    good(spa_feature_file_finish(f, WHY));
    for (uint32_t i = 0; i < ROWS + 3; i++)
        assert_row_is_there(f, i);
    spa_feature_file_close(f);
    assert_int_equal(folder_n_files(), 1);
}

/* A limit on file sizes stands for the full disk: every size from nothing to the whole. */
static void test_feature_file_full_disk_leaves_the_old_file_and_what_came(void **state)
{
    (void)state;
    struct rlimit before, limit;
    make_file(ROWS);
    size_t old_len, len;
    uint8_t *old = read_file(path, &old_len), *now;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    for (size_t room = 0; room < old_len + 600; room += 13) {
        struct spa_feature_file *f = open_file();
        bool there = use(f, ROWS + 3) && spa_feature_file_find(f, SPA_FEATURE_ROW, &keys[ROWS]) != NULL;
        assert_false(there);
        limit = before;
        limit.rlim_cur = room;
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        int rc = 0;
        uint32_t added = 0;
        while (rc == 0 && added < 3)
            if ((rc = add_row(f, ROWS + added)) == 0)
                added++;
        if (rc == 0)
            rc = spa_feature_file_finish(f, WHY);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        spa_feature_file_close(f);
        if (rc == 0)
            break;
        assert_says("raise it");
        now = read_file(path, &len);
        assert_int_equal(len, old_len);
        assert_memory_equal(now, old, len);
        free(now);
        f = open_file();
        assert_true(use(f, ROWS + 3));
        for (uint32_t i = 0; i < 3; i++)
            assert_true((spa_feature_file_find(f, SPA_FEATURE_ROW, &keys[ROWS + i]) != NULL) == (i < added));
        spa_feature_file_close(f);
        unlink(part);
    }
    free(old);
}

static void test_feature_file_belongs_to_one_run_at_a_time(void **state)
{
    (void)state;
    struct spa_feature_file *f = start_file(), *other = NULL;
    good(add_row(f, 0));
    assert_int_equal(spa_feature_file_open(&other, path, NULL, WHY), -1);
    assert_null(other);
    assert_says("another run");
    good(spa_feature_file_finish(f, WHY));
    assert_row_is_there(f, 0);
    spa_feature_file_close(f);
    f = open_file();
    assert_true(use(f, 1));
    spa_feature_file_close(f);
}

static void test_feature_file_is_forgotten_on_request(void **state)
{
    (void)state;
    make_file(ROWS);
    struct spa_feature_file *f = open_file();
    assert_true(use(f, ROWS));
    good(spa_feature_file_finish(f, WHY));
    good(spa_feature_file_forget(f, WHY));
    assert_row_is_there(f, 0);   /* while this run lasts */
    spa_feature_file_close(f);
    assert_int_equal(folder_n_files(), 0);

    make_file(ROWS);
    f = open_file();
    good(spa_feature_file_forget(f, WHY));
    assert_null(spa_feature_file_model(f));
    assert_false(use(f, ROWS));
    spa_feature_file_close(f);
    assert_int_equal(folder_n_files(), 0);
}

static void test_feature_file_without_a_name_leaves_nothing(void **state)
{
    (void)state;
    struct spa_feature_file *f = NULL;
    good(spa_feature_file_open(&f, NULL, folder, WHY));
    assert_int_equal(folder_n_files(), 0);
    good(spa_feature_file_start(f, &model, &plugin, basis, WHY));
    good(add_row(f, 3));
    good(spa_feature_file_finish(f, WHY));
    assert_row_is_there(f, 3);
    assert_int_equal(folder_n_files(), 0);
    spa_feature_file_close(f);
}

static void test_feature_file_place_that_takes_none_is_said(void **state)
{
    (void)state;
    struct spa_feature_file *f = NULL;
    char name[600];
    assert_int_equal(spa_feature_file_open(&f, folder, NULL, WHY), -1);
    assert_says("a folder");
    snprintf(name, sizeof name, "%s/no/such/place", folder);
    assert_int_equal(spa_feature_file_open(&f, name, NULL, WHY), -1);
    assert_says("check the path");
    assert_int_equal(spa_feature_file_open(&f, NULL, name, WHY), -1);
    assert_says("check the path");
    assert_int_equal(folder_n_files(), 0);

    static char longest[PATH_MAX + 10];
    memset(longest, 'x', sizeof longest - 1);
    assert_int_equal(spa_feature_file_open(&f, longest, NULL, WHY), -1);
    assert_says("cannot write");
    assert_int_equal(spa_feature_file_open(&f, NULL, longest, WHY), -1);
    assert_says("cannot write into");

    assert_int_equal(mkfifo(part, 0600), 0);
    assert_int_equal(spa_feature_file_open(&f, path, NULL, WHY), -1);
    assert_says("no regular file");
    unlink(part);
    assert_int_equal(symlink(path, path), 0);   /* a link to itself */
    assert_int_equal(spa_feature_file_open(&f, path, NULL, WHY), -1);
    assert_says("cannot read");
    unlink(path);
    unlink(part);
    assert_int_equal(folder_n_files(), 0);
}

/* What has the name meanwhile is nothing that a file could replace, or that could be deleted. */
static void test_feature_file_whose_name_is_taken_meanwhile_stays_where_it_is(void **state)
{
    (void)state;
    struct spa_feature_file *f = start_file();
    good(add_row(f, 0));
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(spa_feature_file_finish(f, WHY), -1);
    assert_says("cannot write");
    spa_feature_file_close(f);
    assert_int_equal(rmdir(path), 0);
    f = open_file();
    assert_true(use(f, 1));
    assert_non_null(spa_feature_file_find(f, SPA_FEATURE_ROW, &keys[0]));
    spa_feature_file_close(f);
    f = open_file();
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(spa_feature_file_forget(f, WHY), -1);
    assert_says("cannot delete");
    spa_feature_file_close(f);
    rmdir(path);
}

static void test_feature_file_has_no_header_for_a_model_with_impossible_numbers(void **state)
{
    (void)state;
    struct spa_feature_file *f = open_file();
    spa_Welcome other = model;
    other.n_layers = 0;
    assert_int_equal(spa_feature_file_start(f, &other, &plugin, basis, WHY), -1);
    assert_says("no feature file takes");
    spa_feature_file_close(f);
}

static void test_feature_file_gives_the_keys_of_its_rows_in_their_order(void **state)
{
    (void)state;
    struct spa_feature_file *f = start_file();
    struct spa_feature_key *found = NULL;
    const struct spa_feature_record refused = { .kind = SPA_FEATURE_ROW, .key = keys[7], .refused = spa_Code_CONTEXT_FULL, .limit = 64 };
    for (uint32_t i = 6; i-- > 0;)
        good(add_row(f, i));
    good(spa_feature_file_add(f, &refused, NULL, WHY));
    assert_int_equal(spa_feature_file_keys(f, SPA_FEATURE_ROW, &found), 6);
    for (uint32_t i = 0; i < 6; i++) {
        bool there = false;
        for (uint32_t k = 0; k < 6; k++)
            there |= memcmp(&found[k], &keys[i], sizeof *keys) == 0;
        assert_true(there);
        assert_true(i == 0 || memcmp(&found[i - 1], &found[i], sizeof *keys) < 0);
    }
    free(found);
    assert_int_equal(spa_feature_file_keys(f, SPA_FEATURE_ANCHOR, &found), 0);
    free(found);
    spa_feature_file_close(f);
}

/* Right sums around wrong content, as only somebody else's program would write it. */
static void test_feature_file_well_summed_nonsense_is_refused(void **state)
{
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        uint8_t bulk[BULK_MAX];
        struct spa_feature_record r = record_of(2, bulk);
        const uint32_t large = 100;
        if (kind == 0)
            memcpy(bulk + 4 * r.head.n_loss, &large, 4);   /* a token that is none */
        if (kind == 1)
            memcpy(bulk, &large, 4);                       /* a position beyond the row */
        if (kind == 2)
            r.bulk_len -= 1;
        if (kind == 3)
            r.refused = spa_Code_BAD_REQUEST;              /* refused, and yet with features */
        struct spa_feature_file *f = start_file();
        good(spa_feature_file_add(f, &r, bulk, WHY));
        good(spa_feature_file_finish(f, WHY));
        spa_feature_file_close(f);
        f = open_file();
        assert_int_equal(spa_feature_file_check(f, NULL, NULL, WHY), -1);
        assert_says("damaged");
        spa_feature_file_close(f);
    }
}

/* ---- drafts ---- */

static void test_feature_file_answers_to_near_questions_are_the_first_drafts(void **state)
{
    (void)state;
    enum { N = 4, WIDTH = 12 };
    float x[N][WIDTH];
    const uint32_t n_row = (uint32_t)spa_wire_row_bytes(&wire.shape, SPA_I8);
    struct spa_feature_file *f = start_file();
    for (uint32_t i = 0; i < N; i++) {   /* rows 2, 5, 8, 11: three words each, and 2 beside 5 */
        uint8_t bulk[BULK_MAX];
        const struct spa_feature_record r = record_of(3 * i + 2, bulk);
        for (uint32_t k = 0; k < WIDTH; k++)
            x[i][k] = (k == i ? 4.0f : 0.5f) + (i == 1 && k == 0 ? 2.0f : 0.0f);
        spa_dtype_pack(SPA_I8, x[i], 3, 4, bulk + r.bulk_len - 3 * 16 - 3 * n_row);
        good(spa_feature_file_add(f, &r, bulk, WHY));
    }
    good(spa_feature_file_finish(f, WHY));
    spa_feature_file_close(f);
    struct spa_plugin p = { .shape = wire.shape, .tap_dtype = SPA_I8 };
    memcpy(p.basis_hash, plugin.basis_hash.bytes, SPA_HASH_BYTES);
    struct spa_drafts *d = spa_drafts_new(256);
    assert_int_equal(spa_drafts_add_features(d, path, &p), N);

    struct spa_drafts_near near = spa_drafts_near(d, &wire.shape, x[1]);
    int32_t out[32];
    assert_int_equal(near.n, SPA_DRAFTS_NEAR);
    assert_int_equal(spa_drafts_look(d, &near, NULL, 0, out, 32), 27);
    assert_memory_equal(out, ((const int32_t[]){ 35, 36, 37, -1, 14, 15, 16, -1 }), 8 * sizeof *out);
    assert_true(spa_drafts_look(d, &near, (const int32_t[]){ 14 }, 1, out, 32) >= 2);
    assert_memory_equal(out, ((const int32_t[]){ 15, 16 }), 2 * sizeof *out);   /* the answer went another way than the nearest */
    near = spa_drafts_near(d, &wire.shape, x[3]);
    spa_drafts_look(d, &near, NULL, 0, out, 32);
    assert_int_equal(out[0], 77);
    spa_drafts_free(d);

    p.basis_hash[0] ^= 1;   /* other coordinates */
    d = spa_drafts_new(256);
    assert_int_equal(spa_drafts_add_features(d, path, &p), N);
    assert_int_equal(spa_drafts_near(d, &wire.shape, x[1]).n, 0);
    spa_drafts_free(d);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, folder_remove)
    const struct CMUnitTest tests[] = {
        TEST(test_feature_file_comes_again_as_it_was_written),
        TEST(test_feature_file_cut_anywhere_is_refused),
        TEST(test_feature_file_unfinished_and_cut_anywhere_goes_on),
        TEST(test_feature_file_with_any_byte_flipped_is_refused),
        TEST(test_feature_file_is_its_owners_whoever_made_its_beginning),
        TEST(test_feature_file_of_another_kind_says_which),
        TEST(test_feature_file_new_rows_are_added_and_the_old_stay),
        TEST(test_feature_file_newer_record_of_a_key_is_the_one_found),
        TEST(test_feature_file_of_other_rows_is_not_gone_on_from),
        TEST(test_feature_file_unfinished_one_of_foreign_rows_is_not_gone_on_from),
        TEST(test_feature_file_killed_run_is_taken_over),
        TEST(test_feature_file_full_disk_leaves_the_old_file_and_what_came),
        TEST(test_feature_file_belongs_to_one_run_at_a_time),
        TEST(test_feature_file_is_forgotten_on_request),
        TEST(test_feature_file_without_a_name_leaves_nothing),
        TEST(test_feature_file_place_that_takes_none_is_said),
        TEST(test_feature_file_whose_name_is_taken_meanwhile_stays_where_it_is),
        TEST(test_feature_file_has_no_header_for_a_model_with_impossible_numbers),
        TEST(test_feature_file_gives_the_keys_of_its_rows_in_their_order),
        TEST(test_feature_file_well_summed_nonsense_is_refused),
        TEST(test_feature_file_answers_to_near_questions_are_the_first_drafts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
