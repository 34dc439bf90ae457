/* peer_hello.c - in: HELLO, BLOB and FETCH of a connection. out: WELCOME or a refusal; the connection's basis; pieces of blobs. */
#include "engine_parts.h"
#include "secret.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- bases ---- */

static void take_basis(struct peer *p, struct spa_basis *b)
{
    spa_bases_put(p->basis);
    p->basis = b;
    spa_host_basis_here(&p->host);
}

void peer_blob(struct peer *p, const struct spa_message *m)
{
    const spa_Blob *b = &m->head.blob;
    const struct spa_shape *shape = &p->host.shape;
    const size_t n = spa_basis_floats(shape), total = n * sizeof(float);
    if (!p->upload)
        p->upload = malloc(total);
    if (!p->upload) {
        spa_host_error(&p->host, 0, spa_Code_INTERNAL, "the cloud is out of memory; try again later");
        return;
    }
    if (b->total != total || b->offset != p->upload_len || m->bulk_len > total - p->upload_len) {
        spa_host_error(&p->host, 0, spa_Code_BAD_MESSAGE, "the basis did not come in order and whole; reconnect");
        return;
    }
    memcpy(p->upload + p->upload_len, m->bulk, m->bulk_len);
    p->upload_len += m->bulk_len;
    if (p->upload_len < total)
        return;
    float *floats = (float *)(void *)p->upload;
    p->upload = NULL;
    if (spa_basis_check(shape, floats) != SPA_OK) {
        spa_secret_free(floats, total);
        spa_host_error(&p->host, 0, spa_Code_BAD_SHAPE, "the basis holds numbers that are not finite, or a scale that is not positive; the plugin file is damaged");
        return;
    }
    struct spa_basis *basis = spa_bases_add(&p->engine->bases, floats, n);
    if (!basis || memcmp(basis->hash, p->basis_hash, SPA_HASH_BYTES) != 0) {
        spa_bases_put(basis);
        spa_host_error(&p->host, 0, basis ? spa_Code_BAD_MESSAGE : spa_Code_BUSY,
                       basis ? "the basis does not have the hash that was announced; the plugin file is damaged"
                             : "the cloud holds as many bases as it can; try again later");
        return;
    }
    take_basis(p, basis);
}

void peer_fetch(struct peer *p, const struct spa_message *m)
{
    const spa_Fetch *f = &m->head.fetch;
    const struct spa_model_info *info = &p->engine->model->info;
    const bool head = f->kind == spa_BlobKind_BLOB_HEAD;
    const uint8_t *hash = head ? info->head_hash : p->basis ? p->basis->hash : NULL;
    const uint8_t *bytes = head ? info->head_bytes : p->basis ? (const uint8_t *)p->basis->floats : NULL;
    const size_t total = head ? info->head_len : p->basis ? p->basis->n * sizeof(float) : 0;
    if (!hash || f->hash.size != SPA_HASH_BYTES || memcmp(hash, f->hash.bytes, SPA_HASH_BYTES) != 0 || f->offset >= total) {
        spa_host_error(&p->host, 0, spa_Code_NOT_FOUND, "the cloud has no such blob; reconnect and take its hash from WELCOME or FITTED");
        return;
    }
    const size_t left = total - (size_t)f->offset, n = left < SPA_BLOB_PIECE ? left : SPA_BLOB_PIECE;
    spa_Blob b = { .kind = f->kind, .offset = f->offset, .total = total };
    b.hash.size = SPA_HASH_BYTES;
    memcpy(b.hash.bytes, hash, SPA_HASH_BYTES);
    spa_host_blob(&p->host, &b, bytes + f->offset, n);
}

void peer_say_fitted(struct peer *p, struct spa_basis *b, uint32_t n_states)
{
    take_basis(p, b);
    spa_Fitted f = { .total = b->n * sizeof(float), .n_states = n_states };
    f.hash.size = SPA_HASH_BYTES;
    memcpy(f.hash.bytes, b->hash, SPA_HASH_BYTES);
    spa_host_fitted(&p->host, &f);
}

/* Right after WELCOME. floats is taken over. */
static void give_generic(struct peer *p, float *floats)
{
    struct spa_basis *b = spa_bases_add(&p->engine->bases, floats, spa_basis_floats(&p->host.shape));
    if (b)
        peer_say_fitted(p, b, spa_generic_states(p->engine->cfg.generic));
    else
        spa_host_error(&p->host, 0, spa_Code_BUSY, "the cloud holds as many bases as it can; try again later");
}

/* ---- HELLO ---- */

