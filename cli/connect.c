/* connect.c - from options and a plugin to a greeted link (connect.h). */
#define _DEFAULT_SOURCE
#include "connect.h"
#include "basis.h"
#include "gate.h"
#include "store.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

enum { KEY_MAX = 1024, URL_MAX = 1024 };

void spa_connect_options(struct spa_connect *c, struct spa_option *rows)
{
    rows[0] = (struct spa_option){ "cloud", NULL, "URL[,URL...]", "ws:// or wss:// address; of several the first that answers (SPA_CLOUD, or ws://127.0.0.1:8080)",
                                   SPA_OPT_STRING, &c->cloud, 0, 0 };
    rows[1] = (struct spa_option){ "api-key-file", NULL, "FILE", "first line: the cloud's key (or the key itself in SPA_API_KEY)",
                                   SPA_OPT_STRING, &c->api_key_file, 0, 0 };
    rows[2] = (struct spa_option){ "ca-file", NULL, "FILE", "PEM of the authority to trust for wss:// (the system's)",
                                   SPA_OPT_STRING, &c->ca_file, 0, 0 };
    rows[3] = (struct spa_option){ "cert-file", NULL, "FILE", "PEM of this device's certificate, for clouds that want one", SPA_OPT_STRING, &c->cert_file, 0, 0 };
    rows[4] = (struct spa_option){ "key-file", NULL, "FILE", "and its private key", SPA_OPT_STRING, &c->key_file, 0, 0 };
    rows[5] = (struct spa_option){ "ping", NULL, "S", "a cloud that is silent so long is asked whether it lives, and soon given up (30)", SPA_OPT_INT,
                                   &c->ping_s, 1, 3600 };
    rows[6] = (struct spa_option)SPA_CORE_DUMPS_OPTION(&c->core_dumps);
}

static const char *url_list(const struct spa_connect *c)
{
    const char *env = getenv("SPA_CLOUD");
    return c->cloud ? c->cloud : env && *env ? env : "ws://127.0.0.1:8080";
}

/* Copies a key up to the end of its first line. It goes into an HTTP header: anything but printable ASCII is refused. */
static int take_key(const char *from, const char *text, char key[KEY_MAX + 1], char *why, size_t why_len)
{
    size_t n = strcspn(text, "\r\n");
    while (n && (text[n - 1] == ' ' || text[n - 1] == '\t'))
        n--;
    const char *what = n == 0 ? "is empty" : n > KEY_MAX ? "is too long for a key" : NULL;
    for (size_t i = 0; i < n && !what; i++)
        if (text[i] < ' ' || text[i] > '~')
            what = "holds characters that no key has";
    if (what) {
        snprintf(why, why_len, "%s %s", from, what);
        return -1;
    }
    memcpy(key, text, n);
    key[n] = 0;
    return 0;
}

/* 1: key filled; 0: there is none; -1 with a sentence. */
static int find_key(const struct spa_connect *c, char key[KEY_MAX + 1], char *why, size_t why_len)
{
    const char *env = getenv("SPA_API_KEY");
    if (c->api_key_file) {
        char text[KEY_MAX + 3] = "";
        FILE *f = fopen(c->api_key_file, "r");
        if (!f) {
            snprintf(why, why_len, "cannot read the key file %s: %s", c->api_key_file, strerror(errno));
            return -1;
        }
        if (!fgets(text, sizeof text, f))
            text[0] = 0;
        fclose(f);
        static atomic_flag warned = ATOMIC_FLAG_INIT;   /* once, not at each try */
        if (spa_secret_is_open(c->api_key_file) && !atomic_flag_test_and_set(&warned))
            fprintf(stderr, "spa: others can read the key in %s: chmod 600\n", c->api_key_file);
        int rc = take_key(c->api_key_file, text, key, why, why_len);
        explicit_bzero(text, sizeof text);
        return rc == 0 ? 1 : -1;
    }
    if (!env || !*env)
        return 0;
    return take_key("SPA_API_KEY", env, key, why, why_len) == 0 ? 1 : -1;
}

