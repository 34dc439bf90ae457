/* test_isolation.c - many users at once with a secret each in their prompts, on slots that are used again and again: everybody gets what they get
 * alone, nobody a word of somebody else's, and the log none of anybody's. The model (cell_model.h) says what lies in its memory, so a cell
 * that is left behind shows; the last test leaves some behind.
 *
 * SPA_REUSES: how often slots are used again (600); SPA_SEED: of the prompts (1). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cell_model.h"
#include "fake_cloud.h"
#include "sample.h"

enum { USERS = 32, ANSWER = 28, TEXT = ANSWER + 1, PROMPT = 96, MARK = 16 };
/* What a user does: no plugin, and so repeats; asks a plugin; asks one that looks back; goes on from the question before; draws at random. */
enum manner { PLAIN, ASKS, LOOKS_BACK, GOES_ON, DRAWS, MANNERS };

static unsigned long reuses = 600;
static unsigned questions;
static uint64_t seed = 1;

struct user {
    const char *url;
    uint32_t number;
    char (*answers)[TEXT];
    char why[512];
    int rc;
};

static enum manner manner_of(uint32_t user) { return (enum manner)(user % MANNERS); }

/* "<user.question:" and letters of its own: MARK bytes that nobody else's prompt holds. */
static void mark_of(uint32_t user, uint32_t question, char mark[MARK + 1])
{
    const uint64_t letters = spa_noise64(seed, user, question);
    snprintf(mark, MARK + 1, "<%02u.%04u:", user, question);
    for (size_t i = strlen(mark); i < MARK - 1; i++)
        mark[i] = (char)('a' + (letters >> 5 * (i % 12)) % 26);
    mark[MARK - 1] = '>';
    mark[MARK] = '\0';
}

/* What the log says, of whatever length: its lines, and how many of them hold a word of a user's prompts. */
static struct {
    pthread_mutex_t lock;
    unsigned long lines, filler, of_user[USERS];
} logged = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void look_at_line(void *user, enum spa_log_level level, const char *line)
{
    (void)user, (void)level;
    pthread_mutex_lock(&logged.lock);
    logged.lines++;
    logged.filler += strstr(line, "once upon") != NULL;
    for (const char *at = strchr(line, '<'); at; at = strchr(at + 1, '<')) {
        unsigned whose, question;
        if (sscanf(at, "<%2u.%4u:", &whose, &question) == 2 && whose < USERS)   /* a mark, or what is left of one that was cut off */
            logged.of_user[whose]++;
    }
    pthread_mutex_unlock(&logged.lock);
}

static unsigned users_in_log(void)
{
    unsigned n = 0;
    for (uint32_t i = 0; i < USERS; i++)
        n += logged.of_user[i] > 0;
    return n;
}

static void log_begin(void)
{
    logged.lines = logged.filler = 0;
    memset(logged.of_user, 0, sizeof logged.of_user);
}

/* Ends with the mark and fills CELL_ECHO with it and what stands before: an answer that repeats it says it whole. */
static void prompt_of(uint32_t user, uint32_t question, char prompt[PROMPT])
{
    static const char filler[] = "once upon a time there was a river and on it a boat";
    char mark[MARK + 1];
    mark_of(user, question, mark);
    const int n = manner_of(user) == GOES_ON ? 40 : (int)(spa_noise64(seed, 77, user + 1000 * (uint64_t)question) % 50);
    snprintf(prompt, PROMPT, "%.*s %02u/%04u %s", n, filler, user, question % 10000, mark);
}

