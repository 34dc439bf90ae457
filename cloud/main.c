/* main.c - spa-cloud: options, the model, two threads, an orderly end; and the two commands that make something ahead of time. */
#include "engine.h"
#include "invariant.h"
#include "keys.h"
#include "listen.h"
#include "log_lines.h"
#include "make.h"
#include "model_llama.h"
#include "options.h"
#include "plugin_shape.h"
#include "rpc.h"
#include "secret.h"
#include "serve.h"
#include "store.h"

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { TEXT_MAX = 16 << 20 };   /* bytes of --text */
enum { INVARIANT_DEPTH = 300, INVARIANT_UBATCH = 32 };   /* a cache on which ggml takes its other paths; a width that keeps its tiles out */
enum { FLUSH_MS = 2000, FILES = 256 };   /* FILES: that are no connection: the model's, caches, libraries */
enum { LOST_S = 3, EXIT_LOST = 75 };   /* a cloud that lost a worker says so for so long; then whoever started it may do so again */

static const char *model_path, *host = "127.0.0.1", *api_key_file, *ssl_key_file, *ssl_cert_file, *ssl_ca_file, *type_k = "f16", *type_v;
static int32_t n_ctx, n_slots = 8, n_threads, n_gpu_layers = -1, port = 8080, n_batch = 512, n_ubatch = 32, flash_attn;
static int32_t answer_ms = 10000, max_bad = 16, max_connections = 4096, max_queue = 256, run_ahead = 16, drain_s = 60, rpc_timeout_s = 120;
static int32_t max_per_address, max_per_key, max_sockets = 1024, max_head = 4096, max_message = 1 << 20, max_prompt, max_unsent = 64 << 20, max_unread = 1 << 20, max_requests = SPA_REQUESTS_MAX;
static int32_t handshake_s = 10, ping_s = 15, idle_s, max_sessions, tokens_per_minute, answer_ms_max = 600000;
static bool verbose, force, core_dumps, version, invariant, no_self_check, ahead_always;
static const char *rpc_workers;
static const char *anchors_folder, *basis_file, *out_file, *text_file, *taps = "auto";
static int32_t basis_k = 128;
static struct spa_opt_list house_files;
static uint32_t self_check_width;   /* 0: not tried */
static char self_check_line[256];   /* for the log, once we serve: a start that fails says one sentence */

/* What all commands take. */
#define MODEL_OPTIONS \
    { "model", "m", "FILE", "the base model, GGUF", SPA_OPT_STRING, &model_path, 0, 0 }, \
    { "ctx-size", "c", "N", "tokens of context of all slots together (0: as the model was trained)", SPA_OPT_INT, &n_ctx, 0, 1 << 24 }, \
    { "parallel", "np", "N", "slots: answers at the same time (8)", SPA_OPT_INT, &n_slots, 1, 192 }, \
    { "batch-size", "b", "N", "tokens of one decode call, at most (512)", SPA_OPT_INT, &n_batch, 1, 65536 }, \
    { "ubatch-size", "ub", "N", "tokens of one micro-batch, at most; wider ones may change last bits (32)", SPA_OPT_INT, &n_ubatch, 1, 65536 }, \
    { "threads", "t", "N", "threads of the model (0: as many as there are cores)", SPA_OPT_INT, &n_threads, 0, 512 }, \
    { "gpu-layers", "ngl", "N", "layers on the GPU, where there is one (-1: all)", SPA_OPT_INT, &n_gpu_layers, -1, 10000 }, \
    { "cache-type-k", "ctk", "TYPE", "type of the cache's keys: f32 f16 bf16 q8_0 q4_0 q4_1 iq4_nl q5_0 q5_1 (f16)", SPA_OPT_STRING, &type_k, 0, 0 }, \
    { "cache-type-v", "ctv", "TYPE", "type of its values (f16; with --invariant bf16)", SPA_OPT_STRING, &type_v, 0, 0 }, \
    { "flash-attn", "fa", "on|off", "flash attention (on)", SPA_OPT_CHOICE, &flash_attn, 0, 0 }, \
    { "verbose", "v", NULL, "libllama's log as well", SPA_OPT_FLAG, &verbose, 0, 0 }, \
    SPA_LOG_OPTIONS, \
    SPA_CORE_DUMPS_OPTION(&core_dumps), \
    { "rpc", NULL, "HOST:PORT[,..]", "workers ('spa-cloud rpc-worker') that hold the model's layers, for one larger than this machine", SPA_OPT_STRING, &rpc_workers, 0, 0 }, \
    { "rpc-timeout", NULL, "S", "a worker that takes so long for one step is lost (120)", SPA_OPT_INT, &rpc_timeout_s, 1, 86400 }, \
    { "force", NULL, NULL, "listen beyond this machine without key and TLS, or reach workers there", SPA_OPT_FLAG, &force, 0, 0 }, \
    { "anchors", NULL, "DIR|none", "folder where anchors are kept, the base's answers to general prompts (~/.cache/spa)", SPA_OPT_STRING, &anchors_folder, 0, 0 }

