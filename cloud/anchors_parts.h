/* anchors_parts.h - what anchors.c (demand, making) and anchors_file.c (files) share. */
#ifndef SPA_ANCHORS_PARTS_H
#define SPA_ANCHORS_PARTS_H

#include "anchors.h"
#include "ladder.h"

#include <limits.h>

enum { ANCHOR_HASH = 32 };

/* A prompt and, once it is known, the answer behind it. */
struct anchor_text {
    int32_t *tokens;               /* [n_prompt + SPA_ANCHOR_ANSWER] */
    uint32_t n_prompt, n_tokens;   /* equal: no answer yet */
};

/* One anchor's record in one set. Bytes: n_prompt u32 | n_tokens u32 | tokens i32[] | taps | y_fin, where taps are groups
 * [n_tokens - 1, n_layers], y_fin groups [n_tokens - n_prompt], and a group is the state's root mean square f32 | state / that, f16[d]:
 * states of some models are beyond what f16 holds. */
struct anchor_entry {
    uint8_t *block;                /* in memory, not in the file yet; or NULL */
    const uint8_t *mapped;         /* in the file; or NULL */
    size_t   len;
    uint8_t  hash[ANCHOR_HASH];
    bool     checked;              /* mapped has its hash */
    bool     wanted, running, failed;
};

struct spa_anchor_set {
    struct spa_anchors *owner;
    uint32_t layers[SPA_MAX_LAYERS + 1], n_layers;
    uint32_t users, n_wanted, n_running;
    uint64_t last_used;
    struct anchor_entry *entries;  /* [n] */
    uint8_t *map;                  /* the file; NULL: none */
    size_t   map_len;
    bool     dirty;                /* blocks that are to go into the file */
};

/* A set's file being written beside its final name, an anchor at a time. */
struct anchor_writer {
    struct spa_anchor_set *set;    /* NULL: nothing is written */
    int      fd;
    char     path[PATH_MAX], temporary[PATH_MAX + 8];
    uint32_t next;
    uint64_t at;
    uint8_t *head;
};

enum job_phase { JOB_FREE, JOB_ANSWER, JOB_HEAD, JOB_STATES };

struct anchor_job {
    enum job_phase phase;
    struct spa_anchor_set *set;
    uint32_t number, seq, cells;
    int32_t *tokens;
    uint32_t n_prompt, n_tokens, n_past, n_run;   /* n_run: rows in the batch that is decoded now */
    float   *state;                /* [d] what the head is to turn into a token */
    uint8_t *record;
    size_t   record_len;
};

enum { ANCHOR_JOBS = 8 };

struct spa_anchors {
    const struct spa_model *model;
    struct spa_anchors_seats seats;
    struct anchor_text *texts;     /* [n] */
    uint32_t n;
    uint8_t  key[ANCHOR_HASH];     /* of the model, the prompts' tokens and the format */
    char    *folder;               /* NULL: memory alone */
    bool     answers_dirty;
    struct spa_anchor_set *sets[SPA_ANCHOR_SETS];
    uint64_t clock;
    uint32_t next_set;
    size_t   block_bytes;
    struct anchor_job jobs[ANCHOR_JOBS];
    struct anchor_writer writer;
    float   *states, *logits;      /* [ANCHOR_JOBS, d], [ANCHOR_JOBS, n_vocab] */
    spa_log_fn *log;
    void *log_user;
};

/* anchors.c */
void   anchors_log(const struct spa_anchors *a, enum spa_log_level level, const char *fmt, ...);
size_t anchor_group_bytes(const struct spa_anchors *a);
size_t anchor_record_bytes(const struct spa_anchor_set *s, uint32_t n_prompt, uint32_t n_tokens);
void   anchor_hash(const void *bytes, size_t len, uint8_t hash[ANCHOR_HASH]);
void   anchor_drop_block(struct spa_anchor_set *s, struct anchor_entry *e);

/* anchors_file.c: a folder that cannot be used any more is given up with a line in the log. */
void anchors_read_answers(struct spa_anchors *a);
void anchors_write_answers(struct spa_anchors *a);
void anchors_map(struct spa_anchor_set *s);           /* its entries' mapped records, as far as the file is whole */
void anchors_unmap(struct spa_anchor_set *s);
void anchors_write_begin(struct spa_anchor_set *s);
void anchors_write_step(struct spa_anchors *a);
void anchors_write_abort(struct spa_anchors *a);

#endif