/* What the cloud is told of the plugin. gate [spa_gate_width], or NULL without one. */
static void announce(const struct spa_plugin_file *f, float threshold, spa_Plugin *out, float *gate)
{
    const struct spa_plugin *p = &f->plugin;
    spa_wire_plugin_from_shape(&p->shape, out);
    out->tap_dtype = (spa_Dtype)p->tap_dtype;
    out->state_dtype = (spa_Dtype)p->state_dtype;
    if (p->has_base_hash) {
        out->model_hash.size = SPA_HASH_BYTES;
        memcpy(out->model_hash.bytes, p->base_hash, SPA_HASH_BYTES);
    }
    static const uint8_t not_fitted[SPA_HASH_BYTES];
    if (p->shape.basis && memcmp(p->basis_hash, not_fitted, SPA_HASH_BYTES) != 0) {
        out->basis_hash.size = SPA_HASH_BYTES;
        memcpy(out->basis_hash.bytes, p->basis_hash, SPA_HASH_BYTES);
    }
    out->generic = f->generic && p->shape.basis && out->basis_hash.size == 0;
    if (gate) {
        static const float no_bias[2];
        spa_gate_fold(spa_gate_width(p), f->gate_w, f->gate_b ? f->gate_b : no_bias, threshold > 0 ? threshold : p->gate_threshold,
                      gate, &out->gate_bias);
        out->has_gate = true;
        out->gate_taps = p->gate_taps;
    }
}

/* The cloud tells its model's hash only in WELCOME; one that checks hashes itself has refused before. */
static int check_model(const struct spa_plugin *p, const spa_Welcome *w, const char *url, char *why, size_t why_len)
{
    if (!p->has_base_hash || w->model_hash.size != SPA_HASH_BYTES
        || memcmp(p->base_hash, w->model_hash.bytes, SPA_HASH_BYTES) == 0)
        return 0;
    snprintf(why, why_len, "the plugin was made for the model '%s', but %s serves '%s'%s", p->base_name, url, w->model,
             strcmp(p->base_name, w->model) == 0 ? " (the same name, other weights)" : "");
    return -1;
}

/* Confirmed tokens are of no use to another model. */
static int check_same_model(struct spa_clouds *k, const spa_Welcome *w, const char *url, char *why, size_t why_len)
{
    const bool has_hash = w->model_hash.size == SPA_HASH_BYTES;
    if (!k->known) {
        *k = (struct spa_clouds){ .refused = k->refused, .at = k->at, .known = true, .has_hash = has_hash, .d = w->d, .n_layers = w->n_layers,
                                  .n_vocab = w->n_vocab };
        memcpy(k->hash, w->model_hash.bytes, has_hash ? SPA_HASH_BYTES : 0);
        return 0;
    }
    if (k->d == w->d && k->n_layers == w->n_layers && k->n_vocab == w->n_vocab
        && (!k->has_hash || !has_hash || memcmp(k->hash, w->model_hash.bytes, SPA_HASH_BYTES) == 0))
        return 0;
    snprintf(why, why_len, "%s serves another model ('%s') than the cloud that began the answer", url, w->model);
    return -1;
}

/* One cloud. cfg: all but its URL. */
static int open_one(struct spa_link_config cfg, const char *url, struct spa_clouds *clouds, const struct spa_plugin_file *plugin,
                    struct spa_link **out, char *why, size_t why_len)
{
    cfg.url = url;
    const int rc = spa_link_open(out, &cfg, why, why_len);
    if (rc != 0)
        return rc;
    const spa_Welcome *w = &spa_link_session(*out)->welcome;
    if ((!plugin || check_model(&plugin->plugin, w, url, why, why_len) == 0) && check_same_model(clouds, w, url, why, why_len) == 0)
        return 0;
    spa_link_close(*out);
    *out = NULL;
    return SPA_LINK_REFUSED;
}

static int open_first(const struct spa_connect *c, const struct spa_link_config *all, struct spa_clouds *clouds, const struct spa_plugin_file *plugin,
                      struct spa_link **out, char *why, size_t why_len)
{
    char url[URL_MAX];
    const char *at = url_list(c);
    bool any_lives = false;   /* may take us later */
    uint32_t soonest = UINT32_MAX, retry_ms = 0;
    struct spa_link_config cfg = *all;
    cfg.retry_ms = &retry_ms;
    snprintf(why, why_len, "no cloud of --cloud is left: each has refused this device, or broke the rules");   /* when none is tried */
    for (uint32_t i = 0;; i++) {
        const size_t len = strcspn(at, ",");
        if (i == SPA_CLOUDS_MAX || len == 0 || len >= sizeof url) {
            snprintf(why, why_len, "--cloud takes up to %d URLs with a comma between two, and none of them empty", SPA_CLOUDS_MAX);
            return SPA_LINK_REFUSED;
        }
        memcpy(url, at, len);
        url[len] = 0;
        if (!(clouds->refused & 1u << i)) {
            const int rc = open_one(cfg, url, clouds, plugin, out, why, why_len);
            if (rc == 0) {
                clouds->at = i;
                return 0;
            }
            clouds->refused |= rc == SPA_LINK_REFUSED ? 1u << i : 0;
            any_lives |= rc != SPA_LINK_REFUSED;
            if (rc != SPA_LINK_REFUSED && retry_ms < soonest)
                soonest = retry_ms;
        }
        clouds->later_ms = any_lives ? soonest : 0;
        if (!at[len])
            return any_lives ? -1 : SPA_LINK_REFUSED;
        at += len + 1;
    }
}