static const struct spa_option serve_options[] = {
    MODEL_OPTIONS,
    { "basis", NULL, "FILE", "the model's generic basis (MODEL.basis, where 'spa-cloud basis' puts it)", SPA_OPT_STRING, &basis_file, 0, 0 },
    { "host", NULL, "ADDRESS", "address to listen on (127.0.0.1)", SPA_OPT_STRING, &host, 0, 0 },
    { "port", NULL, "N", "port to listen on, 0 for any free one (8080)", SPA_OPT_INT, &port, 0, 65535 },
    { "api-key-file", NULL, "FILE", "keys that devices must show, or their hashes, one a line; SIGHUP reads it again ('spa-cloud key' makes one)", SPA_OPT_STRING, &api_key_file, 0, 0 },
    { "ssl-key-file", NULL, "FILE", "TLS: private key, PEM", SPA_OPT_STRING, &ssl_key_file, 0, 0 },
    { "ssl-cert-file", NULL, "FILE", "TLS: certificate chain, PEM", SPA_OPT_STRING, &ssl_cert_file, 0, 0 },
    { "ssl-ca-file", NULL, "FILE", "TLS: devices must show a certificate of this authority, PEM", SPA_OPT_STRING, &ssl_ca_file, 0, 0 },
    { "answer-ms", NULL, "MS", "a device has so long for a state unless its request says otherwise (10000)", SPA_OPT_INT, &answer_ms, 1, 600000 },
    { "answer-ms-max", NULL, "MS", "and a request may ask for no more than this (600000)", SPA_OPT_INT, &answer_ms_max, 1, 1 << 30 },
    { "max-connections", NULL, "N", "connections of devices at the same time (4096)", SPA_OPT_INT, &max_connections, 1, 1 << 20 },
    { "max-connections-per-address", NULL, "N", "of one address, or IPv6 network; 0: no limit (0)", SPA_OPT_INT, &max_per_address, 0, 1 << 20 },
    { "max-connections-per-key", NULL, "N", "of one key, or client certificate; 0: no limit (0)", SPA_OPT_INT, &max_per_key, 0, 1 << 20 },
    { "max-sockets", NULL, "N", "sockets that have not asked for a connection yet, or ask for something else (1024)", SPA_OPT_INT, &max_sockets, 1, 1 << 20 },
    { "handshake-s", NULL, "S", "time for TLS and a request's head to come, and then for HELLO (10)", SPA_OPT_INT, &handshake_s, 1, 3600 },
    { "ping", NULL, "S", "a device that is silent so long is asked whether it lives, and given up half as long after (15)", SPA_OPT_INT, &ping_s, 1, 3600 },
    { "idle-s", NULL, "S", "a connection that asks for nothing so long is closed; 0: never (0)", SPA_OPT_INT, &idle_s, 0, 1 << 20 },
    { "max-head", NULL, "BYTES", "of a request's head (4096)", SPA_OPT_INT, &max_head, 1024, 65535 },
    { "max-message", NULL, "BYTES", "of a device's message (1048576)", SPA_OPT_INT, &max_message, SPA_MESSAGE_MIN, SPA_MESSAGE_MAX },
    { "max-prompt", NULL, "BYTES", "of a prompt's or row's text; 0: what could fit the context at all (0)", SPA_OPT_INT, &max_prompt, 0, SPA_MESSAGE_MAX },
    { "max-unsent", NULL, "BYTES", "that wait for a device to read them, before it is cut off (67108864)", SPA_OPT_INT, &max_unsent, 1 << 20, 1 << 30 },
    { "max-unread", NULL, "BYTES", "of a device that wait to be looked at, before it is read no further for a while (1048576)", SPA_OPT_INT, &max_unread, 1024, 1 << 30 },
    { "max-requests-per-connection", NULL, "N", "requests of one connection under way or waiting (64)", SPA_OPT_INT, &max_requests, 1, SPA_REQUESTS_MAX },
    { "max-sessions-per-key", NULL, "N", "requests of one key under way or waiting; 0: no limit (0)", SPA_OPT_INT, &max_sessions, 0, 1 << 20 },
    { "tokens-per-minute", NULL, "N", "of one key, prompts, answers and rows; 0: no limit (0)", SPA_OPT_INT, &tokens_per_minute, 0, 1 << 30 },
    { "max-queue", NULL, "N", "requests that may wait for a slot (256)", SPA_OPT_INT, &max_queue, 0, 1 << 20 },
    { "run-ahead", NULL, "N", "tokens that are guessed and decoded while a device's state is on its way; 0: none (16)", SPA_OPT_INT, &run_ahead, 0, SPA_ASKED_MAX - 1 },
    { "run-ahead-always", NULL, NULL, "guess also where it is not expected to pay, to measure it", SPA_OPT_FLAG, &ahead_always, 0, 0 },
    { "max-bad-states", NULL, "N", "unusable states after which a device is cut off, or late ones if it says nothing else, or 8 times as many that nobody asked for (16)", SPA_OPT_INT, &max_bad, 0, 1 << 20 },
    { "house-prompt", NULL, "FILE", "a system prompt that all users share: prefilled once; say it again for more", SPA_OPT_LIST, &house_files, 0, 0 },
    { "invariant", NULL, NULL, "a token's bits never depend on who else is served: slower paths, and no wider batches than the self-check allows", SPA_OPT_FLAG, &invariant, 0, 0 },
    { "no-self-check", NULL, NULL, "leave out trying at start how wide a batch may be", SPA_OPT_FLAG, &no_self_check, 0, 0 },
    { "drain-time", NULL, "S", "after SIGTERM answers under way may go on for so long; then they are cut, and go on elsewhere (60)", SPA_OPT_INT, &drain_s, 0, 86400 },
    { "version", NULL, NULL, "print the version and exit", SPA_OPT_FLAG, &version, 0, 0 },
};
static const struct spa_option anchors_options[] = {
    MODEL_OPTIONS,
    { "taps", NULL, "WHICH", "layers, as 'spa train --taps' says them: auto, all, a number, or 0,8,16 (auto)", SPA_OPT_STRING, &taps, 0, 0 },
};
static const struct spa_option basis_options[] = {
    MODEL_OPTIONS,
    { "output", "o", "FILE", "where the basis goes (MODEL.basis, or the anchors' folder where that cannot be written)", SPA_OPT_STRING, &out_file, 0, 0 },
    { "text", NULL, "FILE", "general text to make it from (the anchors)", SPA_OPT_STRING, &text_file, 0, 0 },
    { "k", NULL, "N", "directions of each layer, at most as many as the model is wide (128)", SPA_OPT_INT, &basis_k, 1, 65536 },
};

