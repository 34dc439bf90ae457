/* store.h - whole files: in and out of memory, replaced so that a reader sees the old one or the new one and nothing between.
 *
 * Functions return 0, or -1 with one sentence in why: what failed, on which file, why, and what to do. */
#ifndef SPA_STORE_H
#define SPA_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SPA_WHY_MAX = 1024, SPA_SHA256_BYTES = 32, SPA_SHA256_HEX = 65 };   /* room for a path and a sentence; hex with its zero */

/* Reads a regular file of 1 to max_bytes bytes. *bytes is the caller's to free(). */
int spa_store_read(const char *path, size_t max_bytes, uint8_t **bytes, size_t *len, char *why, size_t why_len);

/* Replaces a file whole: temporary file beside it, write, fsync, rename, fsync of the folder. After -1 what was there before is
 * untouched and no temporary file is left. A symbolic link stays and its target is replaced; what exists and is no
 * regular file (a device, a folder) is refused.
 *   only_owner   mode 0600; otherwise the replaced file's mode, or what the umask says for a new one */
int spa_store_replace(const char *path, const void *bytes, size_t len, bool only_owner, char *why, size_t why_len);

/* 0, or -1 when a file cannot be made beside path: asks before long work whose result goes there. */
int spa_store_check_writable(const char *path, char *why, size_t why_len);

/* For those who write files piece by piece. -1 with "cannot WHAT 'PATH': cause; remedy" of an errno; and the folder of a file that was
 * renamed, to the disk. */
int  spa_store_complain(char *why, size_t why_len, const char *what, const char *path, int code);
void spa_store_sync_folder(const char *path);
/* The folder for what can be made again, made if need be (0700): named, or $XDG_CACHE_HOME/spa, ~/.cache/spa, /tmp/spa-cache-UID.
 * option: what the sentence tells people to use. */
int spa_store_cache_folder(const char *named, const char *option, char *out, size_t out_len, char *why, size_t why_len);

void spa_sha256(const void *bytes, size_t len, uint8_t hash[SPA_SHA256_BYTES]);
void spa_sha256_hex(const uint8_t hash[SPA_SHA256_BYTES], char hex[SPA_SHA256_HEX]);

#endif