int spa_connect_again(const struct spa_connect *c, struct spa_clouds *clouds, const struct spa_plugin_file *plugin, float threshold,
                      size_t max_message, struct spa_link **out, char *why, size_t why_len)
{
    char key[KEY_MAX + 1];
    *out = NULL;
    int has_key = find_key(c, key, why, why_len);
    if (has_key < 0)
        return SPA_LINK_REFUSED;
    if (!c->cert_file != !c->key_file) {
        snprintf(why, why_len, "--cert-file and --key-file belong together");
        explicit_bzero(key, sizeof key);
        return SPA_LINK_REFUSED;
    }
    spa_Plugin announced = spa_Plugin_init_zero;
    float *gate = NULL;
    struct spa_link_config cfg = {
        .api_key = has_key ? key : NULL, .ca_file = c->ca_file, .cert_file = c->cert_file, .key_file = c->key_file, .client = "spa " SPA_VERSION, .max_message = max_message,
        .ping_s = (uint32_t)c->ping_s,
    };
    int rc = 0;
    if (plugin) {
        if (plugin->gate_w && !(gate = malloc(spa_gate_width(&plugin->plugin) * sizeof *gate))) {
            snprintf(why, why_len, "there is not enough memory for the plugin's gate");
            rc = SPA_LINK_REFUSED;
        } else {
            announce(plugin, threshold, &announced, gate);
        }
        cfg.plugin = &announced;
        cfg.gate = gate;
        cfg.basis = (const uint8_t *)plugin->basis;
        cfg.basis_len = plugin->basis ? spa_basis_floats(&plugin->plugin.shape) * sizeof(float) : 0;
        cfg.plugin_base = plugin->plugin.base_name[0] ? plugin->plugin.base_name : NULL;
    }
    if (rc == 0)
        rc = open_first(c, &cfg, clouds, plugin, out, why, why_len);
    explicit_bzero(key, sizeof key);
    free(gate);
    return rc;
}

int spa_connect_open(const struct spa_connect *c, const struct spa_plugin_file *plugin, float threshold, size_t max_message,
                     struct spa_link **out, char *why, size_t why_len)
{
    struct spa_clouds clouds = { 0 };
    return spa_connect_again(c, &clouds, plugin, threshold, max_message, out, why, why_len);
}

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

bool spa_connect_pause(struct spa_retry *r, int32_t retry_s)
{
    uint64_t jitter;
    if (retry_s == 0 || getrandom(&jitter, sizeof jitter, GRND_NONBLOCK) != sizeof jitter)
        return false;
    spa_retry_begin(r, now_ms(), (uint64_t)retry_s * 1000, jitter);
    const int64_t pause = spa_retry_next(r, now_ms());
    if (pause < 0)
        return false;
    nanosleep(&(struct timespec){ pause / 1000, (long)(pause % 1000) * 1000000 }, NULL);   /* a signal ends it */
    return true;
}

int spa_connect_until(struct spa_retry *r, int32_t retry_s, int (*attempt)(void *user, char *why, size_t why_len), void *user, bool (*stop)(void),
                      char *why, size_t why_len)
{
    for (int rc = -1; rc == -1;) {
        if (!spa_connect_pause(r, retry_s))
            return -1;
        if (stop && stop())
            return 1;
        rc = attempt(user, why, why_len);
        if (rc == 0)
            return 0;
    }
    return -1;
}

static int open_for_head(void *user, size_t max_message, struct spa_link **out, char *why, size_t why_len)
{
    return spa_connect_open(user, NULL, 0, max_message, out, why, why_len);
}

static bool pause_for_head(void *user, struct spa_retry *r) { return spa_connect_pause(r, ((const struct spa_connect *)user)->retry_s); }

int spa_connect_head(const struct spa_connect *c, int32_t where, struct spa_lm_head *h, struct spa_link *l, const char *cache_dir,
                     void (*progress)(void *user, uint64_t done, uint64_t of), void *user, char *why, size_t why_len)
{
    if (where == SPA_HEAD_LOCAL)
        return spa_lm_head_open(h, l, cache_dir, progress, user, why, why_len);
    return spa_lm_head_in_cloud(h, l, (struct spa_head_connect){ open_for_head, pause_for_head, (void *)(uintptr_t)c }, why, why_len);
}