static const char *key_name, *key_file;
static const struct spa_option key_options[] = {
    { "name", NULL, "NAME", "whose key it is, for people who read the file", SPA_OPT_STRING, &key_name, 0, 0 },
    { "output", "o", "FILE", "where the key itself goes (printed)", SPA_OPT_STRING, &key_file, 0, 0 },
};

static int32_t worker_port = 50052;
static const struct spa_option worker_options[] = {
    { "host", NULL, "ADDRESS", "IPv4 address to listen on (127.0.0.1)", SPA_OPT_STRING, &host, 0, 0 },
    { "port", NULL, "N", "port to listen on (50052)", SPA_OPT_INT, &worker_port, 1, 65535 },
    { "threads", "t", "N", "threads, where there is no GPU (0: as many as there are cores)", SPA_OPT_INT, &n_threads, 0, 512 },
    { "force", NULL, NULL, "listen beyond this machine: whoever reaches the port can do there what the worker can", SPA_OPT_FLAG, &force, 0, 0 },
    SPA_LOG_OPTIONS,
};

enum command { SERVE, ANCHORS, BASIS, KEY, WORKER, COMMANDS };
#define TABLE(t) t, sizeof t / sizeof *t, 0, 0
static const struct spa_usage usages[COMMANDS] = {
    { "spa-cloud", "", "Serves a frozen base model to devices that hold side plugins. 'spa-cloud anchors' and 'spa-cloud basis' make ahead of time\n"
                       "what training devices may ask for, 'spa-cloud key' makes a key; each has its own --help.", TABLE(serve_options) },
    { "spa-cloud anchors", "", "Makes the base model's answers to general prompts, and its states on them, and exits. Without it the first\n"
                               "devices that train have them made.", TABLE(anchors_options) },
    { "spa-cloud basis", "", "Makes the model's generic basis, for 'spa train --basis generic:K', and exits.", TABLE(basis_options) },
    { "spa-cloud key", "", "Makes a random key for a device, and prints its line for --api-key-file, which holds the hash alone.", TABLE(key_options) },
    { "spa-cloud rpc-worker", "", "Lends this machine's GPUs or processor, and its memory, to one cloud that names it in --rpc. There is no key and no encryption:\n"
                                  "leave it on loopback and lead the cloud there through a tunnel.", TABLE(worker_options) },
};

/* What is typed after "spa-cloud" for a command that is not to serve. */
static const char *word_of(enum command c)
{
    return usages[c].command + sizeof "spa-cloud";
}

static void describe(void)
{
    spa_options_describe(&usages[SERVE]);
    for (enum command c = SERVE + 1; c < COMMANDS; c++)
        spa_options_describe_verb(word_of(c), usages[c].about);
}

