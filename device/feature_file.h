/* feature_file.h - the frozen model's states of training rows in one file that is mapped: written whole or not at all, read again by
 * later runs, added to row by row (feature_format.h: its bytes).
 *
 * Records are appended to PATH.part as they come, which is locked while it is ours; at the end PATH.part takes PATH's name. What a
 * run that was cut off has left in PATH.part is taken over, record by record. Files have mode 0600. A path of NULL is a file
 * without a name, gone with the run.
 *
 *   open --use--> records are found, and added --finish--> records have bytes --close
 *     `--start--'  (a new file: when use found nothing of use)
 *
 * Functions return 0, or -1 with one sentence in why. */
#ifndef SPA_FEATURE_FILE_H
#define SPA_FEATURE_FILE_H

#include "feature_format.h"

struct spa_feature_file;

/* Locks PATH.part and reads PATH and PATH.part as far as they are good; that a file is not good is no error here. folder: where a
 * file without a name is made. -1: somebody else has it, or no file can be made there. */
int  spa_feature_file_open(struct spa_feature_file **out, const char *path, const char *folder, char *why, size_t why_len);
/* Removes PATH; before use also what an unfinished run has left. After finish the mapping stays. */
int  spa_feature_file_forget(struct spa_feature_file *f, char *why, size_t why_len);
/* Unlocks. An unfinished PATH.part stays when it holds a record. Takes NULL. */
void spa_feature_file_close(struct spa_feature_file *f);

/* The model of the file, or of PATH.part where there is no file; NULL when there is neither. Before use. */
const spa_Welcome *spa_feature_file_model(const struct spa_feature_file *f);
/* What is wrong with PATH: no feature file, another version, cut, damaged; of another model than `model`, of other taps than
 * `wanted` (either may be NULL: not compared). 0: nothing is, or there is none. */
int  spa_feature_file_check(const struct spa_feature_file *f, const spa_Welcome *model, const spa_Plugin *wanted, char *why, size_t why_len);

/* Would a run of the file's own model that wants these taps find all keys [n] of a kind, without a cloud? Before use. */
bool spa_feature_file_serves(const struct spa_feature_file *f, const spa_Plugin *wanted, enum spa_feature_kind kind,
                             const struct spa_feature_key *keys, size_t n);

/* Chooses what to go on from, for a run that needs the rows of keys [n]: PATH and what an unfinished run has added to it, when at
 * least half of the keys are there; else an unfinished run's new file, when it has any of them or no row at all. Nothing else fits
 * this run's states: their basis was fitted for other rows. -1: out of memory. *used: something was chosen. */
int  spa_feature_file_use(struct spa_feature_file *f, const spa_Welcome *model, const spa_Plugin *wanted, const struct spa_feature_key *keys,
                          size_t n, bool *used, char *why, size_t why_len);
/* A new file; its records are added from now on. PATH is untouched until finish. */
int  spa_feature_file_start(struct spa_feature_file *f, const spa_Welcome *model, const spa_Plugin *plugin, const float *basis, char *why,
                            size_t why_len);
/* What all records share; valid until finish. NULL before use or start. */
const struct spa_feature_base *spa_feature_file_base(const struct spa_feature_file *f);
/* How bulks are unpacked: shape and form are right, nothing else. */
const struct spa_session *spa_feature_file_wire(const struct spa_feature_file *f);

/* NULL: not there. Valid until the next add. */
const struct spa_feature_record *spa_feature_file_find(const struct spa_feature_file *f, enum spa_feature_kind kind,
                                                       const struct spa_feature_key *key);
/* Did a finished run leave it, so that it stays as it is? */
bool spa_feature_file_settled(const struct spa_feature_file *f, enum spa_feature_kind kind, const struct spa_feature_key *key);
/* Takes a record (at is set here) in place of an older one of the same kind and key. After -1 (a full disk) the file is as before. */
int  spa_feature_file_add(struct spa_feature_file *f, const struct spa_feature_record *r, const uint8_t *bulk, char *why, size_t why_len);
/* The keys of all records of a kind that have features, in an order that depends on the keys alone. *keys is malloc'd; their number, or
 * SIZE_MAX without memory. */
size_t   spa_feature_file_keys(const struct spa_feature_file *f, enum spa_feature_kind kind, struct spa_feature_key **keys);
uint64_t spa_feature_file_records(const struct spa_feature_file *f);
uint64_t spa_feature_file_added(const struct spa_feature_file *f);    /* in this run */
uint64_t spa_feature_file_bytes(const struct spa_feature_file *f);    /* without the footer */

/* Makes PATH whole on the disk, if anything was added, and maps it. No add after it. */
int  spa_feature_file_finish(struct spa_feature_file *f, char *why, size_t why_len);
/* After finish: r's bulk, in the mapping; read only. */
const uint8_t *spa_feature_file_bulk(const struct spa_feature_file *f, const struct spa_feature_record *r);

#endif
