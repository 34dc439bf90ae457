/* serve.c - `spa serve`: an OpenAI-compatible server on this machine, in front of the cloud, with plugins as its models (serve/http.h). */
#define _DEFAULT_SOURCE
#include "answer.h"
#include "commands.h"
#include "http.h"
#include "listen.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { WHY_MAX = 1024, MESSAGE_BYTES = 1024 * 1024, DRAIN_MS = 30000, OWN_OPTIONS = 16 };

struct serve {
    struct spa_connect connect;
    struct spa_opt_list plugins, names;
    const char *host, *client_key_file, *ssl_key_file, *ssl_cert_file;
    int32_t max_connections, max_head, max_body, request_s;
    int32_t port, ping_s, parallel, retry_s, drafts;   /* drafts: 0 on, 1 off */
    bool force;
};

static struct spa_http *running;   /* for the signal handler */

static void on_signal(int number)
{
    if (number == SIGHUP)
        spa_http_reload(running);
    else
        spa_http_stop(running);
}

static int complain(const char *sentence)
{
    spa_answer_complain("spa serve", sentence);
    return SPA_EXIT_FAILED;
}

static void log_line(const char *sentence)
{
    spa_answer_complain("spa serve", sentence);
}

static int open_link(void *user, struct spa_clouds *clouds, const struct spa_plugin_file *plugin, struct spa_link **out, char *why, size_t why_len)
{
    return spa_connect_again(user, clouds, plugin, 0, MESSAGE_BYTES, out, why, why_len);
}

static int check(const struct serve *s)
{
    char why[WHY_MAX];
    const struct spa_listen listen = { s->host, s->client_key_file, "--client-key-file", s->ssl_key_file, s->ssl_cert_file, NULL, s->force };
    return spa_listen_check(&listen, why, sizeof why) == 0 ? 0 : complain(why);
}

static int open_models(const struct serve *s, struct spa_models *m, char *why, size_t why_len)
{
    for (size_t i = 0; i < s->plugins.n; i++)
        if (spa_models_add(m, s->plugins.at[i], why, why_len) != 0)
            return -1;
    return spa_models_open(m, why, why_len);
}

static void say_ready(const struct serve *s, const struct spa_http *h, const struct spa_models *m)
{
    char line[WHY_MAX];
    bool is_base, v6 = strchr(s->host, ':') != NULL;
    const char *name;
    int n = snprintf(line, sizeof line, "%s://%s%s%s:%d serves", s->ssl_key_file ? "https" : "http", v6 ? "[" : "", s->host, v6 ? "]" : "",
                     spa_http_port(h));
    for (size_t i = 0; (name = spa_models_name(m, i, &is_base)) != NULL && n > 0 && (size_t)n < sizeof line; i++)
        n += snprintf(line + n, sizeof line - (size_t)n, "%s %s", i ? "," : "", name);
    spa_answer_complain("spa serve", line);
}

static void look_at_keys(const struct serve *s, const struct spa_http *h)
{
    char line[WHY_MAX];
    if (spa_http_plain_keys(h)) {
        snprintf(line, sizeof line, "%.400s holds keys in plain text: 'spa-cloud key' makes keys of which only the hash stands there%s", s->client_key_file,
                 spa_secret_is_open(s->client_key_file) ? "; and others can read the file: chmod 600" : "");
        spa_answer_complain("spa serve", line);
    }
    if (s->ssl_key_file && spa_secret_is_open(s->ssl_key_file)) {
        snprintf(line, sizeof line, "%.400s: others can read this private key: chmod 600", s->ssl_key_file);
        spa_answer_complain("spa serve", line);
    }
}