/* SERVE when the first word is none; COMMANDS, after a sentence, when nobody knows it. */
static enum command command_of(const char *word)
{
    const char *const words[] = { word_of(ANCHORS), word_of(BASIS), word_of(KEY), word_of(WORKER) };
    if (!word || *word == '-')
        return SERVE;
    for (enum command c = SERVE + 1; c < COMMANDS; c++)
        if (strcmp(word, word_of(c)) == 0)
            return c;
    const char *nearest = spa_options_nearest(word, words, sizeof words / sizeof *words);
    if (nearest)
        fprintf(stderr, "spa-cloud: there is no command '%s'; did you mean '%s'?\n", word, nearest);
    else
        fprintf(stderr, "spa-cloud: there is no command '%s'; 'spa-cloud --help' says what there is\n", word);
    return COMMANDS;
}

static int fail(const char *why)
{
    return spa_log_fail("spa-cloud", why);
}

static int check_rpc(void)
{
    char why[PATH_MAX + 128];
    return !rpc_workers || spa_rpc_check(rpc_workers, force, why, sizeof why) == 0 ? 0 : fail(why);
}

static int check_options(void)
{
    if (invariant && no_self_check)
        return fail("--invariant needs the self-check: leave --no-self-check out");
    char why[PATH_MAX + 128];
    const struct spa_listen listen = { host, api_key_file, "--api-key-file", ssl_key_file, ssl_cert_file, ssl_ca_file, force };
    return spa_listen_check(&listen, why, sizeof why) == 0 ? 0 : fail(why);
}

/* ---- a worker is lost ---- */

static _Atomic(struct spa_serve *) serving;   /* NULL: not yet */
static atomic_bool worker_lost, going_down;
static pthread_t main_thread;

/* On a thread that never comes back (rpc.h). While we serve, everybody is told, and the main thread ends the program. */
static void on_worker_lost(void *user, const char *why)
{
    static char kept[512];
    (void)user;
    struct spa_serve *server = atomic_load(&serving);
    if (!server)
        _exit(fail(why));
    snprintf(kept, sizeof kept, "%s", why);
    spa_log_line(NULL, SPA_LOG_ERROR, kept);
    atomic_store(&worker_lost, true);
    spa_serve_fail(server, kept);
    if (atomic_load(&going_down)) {   /* the main thread waits for the decode thread, which may be this one */
        sleep(LOST_S);
        _exit(EXIT_LOST);
    }
    pthread_kill(main_thread, SIGTERM);
}

static int work(void)
{
    char why[512];
    if (!spa_listen_is_loopback(host) && !force) {
        snprintf(why, sizeof why, "--host %s is reachable from outside, and a worker has neither key nor encryption: leave it on loopback behind a tunnel, or say --force", host);
        return fail(why);
    }
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    spa_log(SPA_LOG_INFO, "a worker on %s:%d, for one cloud at a time", host, worker_port);
    spa_rpc_work(host, worker_port, n_threads > 0 ? n_threads : (int)(cores > 0 ? cores : 1), why, sizeof why);
    return fail(why);
}

static void *decode_thread(void *engine)
{
    spa_engine_run(engine);
    return NULL;
}

/* What in the key files could be better, for the log. */
static void look_at_keys(struct spa_serve *serve)
{
    size_t n_plain = 0;
    const size_t n = api_key_file ? spa_serve_keys(serve, &n_plain) : 0;
    if (n_plain)
        spa_log(SPA_LOG_WARN, "%s: %zu of %zu keys stand there in plain text: 'spa-cloud key' makes keys of which only the hash does%s", api_key_file, n_plain, n,
                spa_secret_is_open(api_key_file) ? "; and others can read the file: chmod 600" : "");
    if (ssl_key_file && spa_secret_is_open(ssl_key_file))
        spa_log(SPA_LOG_WARN, "%s: others can read this private key: chmod 600", ssl_key_file);
}

static void read_keys_again(struct spa_serve *serve)
{
    char why[PATH_MAX + 128];
    size_t n_plain;
    if (spa_serve_reload(serve, why, sizeof why) != 0) {
        spa_log(SPA_LOG_ERROR, "the keys stay as they were: %s", why);
    } else {
        const size_t n = spa_serve_keys(serve, &n_plain);
        spa_log(SPA_LOG_INFO, "%s: %zu keys from now on", api_key_file, n);
        look_at_keys(serve);
    }
}

/* Threads of the model are older than our mask: while the main thread does not wait yet, the system may give a signal to one of them. */
static void lead_to_main(int sig) { pthread_kill(main_thread, sig); }

