/* rpc.c - in: a list of workers. out: devices that libllama puts layers on; a word when one is lost (rpc.h).
 *
 * The backend is asked for by name: a libllama that was built without it still links. */
#include "rpc.h"
#include "listen.h"

#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { ADDRESS_MAX = 256, CONNECT_MS = 5000, LOOK_MS = 100, DEVICES_MAX = 16 };

/* Of the process, as ggml's callback is. */
static struct {
    void (*lost)(void *user, const char *why);
    void *user;
    uint32_t timeout_ms;
    char connecting[ADDRESS_MAX];          /* what begin .. end waits for now, while connecting */
    _Atomic uint64_t until_ms;             /* of the call under way; 0: none */
    atomic_bool is_lost, on;
} rpc;

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* ---- the list ---- */

/* The next HOST:PORT of *list, which moves behind it. false: none is left, or (*bad) it is none. */
static bool next_address(const char **list, char address[ADDRESS_MAX], char host[ADDRESS_MAX], bool *bad)
{
    *bad = false;
    if (!*list)
        return false;
    const size_t len = strcspn(*list, ",");
    const char *at = *list;
    *list = at[len] ? at + len + 1 : NULL;
    *bad = true;
    if (len == 0 || len >= ADDRESS_MAX)
        return false;
    memcpy(address, at, len);
    address[len] = 0;
    const char *colon = strchr(address, ':');
    if (!colon || colon == address)
        return false;
    char *end;
    const long port = strtol(colon + 1, &end, 10);
    if (end == colon + 1 || *end || port < 1 || port > 65535)
        return false;
    memcpy(host, address, (size_t)(colon - address));
    host[colon - address] = 0;
    *bad = false;
    return true;
}

int spa_rpc_check(const char *list, bool force, char *why, size_t why_len)
{
    char address[ADDRESS_MAX], host[ADDRESS_MAX];
    bool bad;
    size_t n = 0;
    while (next_address(&list, address, host, &bad) && ++n <= SPA_RPC_WORKERS_MAX)
        if (!force && !spa_listen_is_loopback(host)) {
            snprintf(why, why_len, "--rpc %s is beyond this machine, and the link to a worker has neither key nor encryption: lead it through a tunnel "
                     "to 127.0.0.1, or say --force", address);
            return -1;
        }
    if (bad || n > SPA_RPC_WORKERS_MAX) {
        snprintf(why, why_len, "--rpc wants HOST:PORT of up to %d workers with commas between (IPv4 or a name)", SPA_RPC_WORKERS_MAX);
        return -1;
    }
    return 0;
}

/* ---- a worker is lost ---- */

/* Once; whoever comes here does not go on. */
static _Noreturn void give_up(const char *why)
{
    if (!atomic_exchange(&rpc.is_lost, true))
        rpc.lost(rpc.user, why);
    for (;;)
        pause();
}

/* ggml is about to abort. What is not the RPC backend's ends as it would without us. */
static void on_abort(const char *message)
{
    char why[ADDRESS_MAX + 128];
    if (!strstr(message, "ggml-rpc")) {
        fprintf(stderr, "%s\n", message);
        return;
    }
    if (rpc.connecting[0])
        snprintf(why, sizeof why, "--rpc %s: no worker of this libllama version answers there; start 'spa-cloud rpc-worker' first", rpc.connecting);
    else
        snprintf(why, sizeof why, "a worker of --rpc is lost, and the layers that lay with it");
    give_up(why);
}

static void *watch(void *arg)
{
    (void)arg;
    for (;;) {
        const struct timespec nap = { 0, LOOK_MS * 1000000L };
        nanosleep(&nap, NULL);
        const uint64_t until = atomic_load(&rpc.until_ms);
        if (until == 0 || now_ms() < until)
            continue;
        char why[ADDRESS_MAX + 128];
        if (rpc.connecting[0])
            snprintf(why, sizeof why, "--rpc %s does not answer within %d s; is the worker busy with another cloud?", rpc.connecting, CONNECT_MS / 1000);
        else
            snprintf(why, sizeof why, "a worker of --rpc does not answer within %u s; it counts as lost", rpc.timeout_ms / 1000);
        give_up(why);
    }
    return NULL;
}