static int serve(struct serve *s)
{
    char why[WHY_MAX];
    const struct spa_http_config http = {
        .host = s->host, .port = s->port, .cert_file = s->ssl_cert_file, .key_file = s->ssl_key_file, .client_key_file = s->client_key_file,
        .names = s->names.at, .n_names = s->names.n, .ping_s = (uint32_t)s->ping_s, .max_jobs = (uint32_t)s->parallel,
        .max_connections = (uint32_t)s->max_connections, .max_head = (uint32_t)s->max_head, .max_body = (uint32_t)s->max_body, .request_s = (uint32_t)s->request_s, .log = log_line,
    };
    struct spa_http *h = spa_http_new(&http, why, sizeof why);
    if (!h)
        return complain(why);
    const struct spa_models_config models = {
        .line = { .connect = open_link, .connect_user = &s->connect, .wake = spa_http_wake, .wake_user = h, .drafts = s->drafts == 0,
                  .retry_ms = (uint32_t)s->retry_s * 1000 },
        .log = log_line,
    };
    int rc = 0;
    struct spa_models *m = spa_models_new(&models);
    if (!m) {
        rc = complain("there is not enough memory for the models");
    } else if (open_models(s, m, why, sizeof why) != 0) {
        rc = complain(why);
    } else {
        struct sigaction act = { .sa_handler = on_signal };
        sigemptyset(&act.sa_mask);
        running = h;
        sigaction(SIGINT, &act, NULL);
        sigaction(SIGTERM, &act, NULL);
        if (s->client_key_file)   /* without one it means, as ever, that the terminal is gone */
            sigaction(SIGHUP, &act, NULL);
        say_ready(s, h, m);
        look_at_keys(s, h);
        spa_http_run(h, m, DRAIN_MS);
        signal(SIGINT, SIG_DFL);
        signal(SIGTERM, SIG_DFL);
        signal(SIGHUP, SIG_DFL);
    }
    spa_models_free(m);
    spa_http_free(h);
    return rc;
}

int spa_cmd_serve(int argc, char **argv)
{
    struct serve s = { .host = "127.0.0.1", .port = 8081, .max_connections = 256, .max_head = 16384, .max_body = 4 << 20, .request_s = 20, .ping_s = 15, .parallel = 64, .retry_s = SPA_RETRY_DEFAULT_S };
    struct spa_option options[OWN_OPTIONS + SPA_CONNECT_OPTIONS] = {
        { "plugin", NULL, "[NAME=]FILE", "your plugin, a model of that name; say it again for more", SPA_OPT_LIST, &s.plugins, 0, 0 },
        { "host", NULL, "ADDRESS", "address to listen on (127.0.0.1)", SPA_OPT_STRING, &s.host, 0, 0 },
        { "port", NULL, "N", "port to listen on, 0 for any free one (8081)", SPA_OPT_INT, &s.port, 0, 65535 },
        { "client-key-file", NULL, "FILE", "keys that local clients must show, or their hashes, one a line; SIGHUP reads it again", SPA_OPT_STRING, &s.client_key_file, 0, 0 },
        { "ssl-key-file", NULL, "FILE", "TLS: private key, PEM", SPA_OPT_STRING, &s.ssl_key_file, 0, 0 },
        { "ssl-cert-file", NULL, "FILE", "TLS: certificate chain, PEM", SPA_OPT_STRING, &s.ssl_cert_file, 0, 0 },
        { "allow-host", NULL, "NAME", "a name of this machine that clients may use, beside addresses and localhost", SPA_OPT_LIST, &s.names, 0, 0 },
        { "parallel", "np", "N", "answers under way or waiting, at most (64)", SPA_OPT_INT, &s.parallel, 1, 1024 },
        { "max-connections", NULL, "N", "connections of local clients (256)", SPA_OPT_INT, &s.max_connections, 1, 65536 },
        { "max-head", NULL, "BYTES", "of a request's head (16384)", SPA_OPT_INT, &s.max_head, 1024, 65535 },
        { "max-body", NULL, "BYTES", "of a request (4194304)", SPA_OPT_INT, &s.max_body, 1024, 64 << 20 },
        { "request-s", NULL, "S", "time for a request to come (20)", SPA_OPT_INT, &s.request_s, 1, 3600 },
        { "sse-ping-interval", NULL, "S", "a stream that is silent so long gets a comment (15)", SPA_OPT_INT, &s.ping_s, 1, 3600 },
        { "drafts", NULL, "on|off", "help the cloud's guesses with your own answers: of PLUGIN.features, and those given here (on)", SPA_OPT_CHOICE, &s.drafts, 0, 0 },
        SPA_RETRY_OPTION(&s.retry_s),
        { "force", NULL, NULL, "listen beyond this machine without key and TLS", SPA_OPT_FLAG, &s.force, 0, 0 },
    };
    spa_connect_options(&s.connect, options + OWN_OPTIONS);
    const struct spa_usage usage = {
        "spa serve", "",
        "Serves an OpenAI-compatible API and a chat page on this machine. Each plugin is a model of its name, the base model has its own;\n"
        "a plugin file that is replaced is taken up between two requests.",
        options, sizeof options / sizeof options[0], 0, 0,
    };
    int n_positional, rc = spa_options_parse(&usage, argc, argv, &n_positional);
    if (rc != SPA_OPTIONS_GO)
        return rc;
    return check(&s) ? SPA_EXIT_FAILED : serve(&s);
}