void peer_hello(struct peer *p, const struct spa_message *m)
{
    struct spa_engine *e = p->engine;
    const struct spa_model_info *info = &e->model->info;
    const spa_Hello *h = &m->head.hello;
    const struct spa_shape *shape = &p->host.shape;
    if (h->has_plugin) {
        const spa_Plugin *pl = &h->plugin;
        char why[320];
        if (shape->d != info->d || shape->n_layers != info->n_layers) {
            snprintf(why, sizeof why, "the plugin is for a model of width %u with %u layers, and this cloud serves %s (width %u, %u layers); use the "
                     "plugin's own base model or train again", shape->d, shape->n_layers, info->name, info->d, info->n_layers);
            spa_host_error(&p->host, 0, spa_Code_BAD_SHAPE, why);
            return;
        }
        if (pl->model_hash.size == SPA_HASH_BYTES && memcmp(pl->model_hash.bytes, info->hash, SPA_HASH_BYTES) != 0) {
            snprintf(why, sizeof why, "the plugin was trained for another model than this cloud's %s; use the plugin's own base model or train again", info->name);
            spa_host_error(&p->host, 0, spa_Code_WRONG_MODEL, why);
            return;
        }
        const size_t context = info->n_ctx_slot * spa_wire_ctx_row_bytes(shape, p->host.tap_dtype);
        if (context > e->cfg.max_out / 2) {
            snprintf(why, sizeof why, "the context taps of a full prompt need %zu MB at once and the cloud queues %zu; use a basis, fewer context taps "
                     "or --context none", context >> 20, e->cfg.max_out >> 21);
            spa_host_error(&p->host, 0, spa_Code_TOO_LARGE, why);
            return;
        }
        const size_t need = spa_wire_row_bytes(shape, p->host.tap_dtype) + spa_wire_ctx_row_bytes(shape, p->host.tap_dtype) + SPA_HEAD_MAX;
        if (need > h->max_message || !engine_fit_rows(e, shape, p->host.tap_dtype)) {
            snprintf(why, sizeof why, "a token's taps need %zu bytes in one message and the device takes %u; tap fewer layers or use a basis", need, h->max_message);
            spa_host_error(&p->host, 0, spa_Code_TOO_LARGE, why);
            return;
        }
        if (pl->has_gate) {
            p->gate = malloc(m->bulk_len);
            if (!p->gate) {
                spa_host_error(&p->host, 0, spa_Code_INTERNAL, "the cloud is out of memory; try again later");
                return;
            }
            p->gate_taps = pl->gate_taps;
            p->gate_bytes = m->bulk_len;
            memcpy(p->gate, m->bulk, m->bulk_len);
            p->gate_bias = pl->gate_bias;
        }
        if (shape->basis && pl->basis_hash.size == SPA_HASH_BYTES) {
            memcpy(p->basis_hash, pl->basis_hash.bytes, SPA_HASH_BYTES);
            p->basis = spa_bases_get(&e->bases, pl->basis_hash.bytes, spa_basis_floats(shape));
        }
    }
    float *generic = NULL;
    if (p->host.generic) {
        char why[256];
        if (!e->cfg.generic || !(generic = spa_generic_basis(e->cfg.generic, shape))) {
            spa_generic_why_not(e->cfg.generic, shape, why, sizeof why);
            spa_host_error(&p->host, 0, spa_Code_BAD_REQUEST, why);
            return;
        }
    }
    spa_Welcome w = { .n_anchors = spa_anchors_n(e->cfg.anchors), .d = info->d, .n_layers = info->n_layers, .n_vocab = (uint32_t)info->n_vocab, .n_ctx = info->n_ctx_slot,
                      .head_type = info->head_type, .head_bytes = info->head_len, .logit_scale = info->logit_scale, .softcap = info->softcap,
                      .tokens_per_minute = e->cfg.tokens_per_minute };
    snprintf(w.server, sizeof w.server, "%s", e->cfg.server);
    snprintf(w.model, sizeof w.model, "%s", info->name);
    w.model_hash.size = w.head_hash.size = SPA_HASH_BYTES;
    memcpy(w.model_hash.bytes, info->hash, SPA_HASH_BYTES);
    memcpy(w.head_hash.bytes, info->head_hash, SPA_HASH_BYTES);
    const bool need_basis = h->has_plugin && shape->basis && h->plugin.basis_hash.size == SPA_HASH_BYTES && !p->basis;
    if (spa_host_welcome(&p->host, &w, need_basis) == SPA_OK)
        engine_log(e, "connection %u: hello%s", p->number, h->has_plugin ? ", with a plugin" : "");
    if (generic)
        give_generic(p, generic);
}