static int one_question(struct user *u, struct spa_talk *t, uint32_t q, uint32_t *id)
{
    char prompt[PROMPT];
    prompt_of(u->number, q, prompt);
    const struct spa_part part = { .kind = SPA_PART_TEXT, .bytes = (const uint8_t *)prompt, .len = (uint32_t)strlen(prompt) };
    struct spa_talk_request r = { .parts = &part, .n_parts = 1 };
    const enum manner m = manner_of(u->number);
    spa_talk_defaults(&r.settings);
    r.settings.temp = m == DRAWS ? 1.0f : 0.0f;
    r.settings.seed = 5 + q;
    r.settings.n_predict = ANSWER;
    r.settings.raw = true;
    r.settings.repeat_penalty = 1;
    r.settings.gate = m == PLAIN || m == GOES_ON ? spa_GateMode_GATE_NEVER : spa_GateMode_GATE_ALWAYS;
    r.settings.after = m == GOES_ON ? *id : 0;
    if (spa_talk_ask(t, &r, id, u->why, sizeof u->why) != 1)
        return -1;
    for (size_t len = 0;;) {
        struct spa_talk_event ev;
        const int got = spa_talk_wait(t, 60000, &ev, u->why, sizeof u->why);
        if (got != 1 || ev.type == SPA_TALK_ERROR)
            return -1;
        if (ev.type == SPA_TALK_DONE)
            return 0;
        if (ev.type != SPA_TALK_TOKENS)
            continue;
        if (len + ev.text_len >= TEXT)
            return -1;
        memcpy(u->answers[q] + len, ev.text, ev.text_len);
        len += ev.text_len;
        u->answers[q][len] = '\0';
    }
}

static void *user_run(void *arg)
{
    struct user *u = arg;
    struct spa_plugin_file f;
    struct spa_link *l = NULL;
    struct spa_talk *t = NULL;
    const enum manner m = manner_of(u->number);
    const bool has_plugin = m != PLAIN && m != GOES_ON;
    uint32_t id = 0;
    plugin_make(&f, 2 * u->number + (m == LOOKS_BACK));
    u->rc = link_open(&l, u->url, has_plugin ? &f : NULL, NULL, u->why, sizeof u->why);
    if (u->rc == 0)
        u->rc = spa_talk_new(&t, l, has_plugin ? &f : NULL, u->why, sizeof u->why);
    for (uint32_t q = 0; u->rc == 0 && q < questions; q++)
        u->rc = one_question(u, t, q, &id);
    spa_talk_free(t);
    spa_link_close(l);
    spa_plugin_file_free(&f);
    return NULL;
}

static void user_begin(struct user *u, const struct cloud *c, uint32_t number)
{
    *u = (struct user){ .url = c->url, .number = number, .answers = calloc(questions, sizeof *u->answers) };
    assert_non_null(u->answers);
}

static void run_alone(struct user users[USERS])
{
    struct cloud c;
    cloud_start_how(&c, (struct cloud_how){ .alter = cell_model_take_over });
    for (uint32_t i = 0; i < USERS; i++) {
        user_begin(&users[i], &c, i);
        user_run(&users[i]);
        if (users[i].rc != 0)
            fail_msg("user %u alone: %s", i, users[i].why);
    }
    cloud_stop(&c);
}

static struct cell_counts run_together(struct user users[USERS])
{
    struct cloud c;
    pthread_t threads[USERS];
    cloud_start_how(&c, (struct cloud_how){ .alter = cell_model_take_over, .log = look_at_line, .run_ahead = 4, .always = true });
    for (uint32_t i = 0; i < USERS; i++) {
        user_begin(&users[i], &c, i);
        assert_int_equal(pthread_create(&threads[i], NULL, user_run, &users[i]), 0);
    }
    for (uint32_t i = 0; i < USERS; i++)
        pthread_join(threads[i], NULL);
    for (uint32_t i = 0; i < USERS; i++)
        if (users[i].rc != 0)
            fail_msg("user %u: %s", i, users[i].why);
    cloud_stop(&c);
    return cell_model_counts();
}

static void users_end(struct user users[USERS])
{
    for (uint32_t i = 0; i < USERS; i++)
        free(users[i].answers);
}

static unsigned different(const struct user *a, const struct user *b)
{
    unsigned n = 0;
    for (uint32_t i = 0; i < USERS; i++)
        for (uint32_t q = 0; q < questions; q++)
            n += strcmp(a[i].answers[q], b[i].answers[q]) != 0;
    return n;
}