/* Waits for SIGINT or SIGTERM (SIGHUP: reads the keys again), then lets the answers under way end; a second signal ends at once. */
static void wait_and_drain(struct spa_serve *serve, struct spa_mail *mail, const sigset_t *signals)
{
    int sig;
    while (sigwait(signals, &sig) == 0 && sig == SIGHUP)
        read_keys_again(serve);
    atomic_store(&going_down, true);
    spa_serve_draining(serve);
    spa_mail_drain(mail);
    struct sigaction standard = { .sa_handler = SIG_DFL };
    sigaction(SIGINT, &standard, NULL);
    sigaction(SIGTERM, &standard, NULL);
    sigset_t ends = *signals;
    sigdelset(&ends, SIGHUP);   /* keys that change now change nothing */
    pthread_sigmask(SIG_UNBLOCK, &ends, NULL);
}

/* The folder for anchors, or NULL with a line in the log: then they stay in memory. */
static const char *cache_folder(char folder[PATH_MAX])
{
    char why[512];
    if (anchors_folder && strcmp(anchors_folder, "none") == 0)
        return NULL;
    if (spa_store_cache_folder(anchors_folder, "--anchors", folder, PATH_MAX, why, sizeof why) == 0)
        return folder;
    spa_log_line(NULL, SPA_LOG_WARN, why);
    return NULL;
}

/* ---- the generic basis ---- */

/* Where it is looked for when --basis does not say: beside the model, and in the cache folder. */
static int basis_path(const struct spa_model_info *info, const char *folder, char path[PATH_MAX])
{
    if (!folder)
        return snprintf(path, PATH_MAX, "%s.basis", model_path) < PATH_MAX ? 0 : -1;
    char name[2 * sizeof info->hash + 1];
    for (size_t i = 0; i < sizeof info->hash; i++)
        snprintf(name + 2 * i, 3, "%02x", info->hash[i]);
    return snprintf(path, PATH_MAX, "%s/%.16s.basis", folder, name) < PATH_MAX ? 0 : -1;
}

/* 0 with or without one; -1 when the one that was named is not there. One that does not fit is left aside with a line in the log. */
static int open_basis(const struct spa_model *model, const char *folder, struct spa_generic **out, char *why, size_t why_len)
{
    char path[PATH_MAX];
    *out = NULL;
    for (int place = basis_file ? 1 : 0; place < 2 && !*out; place++) {
        if (!basis_file && ((place == 1 && !folder) || basis_path(&model->info, place ? folder : NULL, path) != 0))
            continue;
        const char *at = basis_file ? basis_file : path;
        const int rc = spa_generic_open(out, at, &model->info, why, why_len);
        if (rc == 1 && basis_file) {
            snprintf(why, why_len, "--basis %s: there is no such file; 'spa-cloud basis -o FILE' makes one", basis_file);
            return -1;
        }
        if (rc < 0)
            spa_log_line(NULL, SPA_LOG_WARN, why);
    }
    return 0;
}

static void on_progress(void *user, uint32_t done, uint32_t of)
{
    const char *what = user;
    if (done % 50 == 0 || done == of)
        spa_log(SPA_LOG_INFO, "%s: %u of %u", what, done, of);
}

static int make_anchors(const struct spa_model *model, struct spa_anchors *anchors, const char *folder, char *why, size_t why_len)
{
    static char what[] = "anchors";
    struct spa_shape shape;
    const struct spa_shape_wishes wishes = { .taps = taps, .basis = "none", .context = "all", .rank = 4 };
    if (!folder) {
        snprintf(why, why_len, "anchors that are made ahead of time need a folder to stay in: name one with --anchors DIR");
        return -1;
    }
    if (spa_anchors_n(anchors) == 0) {
        snprintf(why, why_len, "%s: no prompt can be written with this model's chat template, so there are no anchors", model_path);
        return -1;
    }
    if (spa_shape_from_wishes(&wishes, model->info.d, model->info.n_layers, &shape, why, why_len) != 0)
        return -1;
    return spa_make_anchors(anchors, model, shape.taps, shape.n_taps, (struct spa_make_progress){ on_progress, what }, why, why_len);
}

static int make_basis(const struct spa_model *model, struct spa_anchors *anchors, const char *folder, char *why, size_t why_len)
{
    static char what[] = "basis";
    const struct spa_make_progress progress = { on_progress, what };
    char path[PATH_MAX];
    uint8_t *text = NULL, *bytes = NULL;
    size_t text_len = 0, len = 0;
    if (out_file)
        snprintf(path, sizeof path, "%s", out_file);
    else if (basis_path(&model->info, NULL, path) != 0 || (spa_store_check_writable(path, why, why_len) != 0 && folder))
        basis_path(&model->info, folder, path);
    if (spa_store_check_writable(path, why, why_len) != 0)
        return -1;
    if (text_file && spa_store_read(text_file, TEXT_MAX, &text, &text_len, why, why_len) != 0)
        return -1;
    int rc = text_file ? spa_make_generic_of_text(model, (const char *)text, text_len, (uint32_t)basis_k, progress, &bytes, &len, why, why_len)
                       : spa_make_generic_of_anchors(anchors, model, (uint32_t)basis_k, progress, &bytes, &len, why, why_len);
    if (rc == 0)
        rc = spa_store_replace(path, bytes, len, false, why, why_len);
    if (rc == 0)
        spa_log(SPA_LOG_INFO, "basis: %s (%.1f MB)", path, (double)len / 1e6);
    free(text);
    free(bytes);
    return rc;
}

