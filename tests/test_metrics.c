/* test_metrics.c - the cloud's counters: the page itself, and what a whole cloud with the fake model writes on it after known answers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "fake_cloud.h"
#include "metrics.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ANSWER = 24, PAGE = 1 << 16 };

/* One GET; the status, and the body in page. */
static int get(int port, const char *path, char page[PAGE])
{
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    char request[256];
    size_t len = 0;
    ssize_t got;
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    const int n = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n", path);
    assert_int_equal(write(fd, request, (size_t)n), n);
    while ((got = read(fd, page + len, PAGE - 1 - len)) > 0)
        len += (size_t)got;
    close(fd);
    page[len] = '\0';
    int status = 0;
    assert_int_equal(sscanf(page, "HTTP/1.1 %d", &status), 1);
    char *body = strstr(page, "\r\n\r\n");
    assert_non_null(body);
    memmove(page, body + 4, strlen(body + 4) + 1);
    return status;
}

/* The number behind a series' name and labels. */
static double value(const char *page, const char *series)
{
    const size_t len = strlen(series);
    for (const char *line = page; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
        if (strncmp(line, series, len) == 0 && line[len] == ' ')
            return strtod(line + len, NULL);
    fail_msg("no series %s on the page:\n%s", series, page);
    return 0;
}

static void assert_value(const char *page, const char *series, double wanted)
{
    if (value(page, series) != wanted)
        fail_msg("%s is %g and should be %g", series, value(page, series), wanted);
}

static void test_metrics_histograms_are_cumulative_and_bounds_belong_to_their_bucket(void **state)
{
    (void)state;
    struct spa_metrics m = { 0 };
    const struct spa_metrics_sockets s = { 0 };
    const struct spa_metrics_fixed f = { .version = "1", .model = "m" };
    size_t len;
    for (uint64_t ms = 0; ms <= 2; ms++)
        spa_metrics_answer(&m, ms);
    spa_metrics_answer(&m, 10000);
    spa_metrics_answer(&m, 10001);
    spa_metrics_batch(&m, 512);
    spa_metrics_batch(&m, 513);
    char *page = spa_metrics_text(&m, &s, &f, &len);
    assert_non_null(page);
    assert_int_equal(strlen(page), len);
    assert_value(page, "spa_answer_seconds_bucket{le=\"0.001\"}", 2);
    assert_value(page, "spa_answer_seconds_bucket{le=\"0.002\"}", 3);
    assert_value(page, "spa_answer_seconds_bucket{le=\"2.5\"}", 3);
    assert_value(page, "spa_answer_seconds_bucket{le=\"10\"}", 4);
    assert_value(page, "spa_answer_seconds_bucket{le=\"+Inf\"}", 5);
    assert_value(page, "spa_answer_seconds_count", 5);
    assert_true(value(page, "spa_answer_seconds_sum") > 20.0039 && value(page, "spa_answer_seconds_sum") < 20.0041);
    assert_value(page, "spa_batch_tokens_bucket{le=\"256\"}", 0);
    assert_value(page, "spa_batch_tokens_bucket{le=\"512\"}", 1);
    assert_value(page, "spa_batch_tokens_bucket{le=\"+Inf\"}", 2);
    assert_value(page, "spa_batch_tokens_sum", 1025);
    free(page);
}

static void test_metrics_any_model_name_makes_one_label(void **state)
{
    (void)state;
    const struct { const char *name, *label; } cases[] = {
        { "plain", "plain" }, { "a\"b\\c", "a\\\"b\\\\c" }, { "two\nlines", "two?lines" }, { "gr\xc3\xbcn", "gr\xc3\xbcn" }, { "bad\xff", "bad?" },
    };
    const struct spa_metrics m = { 0 };
    const struct spa_metrics_sockets s = { 0 };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct spa_metrics_fixed f = { .version = "1", .model = cases[i].name };
        char line[128];
        size_t len;
        char *page = spa_metrics_text(&m, &s, &f, &len);
        snprintf(line, sizeof line, "\nspa_build_info{version=\"1\",model=\"%s\"} 1\n", cases[i].label);
        if (!strstr(page, line))
            fail_msg("no line %s in:\n%s", line, page);
        free(page);
    }
}