/* Answers that hold somebody else's mark, and, in *own, those that hold all of their own. A mark tells whose it is. */
static unsigned foreign(const struct user *users, unsigned *own)
{
    unsigned n = 0;
    *own = 0;
    for (uint32_t i = 0; i < USERS; i++)
        for (uint32_t q = 0; q < questions; q++) {
            char mine[MARK + 1];
            mark_of(i, q, mine);
            *own += strstr(users[i].answers[q], mine) != NULL;
            for (const char *at = strchr(users[i].answers[q], '<'); at; at = strchr(at + 1, '<')) {
                unsigned user, question;
                char found[MARK + 1];
                if (sscanf(at, "<%2u.%4u:", &user, &question) != 2)
                    continue;
                mark_of(user, question, found);
                n += (user != i || question != q) && strncmp(at, found, strlen(at) < MARK ? strlen(at) : MARK) == 0;
            }
        }
    return n;
}

static struct user solo[USERS], all[USERS];

static void test_isolation_users_at_once_get_what_they_get_alone_and_no_word_of_others(void **state)
{
    (void)state;
    unsigned own;
    log_begin();
    cell_model_leak(0);
    run_alone(solo);
    const struct cell_counts counts = run_together(all);
    const unsigned others = foreign(all, &own);
    print_message("isolation: seed %llu, %u users at once, %lu slots used again (of %lu that were to be), %lu cells left behind, %u answers unlike those alone, "
                  "%u with a word of somebody else's, %u users in %lu lines of the log\n",
                  (unsigned long long)seed, USERS, counts.begun, reuses, counts.residual, different(solo, all), others, users_in_log(), logged.lines);
    assert_int_equal(counts.residual, 0);
    assert_true(counts.begun >= reuses);
    assert_int_equal(different(solo, all), 0);
    assert_int_equal(others, 0);
    /* The search would find it: those who repeat say their own. */
    unsigned plain = 0;
    for (uint32_t i = 0; i < USERS; i++)
        plain += manner_of(i) == PLAIN || manner_of(i) == GOES_ON;
    assert_true(own >= plain * questions);
    assert_true(logged.lines >= USERS);
    assert_int_equal(users_in_log(), 0);
    assert_int_equal(logged.filler, 0);
    users_end(solo);
    users_end(all);
}

/* The search finds a mark of each user, behind however much of other things. */
static void test_isolation_planted_line_is_found_in_the_log(void **state)
{
    (void)state;
    char line[512], prompt[PROMPT];
    log_begin();
    for (uint32_t i = 0; i < USERS; i++) {
        for (unsigned k = 0; k < 1000; k++)
            look_at_line(NULL, SPA_LOG_INFO, "a line of a log with a < in it, <1 ms, <99.0001: and none of anybody's words");
        assert_int_equal(users_in_log(), i);
        prompt_of(i, 9 * i, prompt);
        snprintf(line, sizeof line, "connection %u: request %.*s", i, (int)strlen(prompt) - 5, prompt);
        look_at_line(NULL, SPA_LOG_INFO, line);
        assert_int_equal(logged.of_user[i], 1);
    }
    assert_int_equal(users_in_log(), USERS);
    assert_true(logged.filler > 0);
}

static void test_isolation_planted_leak_is_found(void **state)
{
    (void)state;
    unsigned own;
    const unsigned kept = questions;
    questions = questions < 20 ? questions : 20;
    cell_model_leak(0);
    run_alone(solo);
    cell_model_leak(7);
    const struct cell_counts counts = run_together(all);
    cell_model_leak(0);
    assert_true(counts.residual > 0);
    assert_true(different(solo, all) > 0);
    assert_true(foreign(all, &own) > 0);
    users_end(solo);
    users_end(all);
    questions = kept;
}

int main(void)
{
    const char *asked = getenv("SPA_REUSES"), *chosen = getenv("SPA_SEED");
    seed = chosen ? strtoull(chosen, NULL, 10) : seed;
    reuses = asked ? strtoul(asked, NULL, 10) : reuses;
    unsigned sure = 0;   /* who goes on may find their slot as they left it, and does not use it again */
    for (uint32_t i = 0; i < USERS; i++)
        sure += manner_of(i) != GOES_ON;
    questions = (unsigned)((reuses + FAKE_SLOTS + sure - 1) / sure);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_isolation_users_at_once_get_what_they_get_alone_and_no_word_of_others),
        cmocka_unit_test(test_isolation_planted_line_is_found_in_the_log),
        cmocka_unit_test(test_isolation_planted_leak_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