/* ---- the same bits in company ---- */

/* Confirmed tokens of a resumed answer get the bits that they had: in pieces as wide as the check found, up to where attention takes
 * another path for one lone token (invariant.c). */
enum { LONE_TOKEN_FROM = 256 };
static uint32_t replay_width, replay_until = LONE_TOKEN_FROM;

/* Tries how wide a batch may be, for the log; with --invariant keeps the model within it. 0, or -1 with a sentence. */
static int self_check(const struct spa_model *model, char *why, size_t why_len)
{
    struct spa_invariant v;
    if (no_self_check)
        return 0;
    if (spa_invariant_check(model, invariant ? INVARIANT_DEPTH : 0, &v) != 0) {
        snprintf(why, why_len, "%s: the self-check could not decode its probe; lower -c or -np, or leave it out with --no-self-check", model_path);
        return -1;
    }
    const uint32_t width = self_check_width = spa_invariant_width(&v);
    snprintf(self_check_line, sizeof self_check_line, "self-check: a token's bits are the same at widths up to %u (of a sequence %u of %u tried, of sequences %u of %u, "
             "of the head %u of %u)", width, v.rows, v.rows_of, v.company, v.company_of, v.head, v.head_of);
    if (invariant && ((width == 1 && v.rows_of > 1) || (v.head == 1 && v.head_of > 1))) {
        snprintf(why, why_len, "--invariant: with %s a token's bits change as soon as there is a second one beside it; use another quantisation "
                 "(Q4_1 holds), keep -fa on, and leave -ctk and -ctv as they are", model_path);
        return -1;
    }
    replay_width = v.rows;
    if (invariant) {
        model->narrow(model->self, width, v.head);
        replay_width = v.rows < width ? v.rows : width;
        replay_until = UINT32_MAX;
    }
    return 0;
}

/* ---- house prompts ---- */

/* 0 with *out, which stays NULL when none is declared; -1 with a sentence. */
static int open_houses(const struct spa_model *model, struct spa_houses **out, char *why, size_t why_len)
{
    char *texts[SPA_OPT_LIST_MAX] = { 0 }, reason[256];
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < house_files.n; i++) {
        uint8_t *bytes = NULL;
        size_t len = 0;
        rc = spa_store_read(house_files.at[i], TEXT_MAX, &bytes, &len, why, why_len);
        texts[i] = rc == 0 ? malloc(len + 1) : NULL;
        while (len > 0 && (bytes[len - 1] == '\n' || bytes[len - 1] == '\r'))   /* an editor's last line end is not the prompt's */
            len--;
        if (texts[i]) {
            memcpy(texts[i], bytes, len);
            texts[i][len] = '\0';
        } else if (rc == 0) {
            snprintf(why, why_len, "out of memory");
            rc = -1;
        }
        free(bytes);
    }
    if (rc == 0 && house_files.n) {
        size_t failed = 0;
        *out = spa_houses_new(model, (const char *const *)texts, house_files.n, &failed, reason, sizeof reason);
        if (!*out) {
            snprintf(why, why_len, "--house-prompt %s: %s", house_files.at[failed], reason);
            rc = -1;
        }
    }
    for (size_t i = 0; i < house_files.n; i++)
        free(texts[i]);
    return rc;
}