/* Asks with every token from the plugin, or none; *st: what the device counted. */
static void ask(const struct cloud *c, bool plugin, struct spa_talk_stats *st, struct spa_link_bytes *bytes)
{
    struct spa_plugin_file f;
    struct spa_link *l = NULL;
    struct spa_talk *t = NULL;
    char why[512] = "";
    uint32_t request;
    plugin_make(&f, 1);
    if (link_open(&l, c->url, plugin ? &f : NULL, NULL, why, sizeof why) != 0 || spa_talk_new(&t, l, plugin ? &f : NULL, why, sizeof why) != 0)
        fail_msg("%s", why);
    const struct spa_part part = { .kind = SPA_PART_USER, .bytes = (const uint8_t *)"a question", .len = 10 };
    struct spa_talk_request r = { .parts = &part, .n_parts = 1 };
    spa_talk_defaults(&r.settings);
    r.settings.temp = 0;
    r.settings.gate = plugin ? spa_GateMode_GATE_ALWAYS : spa_GateMode_GATE_NEVER;
    r.settings.n_predict = ANSWER;
    r.settings.ignore_eos = true;
    assert_int_equal(spa_talk_ask(t, &r, &request, why, sizeof why), 1);
    struct spa_talk_event ev = { .type = SPA_TALK_TOKENS };
    while (ev.type == SPA_TALK_TOKENS)
        if (spa_talk_wait(t, 30000, &ev, why, sizeof why) != 1)
            fail_msg("%s", why);
    if (ev.type != SPA_TALK_DONE)
        fail_msg("%.*s", (int)ev.text_len, ev.text);
    *st = *spa_talk_stats(t, request);
    *bytes = spa_link_bytes(l);
    spa_talk_free(t);
    spa_link_close(l);
    spa_plugin_file_free(&f);
}

static void test_metrics_say_what_devices_saw(void **state)
{
    (void)state;
    for (uint32_t ahead = 0; ahead <= 8; ahead += 8) {
        static char page[PAGE];
        struct cloud c;
        struct spa_talk_stats mine, base;
        struct spa_link_bytes mine_bytes, base_bytes;
        cloud_start_how(&c, (struct cloud_how){ .run_ahead = ahead, .always = true });
        ask(&c, true, &mine, &mine_bytes);
        ask(&c, false, &base, &base_bytes);
        assert_int_equal(get(spa_serve_port(c.serve), "/metrics", page), 200);
        assert_value(page, "spa_tokens_total{speaker=\"plugin\"}", ANSWER);
        assert_value(page, "spa_tokens_total{speaker=\"base\"}", ANSWER);
        assert_value(page, "spa_gated_tokens_total", mine.gated);
        assert_value(page, "spa_prompt_tokens_total{how=\"decoded\"}", mine.prompt_tokens + base.prompt_tokens);
        assert_value(page, "spa_requests_total{end=\"length\"}", 2);
        assert_value(page, "spa_slots", FAKE_SLOTS);
        assert_value(page, "spa_slots_busy", 0);
        assert_value(page, "spa_connections_opened_total", 2);
        assert_value(page, "spa_received_bytes_total", (double)(mine_bytes.up + base_bytes.up));
        assert_value(page, "spa_sent_bytes_total", (double)(mine_bytes.down + base_bytes.down));
        assert_value(page, "spa_guesses_total{source=\"base\",outcome=\"right\"}", mine.right_base);
        assert_value(page, "spa_guesses_total{source=\"base\",outcome=\"wrong\"}", mine.guessed_base - mine.right_base);
        assert_value(page, "spa_guesses_total{source=\"text\",outcome=\"right\"}", mine.right_text);
        assert_true(value(page, "spa_answer_seconds_count") >= ANSWER);
        assert_true(value(page, "spa_batch_tokens_sum") >= mine.prompt_tokens + base.prompt_tokens + 2 * ANSWER - 2);
        if (ahead)
            assert_true(mine.guessed_base > 0);
        else
            assert_value(page, "spa_answer_seconds_count", ANSWER);
        cloud_stop(&c);
    }
}

static void wait_for_health(int port, int wanted, const char *words)
{
    static char page[PAGE];
    int status = 0;
    for (int i = 0; i < 2000 && status != wanted; i++) {
        status = get(port, "/health", page);
        usleep(5000);
    }
    assert_int_equal(status, wanted);
    if (!strstr(page, words))
        fail_msg("no '%s' in %s", words, page);
}

