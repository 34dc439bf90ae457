/* rows.h - training and evaluation rows from files (JSONL or a JSON array), in the forms that common trainers read:
 *
 *   {"messages": [{"role": "system|developer|user|assistant", "content": "..."}, ...]}        OpenAI
 *   {"conversations": [{"from": "system|human|gpt", "value": "..."}, ...], "system": "..."}   ShareGPT; role and content work too
 *   {"instruction": "...", "input": "...", "output": "...", "system": "...", "history": [["q", "a"], ...]}    alpaca: user turn (instruction,
 *                                                                                              blank line, input), then output
 *   {"prompt": [turns], "completion": [turns]}                                                 only the completion's answers carry loss
 *   {"prompt": "...", "completion": "..."}                                                     raw text; the completion carries loss
 *   {"text": "..."}                                                                            raw text; every token but the first carries loss
 *
 * A turn's text may also be a list of one {"type": "text", "text": "..."}. Where the table does not say otherwise, every answer of the
 * assistant carries loss, unless it has "weight": 0 or "train": false. An empty system prompt is none. The form is told apart by the
 * file itself, row by row. A bad row is named by file, line and field; nothing is guessed. */
#ifndef SPA_ROWS_H
#define SPA_ROWS_H

#include "wire.h"

struct spa_example {
    struct spa_part *parts;    /* the last one carries loss: the expected answer, or raw text */
    size_t           n_parts;
    const char      *file;     /* where it stood */
    uint32_t         line;     /* from 1; in a JSON array: of the row's opening brace or the row's number, see what says */
};

struct spa_rows {
    struct spa_example *rows;
    size_t n;
    void  *arena;              /* owns everything */
};

/* Reads all files into one list. 0, or -1 with one sentence. An empty file is an error. */
int  spa_rows_read(const char *const *paths, size_t n_paths, struct spa_rows *out, char *why, size_t why_len);
/* The same of a text that is in memory; name is what sentences call it. */
int  spa_rows_parse(const char *name, const char *text, size_t len, struct spa_rows *out, char *why, size_t why_len);
/* From now on only each row's last answer carries loss. */
void spa_rows_last_answer_only(struct spa_rows *r);
void spa_rows_free(struct spa_rows *r);

/* Moves a seeded random share (0..1, at least one row when > 0) from rows to held. Order is kept in both. */
int  spa_rows_hold_back(struct spa_rows *rows, float share, uint64_t seed, struct spa_rows *held, char *why, size_t why_len);

#endif