static int serve(struct spa_model *model, struct spa_anchors *anchors, const struct spa_generic *generic, struct spa_houses *houses)
{
    char why[512];
    const struct spa_serve_config sc = { .host = host, .port = port, .cert_file = ssl_cert_file, .key_file = ssl_key_file,
                                         .ca_file = ssl_ca_file, .max_connections = (uint32_t)max_connections, .max_per_address = (uint32_t)max_per_address,
                                         .max_per_key = (uint32_t)max_per_key, .max_sockets = (uint32_t)max_sockets, .max_head = (uint32_t)max_head,
                                         .handshake_s = (uint32_t)handshake_s, .ping_s = (uint32_t)ping_s,
                                         .api_key_file = api_key_file, .model_name = model->info.name, .started_unix_s = time(NULL),
                                         .max_message = (size_t)max_message, .max_unread = (size_t)max_unread, .version = SPA_VERSION, .check_width = self_check_width, .log = spa_log_line };
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    if (api_key_file)   /* without one it means, as ever, that the terminal is gone */
        sigaddset(&signals, SIGHUP);
    struct spa_serve *server = spa_serve_new(&sc, why, sizeof why);
    struct spa_mail *mail = server ? spa_mail_new(spa_serve_room(), (size_t)max_unsent, spa_serve_wake, server) : NULL;
    const struct spa_engine_config ec = {
        .model = model, .mail = mail, .anchors = anchors, .generic = generic, .houses = houses, .server = "spa-cloud " SPA_VERSION, .max_message = (uint32_t)max_message,
        .max_out = (size_t)max_unsent, .max_per_account = (uint32_t)max_sessions, .tokens_per_minute = (uint32_t)tokens_per_minute, .idle_ms = (uint32_t)idle_s * 1000,
        .max_prompt = (size_t)max_prompt, .max_queue = (uint32_t)max_queue, .max_connections = (uint32_t)max_connections, .n_threads = (uint32_t)n_threads, .replay_width = replay_width, .replay_until = replay_until,
        .run_ahead_always = ahead_always, .drain_ms = (uint32_t)drain_s * 1000, .log = spa_log_line,
        .limits = { .max_requests = (uint32_t)max_requests, .learn_window = 256, .loss_window = 4, .max_bad_states = (uint32_t)max_bad, .answer_ms = (uint32_t)answer_ms,
                    .answer_ms_max = (uint32_t)answer_ms_max, .hello_ms = (uint32_t)handshake_s * 1000, .max_state_rms = 1e4f, .run_ahead = (uint32_t)run_ahead },
    };
    struct spa_engine *engine = mail ? spa_engine_new(&ec) : NULL;
    int rc = 1;
    pthread_t decoder;
    pthread_sigmask(SIG_BLOCK, &signals, NULL);   /* every thread from here on leaves the signals to sigwait */
    main_thread = pthread_self();
    const struct sigaction lead = { .sa_handler = lead_to_main, .sa_flags = SA_RESTART };
    sigaction(SIGINT, &lead, NULL);
    sigaction(SIGTERM, &lead, NULL);
    if (!engine) {
        fail(server ? "out of memory; lower -c or -np" : why);
    } else if (spa_serve_start(server, mail, why, sizeof why) != 0) {
        fail(why);
    } else if (pthread_create(&decoder, NULL, decode_thread, engine) != 0) {
        fail("cannot start a thread");
    } else {
        const struct spa_model_info *i = &model->info;
        if (*self_check_line)
            spa_log_line(NULL, SPA_LOG_INFO, self_check_line);
        for (size_t h = 0; h < house_files.n; h++)
            spa_log(SPA_LOG_INFO, "house prompt %s: %u tokens are shared", house_files.at[h], spa_house_len(houses, h));
        look_at_keys(server);
        const bool v6 = strchr(host, ':') != NULL;
        spa_log(SPA_LOG_INFO, "serving %s (d %u, %u layers, %u slots of %u tokens) on %s://%s%s%s:%d", i->name, i->d, i->n_layers,
                i->n_slots, i->n_ctx_slot, ssl_cert_file ? "wss" : "ws", v6 ? "[" : "", host, v6 ? "]" : "", spa_serve_port(server));
        atomic_store(&serving, server);
        wait_and_drain(server, mail, &signals);
        if (atomic_load(&worker_lost)) {   /* the decode thread never comes back; nothing is left to be saved */
            sleep(LOST_S);
            _exit(EXIT_LOST);
        }
        pthread_join(decoder, NULL);
        spa_serve_stop(server, FLUSH_MS);
        rc = 0;
    }
    atomic_store(&serving, NULL);
    spa_serve_free(server);
    spa_engine_free(engine);
    spa_mail_free(mail);
    return rc;
}

static int run(enum command command, struct spa_model *model)
{
    char why[1024], folder_is[PATH_MAX];
    const char *folder = cache_folder(folder_is);
    const struct spa_anchors_config ac = { .model = model, .prompts = spa_anchor_prompts, .n_prompts = spa_anchor_prompts_n, .folder = folder,
                                           .log = spa_log_line };
    struct spa_anchors *anchors = spa_anchors_new(&ac);
    struct spa_generic *generic = NULL;
    struct spa_houses *houses = NULL;
    int rc = 1;
    if (!anchors)
        fail("out of memory; lower -c or -np");
    else if (command == ANCHORS)
        rc = make_anchors(model, anchors, folder, why, sizeof why) == 0 ? 0 : fail(why);
    else if (command == BASIS)
        rc = make_basis(model, anchors, folder, why, sizeof why) == 0 ? 0 : fail(why);
    else if (open_basis(model, folder, &generic, why, sizeof why) != 0 || self_check(model, why, sizeof why) != 0 ||
             open_houses(model, &houses, why, sizeof why) != 0)
        fail(why);
    else
        rc = serve(model, anchors, generic, houses);
    spa_houses_free(houses);
    spa_generic_close(generic);
    spa_anchors_free(anchors);
    return rc;
}

