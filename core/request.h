/* request.h - is what a device asks for something that can be done at all? The contents of GENERATE and LEARN.
 *
 * Conversation rules (ids in use, too many at once, no basis yet) are host.c's. */
#ifndef SPA_REQUEST_H
#define SPA_REQUEST_H

#include "wire.h"

/* SPA_OK; SPA_ERR_FORMAT: the parts are malformed, the connection is to be closed; SPA_ERR_RANGE: this request is refused
 * and *why is one sentence for its owner (a constant).
 * A repeat_penalty of 0 (unset) becomes 1. n_vocab bounds the confirmed tokens. */
enum spa_err spa_request_check_generate(spa_Generate *g, const uint8_t *bulk, size_t bulk_len, bool has_plugin,
                                        uint32_t n_vocab, const char **why);
enum spa_err spa_request_check_learn(const uint8_t *bulk, size_t bulk_len, const char **why);

/* Well-formed UTF-8 without a zero byte: what reaches a template or a tokenizer. */
bool spa_text_check(const uint8_t *text, size_t len);

#endif