static void test_metrics_health_sees_a_decode_thread_that_stands_still(void **state)
{
    (void)state;
    struct cloud c;
    struct spa_link *l = NULL;
    char why[512];
    cloud_start_how(&c, (struct cloud_how){ .stall_ms = 100 });
    const int port = spa_serve_port(c.serve);
    if (link_open(&l, c.url, NULL, NULL, why, sizeof why) != 0)
        fail_msg("%s", why);
    usleep(300000);   /* asleep for longer than that is no fault */
    wait_for_health(port, 200, "ok");
    fake_model_hold(&c.model, true);
    struct spa_talk *t;
    uint32_t request;
    assert_int_equal(spa_talk_new(&t, l, NULL, why, sizeof why), 0);
    const struct spa_part part = { .kind = SPA_PART_TEXT, .bytes = (const uint8_t *)"text", .len = 4 };
    struct spa_talk_request r = { .parts = &part, .n_parts = 1 };
    spa_talk_defaults(&r.settings);
    r.settings.raw = true;
    r.settings.gate = spa_GateMode_GATE_NEVER;
    r.settings.n_predict = 1;
    assert_int_equal(spa_talk_ask(t, &r, &request, why, sizeof why), 1);
    struct spa_talk_event ev;
    assert_int_equal(spa_talk_wait(t, 200, &ev, why, sizeof why), 0);   /* sends it */
    wait_for_health(port, 503, "stands still");
    fake_model_hold(&c.model, false);
    wait_for_health(port, 200, "ok");
    spa_talk_free(t);
    spa_link_close(l);
    cloud_stop(&c);
}

/* The sockets' own limit comes first; this one is left for a decode thread that has not yet heard of the end of others. */
static void test_metrics_a_decode_thread_without_room_says_try_again_later(void **state)
{
    (void)state;
    static char page[PAGE];
    struct cloud c;
    struct spa_link *one = NULL, *two = NULL;
    char why[512] = "";
    cloud_start_how(&c, (struct cloud_how){ .max_connections = 1 });
    assert_int_equal(link_open(&one, c.url, NULL, NULL, why, sizeof why), 0);
    assert_int_equal(link_open(&two, c.url, NULL, NULL, why, sizeof why), -1);
    if (!strstr(why, "no room"))
        fail_msg("%s", why);
    assert_int_equal(get(spa_serve_port(c.serve), "/metrics", page), 200);
    assert_value(page, "spa_connections_refused_total{why=\"full\"}", 1);
    spa_link_close(one);
    cloud_stop(&c);
}

static void test_metrics_health_without_a_decode_thread_is_503(void **state)
{
    (void)state;
    char why[512];
    const struct spa_serve_config sc = { .host = "127.0.0.1", .port = 0, .model_name = "none", .max_message = 1 << 20 };
    struct spa_serve *s = spa_serve_new(&sc, why, sizeof why);
    struct spa_mail *mail = spa_mail_new(spa_serve_room(), 1 << 20, spa_serve_wake, s);
    assert_int_equal(spa_serve_start(s, mail, why, sizeof why), 0);
    wait_for_health(spa_serve_port(s), 503, "does not run");
    spa_mail_decodes(mail, true);
    wait_for_health(spa_serve_port(s), 200, "ok");
    spa_mail_decodes(mail, false);
    wait_for_health(spa_serve_port(s), 503, "does not run");
    spa_serve_stop(s, 0);
    spa_serve_free(s);
    spa_mail_free(mail);
}

/* While the decode thread stands still for ever, as it does when a worker of the model is lost. */
static void test_metrics_health_of_a_model_that_cannot_go_on_is_503_and_devices_are_told(void **state)
{
    (void)state;
    struct cloud c;
    struct spa_link *l = NULL, *late = NULL;
    char why[512];
    cloud_start(&c);
    const int port = spa_serve_port(c.serve);
    if (link_open(&l, c.url, NULL, NULL, why, sizeof why) != 0)
        fail_msg("%s", why);
    fake_model_hold(&c.model, true);
    spa_serve_fail(c.serve, "a worker is lost");
    struct spa_session_event ev;
    assert_int_equal(spa_link_wait(l, 20000, &ev, why, sizeof why), -1);   /* try again, elsewhere */
    if (!strstr(why, "another cloud"))
        fail_msg("%s", why);
    assert_int_equal(link_open(&late, c.url, NULL, NULL, why, sizeof why), -1);
    if (!strstr(why, "no more connections now"))
        fail_msg("%s", why);
    wait_for_health(port, 503, "a worker is lost");
    fake_model_hold(&c.model, false);
    spa_link_close(l);
    cloud_stop(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_metrics_histograms_are_cumulative_and_bounds_belong_to_their_bucket),
        cmocka_unit_test(test_metrics_any_model_name_makes_one_label),
        cmocka_unit_test(test_metrics_say_what_devices_saw),
        cmocka_unit_test(test_metrics_health_sees_a_decode_thread_that_stands_still),
        cmocka_unit_test(test_metrics_a_decode_thread_without_room_says_try_again_later),
        cmocka_unit_test(test_metrics_health_without_a_decode_thread_is_503),
        cmocka_unit_test(test_metrics_health_of_a_model_that_cannot_go_on_is_503_and_devices_are_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
