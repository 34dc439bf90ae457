/* main.c - spa-cloud: options, the model, two threads, an orderly end. */
#include "engine.h"
#include "model_llama.h"
#include "options.h"
#include "serve.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { MAX_MESSAGE = 1 << 20, OUT_MAX = 64 << 20, DRAIN_MS = 60000, FLUSH_MS = 2000 };

static const char *model_path, *host = "127.0.0.1", *api_key_file, *ssl_key_file, *ssl_cert_file, *type_k = "f16", *type_v = "f16";
static int32_t n_ctx, n_slots = 8, n_threads, n_gpu_layers = -1, port = 8080, n_batch = 512, n_ubatch = 32, flash_attn;
static int32_t answer_ms = 10000, max_bad = 16, max_connections = 4096, max_queue = 256;
static bool verbose, force, version;

static const struct spa_option options[] = {
    { "model", "m", "FILE", "the base model, GGUF", SPA_OPT_STRING, &model_path, 0, 0 },
    { "ctx-size", "c", "N", "tokens of context of all slots together (0: as the model was trained)", SPA_OPT_INT, &n_ctx, 0, 1 << 24 },
    { "parallel", "np", "N", "slots: answers at the same time (8)", SPA_OPT_INT, &n_slots, 1, 192 },
    { "batch-size", "b", "N", "tokens of one decode call, at most (512)", SPA_OPT_INT, &n_batch, 1, 65536 },
    { "ubatch-size", "ub", "N", "tokens of one micro-batch, at most; wider ones may change last bits (32)", SPA_OPT_INT, &n_ubatch, 1, 65536 },
    { "threads", "t", "N", "threads of the model (0: as many as there are cores)", SPA_OPT_INT, &n_threads, 0, 512 },
    { "gpu-layers", "ngl", "N", "layers on the GPU, where there is one (-1: all)", SPA_OPT_INT, &n_gpu_layers, -1, 10000 },
    { "cache-type-k", "ctk", "TYPE", "type of the cache's keys: f32 f16 bf16 q8_0 q4_0 q4_1 iq4_nl q5_0 q5_1 (f16)", SPA_OPT_STRING, &type_k, 0, 0 },
    { "cache-type-v", "ctv", "TYPE", "type of its values (f16)", SPA_OPT_STRING, &type_v, 0, 0 },
    { "flash-attn", "fa", "on|off", "flash attention (on)", SPA_OPT_CHOICE, &flash_attn, 0, 0 },
    { "host", NULL, "ADDRESS", "address to listen on (127.0.0.1)", SPA_OPT_STRING, &host, 0, 0 },
    { "port", NULL, "N", "port to listen on, 0 for any free one (8080)", SPA_OPT_INT, &port, 0, 65535 },
    { "api-key-file", NULL, "FILE", "keys that devices must show, one a line", SPA_OPT_STRING, &api_key_file, 0, 0 },
    { "ssl-key-file", NULL, "FILE", "TLS: private key, PEM", SPA_OPT_STRING, &ssl_key_file, 0, 0 },
    { "ssl-cert-file", NULL, "FILE", "TLS: certificate chain, PEM", SPA_OPT_STRING, &ssl_cert_file, 0, 0 },
    { "answer-ms", NULL, "MS", "a device has so long for a state unless its request says otherwise (10000)", SPA_OPT_INT, &answer_ms, 1, 600000 },
    { "max-connections", NULL, "N", "connections at the same time (4096)", SPA_OPT_INT, &max_connections, 1, 1 << 20 },
    { "max-queue", NULL, "N", "requests that may wait for a slot (256)", SPA_OPT_INT, &max_queue, 0, 1 << 20 },
    { "max-bad-states", NULL, "N", "unusable states after which a device is cut off (16)", SPA_OPT_INT, &max_bad, 0, 1 << 20 },
    { "force", NULL, NULL, "listen beyond this machine without key and TLS", SPA_OPT_FLAG, &force, 0, 0 },
    { "verbose", "v", NULL, "libllama's log as well", SPA_OPT_FLAG, &verbose, 0, 0 },
    { "version", NULL, NULL, "print the version and exit", SPA_OPT_FLAG, &version, 0, 0 },
};
static const struct spa_usage usage = { "spa-cloud", "", "Serves a frozen base model to devices that hold side plugins.", options,
                                        sizeof options / sizeof *options, 0, 0 };

static int fail(const char *why)
{
    fprintf(stderr, "spa-cloud: %s\n", why);
    return 1;
}

static void log_line(void *user, const char *line)
{
    (void)user;
    struct timespec now;
    struct tm tm;
    char when[32];
    clock_gettime(CLOCK_REALTIME, &now);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", gmtime_r(&now.tv_sec, &tm));
    fprintf(stderr, "%s.%03ldZ %s\n", when, now.tv_nsec / 1000000, line);
}

static bool is_loopback(const char *address)
{
    struct in_addr v4;
    if (inet_pton(AF_INET, address, &v4) == 1)
        return ntohl(v4.s_addr) >> 24 == 127;
    return strcmp(address, "localhost") == 0 || strcmp(address, "::1") == 0;
}