static int make_key(void)
{
    char key[SPA_KEY_TEXT], line[SPA_KEY_LINE], why[512];
    if (key_name && (strpbrk(key_name, " \t\r\n") || strlen(key_name) > 100))
        return fail("--name takes one word of up to 100 bytes");
    if (key_file && access(key_file, F_OK) == 0) {
        snprintf(why, sizeof why, "%.400s is there already; name another file, or remove it", key_file);
        return fail(why);
    }
    if (spa_keys_make(key_name, key, line) != 0)
        return fail("this machine gives no random numbers");
    if (key_file) {
        char with_end[SPA_KEY_TEXT + 1];
        const int n = snprintf(with_end, sizeof with_end, "%s\n", key);
        if (spa_store_replace(key_file, with_end, (size_t)n, true, why, sizeof why) != 0)
            return fail(why);
        explicit_bzero(with_end, sizeof with_end);
    } else {
        puts(key);
    }
    puts(line);
    explicit_bzero(key, sizeof key);
    return fflush(stdout) == 0 ? 0 : fail("cannot write the key");
}

/* libwebsockets takes no more connections than there may be open files. */
static void allow_files(void)
{
    struct rlimit l;
    const rlim_t need = (rlim_t)max_connections + (rlim_t)max_sockets + FILES, absurd = 10000000;   /* libwebsockets takes a limit beyond it for none, and few files */
    if (getrlimit(RLIMIT_NOFILE, &l) != 0 || (l.rlim_cur >= need && l.rlim_cur < absurd))
        return;
    l.rlim_cur = l.rlim_max == RLIM_INFINITY || l.rlim_max >= need ? need : l.rlim_max;
    setrlimit(RLIMIT_NOFILE, &l);
    if (l.rlim_cur < need)
        spa_log(SPA_LOG_WARN, "this machine lets a process have %llu open files, too few for --max-connections %d: raise ulimit -n", (unsigned long long)l.rlim_cur, max_connections);
}

int main(int argc, char **argv)
{
    const enum command command = command_of(argc > 1 ? argv[1] : NULL);
    if (command == COMMANDS)
        return SPA_EXIT_USAGE;
    if (argc == 2 && strcmp(argv[1], "--describe") == 0) {
        describe();
        return 0;
    }
    const int word = command != SERVE;
    int n_positional;
    const int parsed = spa_options_parse(&usages[command], argc - word, argv + word, &n_positional);
    if (parsed != SPA_OPTIONS_GO)
        return parsed;
    if (version) {
        puts("spa-cloud " SPA_VERSION);
        return 0;
    }
    signal(SIGPIPE, SIG_IGN);
    if (!core_dumps)
        spa_secret_no_core_dumps();   /* one would hold users' texts */
    if (command == KEY)
        return make_key();
    if (command == WORKER)
        return work();
    if (!model_path)
        return fail("no model: say -m MODEL.gguf");
    if ((command == SERVE && check_options() != 0) || check_rpc() != 0)
        return 1;
    /* Keys and values of two types: ggml's attention then takes one path for one token and for many (invariant.c). */
    if (!type_v)
        type_v = invariant ? "bf16" : "f16";
    if (invariant && n_ubatch > INVARIANT_UBATCH)
        n_ubatch = INVARIANT_UBATCH;
    if (command == SERVE)
        allow_files();
    if (command == SERVE && api_key_file) {   /* before there are threads: SIGHUP waits until we serve, and ends none of them */
        sigset_t hang_up;
        sigemptyset(&hang_up);
        sigaddset(&hang_up, SIGHUP);
        pthread_sigmask(SIG_BLOCK, &hang_up, NULL);
    }

    char why[512];
    struct spa_model model;
    const struct spa_llama_config lc = { .path = model_path, .n_ctx = (uint32_t)n_ctx, .n_slots = (uint32_t)n_slots,
                                         .n_batch = (uint32_t)n_batch, .n_ubatch = (uint32_t)n_ubatch,
                                         .n_threads = n_threads, .n_gpu_layers = n_gpu_layers, .type_k = type_k, .type_v = type_v,
                                         .flash_attn = flash_attn == 0, .rpc = rpc_workers, .rpc_timeout_ms = (uint32_t)rpc_timeout_s * 1000,
                                         .rpc_lost = on_worker_lost, .invariant = invariant, .log = spa_log_line, .verbose = verbose };
    if (spa_llama_open(&model, &lc, why, sizeof why) != 0)
        return fail(why);
    const int rc = run(command, &model);
    spa_llama_close(&model);
    return rc;
}