void spa_rpc_begin(void)
{
    if (atomic_load(&rpc.on))
        atomic_store(&rpc.until_ms, now_ms() + (rpc.connecting[0] ? CONNECT_MS : rpc.timeout_ms));
}

void spa_rpc_end(void)
{
    if (atomic_load(&rpc.on))
        atomic_store(&rpc.until_ms, 0);
}

/* ---- the cloud's end ---- */

typedef ggml_backend_reg_t add_server_fn(const char *endpoint);
typedef void start_server_fn(const char *endpoint, const char *cache_dir, size_t n_threads, size_t n_devices, ggml_backend_dev_t *devices);

/* A function of the backend's. NULL, with a sentence: there is none in this libllama. */
static void *find(const char *name, char *why, size_t why_len)
{
    ggml_backend_reg_t reg = ggml_backend_reg_by_name("RPC");
    void *found = reg ? ggml_backend_reg_get_proc_address(reg, name) : NULL;
    if (!found)
        snprintf(why, why_len, "this libllama was built without its RPC backend (-DGGML_RPC=ON); tools/setup builds one that has it");
    return found;
}

int spa_rpc_connect(const char *list, uint32_t timeout_ms, void (*lost)(void *user, const char *why), void *user, char *why, size_t why_len)
{
    char address[ADDRESS_MAX], host[ADDRESS_MAX];
    bool bad;
    pthread_t watcher;
    add_server_fn *add = (add_server_fn *)find("ggml_backend_rpc_add_server", why, why_len);
    if (!add)
        return -1;
    rpc.lost = lost;
    rpc.user = user;
    rpc.timeout_ms = timeout_ms;
    if (pthread_create(&watcher, NULL, watch, NULL) != 0) {
        snprintf(why, why_len, "cannot start a thread");
        return -1;
    }
    pthread_detach(watcher);
    atomic_store(&rpc.on, true);
    ggml_set_abort_callback(on_abort);
    while (next_address(&list, address, host, &bad)) {
        memcpy(rpc.connecting, address, sizeof address);
        spa_rpc_begin();
        ggml_backend_reg_t reg = add(address);
        /* Kept for good: otherwise the connection would end here, and the worker might be another cloud's before the model is loaded. */
        const bool ours = reg && ggml_backend_dev_init(ggml_backend_reg_dev_get(reg, 0), NULL);
        spa_rpc_end();
        if (!ours) {
            snprintf(why, why_len, "--rpc %s: the worker there lends no device", address);
            return -1;
        }
        ggml_backend_register(reg);
    }
    rpc.connecting[0] = 0;
    return 0;
}

/* ---- the worker's end ---- */

static size_t lent_devices(ggml_backend_dev_t devices[DEVICES_MAX])
{
    size_t n = 0;
    for (size_t i = 0; i < ggml_backend_dev_count() && n < DEVICES_MAX; i++) {
        ggml_backend_dev_t dev = ggml_backend_dev_get(i);
        const enum ggml_backend_dev_type type = ggml_backend_dev_type(dev);
        if (type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU)
            devices[n++] = dev;
    }
    if (n == 0 && (devices[0] = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)) != NULL)
        n = 1;
    return n;
}

int spa_rpc_work(const char *host, int port, int n_threads, char *why, size_t why_len)
{
    char endpoint[ADDRESS_MAX];
    ggml_backend_dev_t devices[DEVICES_MAX];
    start_server_fn *start = (start_server_fn *)find("ggml_backend_rpc_start_server", why, why_len);
    if (!start)
        return -1;
    const size_t n = lent_devices(devices);
    snprintf(endpoint, sizeof endpoint, "%s:%d", host, port);
    start(endpoint, NULL, (size_t)n_threads, n, devices);
    snprintf(why, why_len, "cannot listen on %s; is the port taken, is the address this machine's, and IPv4?", endpoint);
    return -1;
}