static int check_options(void)
{
    if (!model_path)
        return fail("no model: say -m MODEL.gguf");
    if ((ssl_key_file != NULL) != (ssl_cert_file != NULL))
        return fail("TLS needs both --ssl-key-file and --ssl-cert-file");
    if (ssl_key_file && (access(ssl_key_file, R_OK) != 0 || access(ssl_cert_file, R_OK) != 0)) {
        fprintf(stderr, "spa-cloud: cannot read %s\n", access(ssl_key_file, R_OK) != 0 ? ssl_key_file : ssl_cert_file);
        return 1;
    }
    if (!is_loopback(host) && !(api_key_file && ssl_key_file) && !force) {
        fprintf(stderr, "spa-cloud: --host %s is reachable from outside: add --api-key-file, --ssl-key-file and --ssl-cert-file, or --force\n", host);
        return 1;
    }
    return 0;
}

static void *decode_thread(void *engine)
{
    spa_engine_run(engine);
    return NULL;
}

/* Waits for SIGINT or SIGTERM, then lets the answers under way end; a second signal ends at once. */
static void wait_and_drain(struct spa_serve *serve, struct spa_mail *mail, const sigset_t *signals)
{
    int sig;
    sigwait(signals, &sig);
    spa_serve_draining(serve);
    spa_mail_drain(mail);
    struct sigaction standard = { .sa_handler = SIG_DFL };
    sigaction(SIGINT, &standard, NULL);
    sigaction(SIGTERM, &standard, NULL);
    pthread_sigmask(SIG_UNBLOCK, signals, NULL);
}

int main(int argc, char **argv)
{
    int n_positional;
    const int parsed = spa_options_parse(&usage, argc, argv, &n_positional);
    if (parsed != SPA_OPTIONS_GO)
        return parsed;
    if (version) {
        puts("spa-cloud " SPA_VERSION);
        return 0;
    }
    if (check_options() != 0)
        return 1;
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_DUMPABLE, 0);   /* a core dump would hold users' texts */
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);

    char why[512];
    struct spa_model model;
    const struct spa_llama_config lc = { .path = model_path, .n_ctx = (uint32_t)n_ctx, .n_slots = (uint32_t)n_slots,
                                         .n_batch = (uint32_t)n_batch, .n_ubatch = (uint32_t)n_ubatch,
                                         .n_threads = n_threads, .n_gpu_layers = n_gpu_layers, .type_k = type_k, .type_v = type_v,
                                         .flash_attn = flash_attn == 0, .verbose = verbose };
    if (spa_llama_open(&model, &lc, why, sizeof why) != 0)
        return fail(why);

    const struct spa_serve_config sc = { .host = host, .port = port, .cert_file = ssl_cert_file, .key_file = ssl_key_file,
                                         .api_key_file = api_key_file, .model_name = model.info.name, .started_unix_s = time(NULL),
                                         .max_message = MAX_MESSAGE };
    struct spa_serve *serve = spa_serve_new(&sc, why, sizeof why);
    struct spa_mail *mail = serve ? spa_mail_new(spa_serve_room(), OUT_MAX, spa_serve_wake, serve) : NULL;
    const struct spa_engine_config ec = {
        .model = &model, .mail = mail, .server = "spa-cloud " SPA_VERSION, .max_message = MAX_MESSAGE, .max_out = OUT_MAX, .max_queue = (uint32_t)max_queue,
        .max_connections = (uint32_t)max_connections, .n_threads = (uint32_t)n_threads, .drain_ms = DRAIN_MS, .log = log_line,
        .limits = { .max_requests = SPA_REQUESTS_MAX, .learn_window = 256, .loss_window = 4, .max_bad_states = (uint32_t)max_bad, .answer_ms = (uint32_t)answer_ms,
                    .answer_ms_max = 600000, .hello_ms = 10000, .max_state_rms = 1e4f },
    };
    struct spa_engine *engine = mail ? spa_engine_new(&ec) : NULL;
    int rc = 1;
    pthread_t decoder;
    pthread_sigmask(SIG_BLOCK, &signals, NULL);   /* every thread from here on leaves the signals to sigwait */
    if (!engine) {
        fail(serve ? "out of memory; lower -c or -np" : why);
    } else if (spa_serve_start(serve, mail, why, sizeof why) != 0) {
        fail(why);
    } else if (pthread_create(&decoder, NULL, decode_thread, engine) != 0) {
        fail("cannot start a thread");
    } else {
        const struct spa_model_info *i = &model.info;
        const bool v6 = strchr(host, ':') != NULL;
        fprintf(stderr, "spa-cloud: serving %s (d %u, %u layers, %u slots of %u tokens) on %s://%s%s%s:%d\n", i->name, i->d, i->n_layers,
                i->n_slots, i->n_ctx_slot, ssl_cert_file ? "wss" : "ws", v6 ? "[" : "", host, v6 ? "]" : "", spa_serve_port(serve));
        wait_and_drain(serve, mail, &signals);
        pthread_join(decoder, NULL);
        spa_serve_stop(serve, FLUSH_MS);
        rc = 0;
    }
    spa_serve_free(serve);
    spa_engine_free(engine);
    spa_mail_free(mail);
    spa_llama_close(&model);
    return rc;
}
