/* models.h - what local clients choose by name: plugins, each on a line of its own, and the base model. Takes up a plugin file that was
 * replaced, between two requests: the new one when it is sound and the cloud takes it, else the old one stays.
 *
 * For the thread of the sockets alone. */
#ifndef SPA_MODELS_H
#define SPA_MODELS_H

#include "line.h"

enum { SPA_MODELS_MAX = 16, SPA_MODEL_NAME_MAX = 127 };

struct spa_models;

struct spa_models_config {
    struct spa_line_config line;             /* its features are set here */
    void (*log)(const char *sentence);
};

/* spec: FILE or NAME=FILE; the name of a file is its own without folder and ending. The file has to be there and sound.
 * 0, or -1 with one sentence. */
struct spa_models *spa_models_new(const struct spa_models_config *cfg);   /* NULL: no memory */
int  spa_models_add(struct spa_models *m, const char *spec, char *why, size_t why_len);
/* Waits until every line is open, and names the base model. 0, or -1 with the sentence of one that could not be opened. */
int  spa_models_open(struct spa_models *m, char *why, size_t why_len);
/* Finds the model (NULL: the first) and submits; the job is held by the line. */
enum spa_models_found { SPA_MODELS_TAKEN, SPA_MODELS_UNKNOWN, SPA_MODELS_NO_MEMORY };
enum spa_models_found spa_models_ask(struct spa_models *m, struct spa_question *q, void (*wake)(void *user), void *user,
                                     struct spa_job **job, const char **name);
void spa_models_rouse(struct spa_models *m);         /* a job was cancelled */
void spa_models_look(struct spa_models *m);          /* from time to time: ends lines that are no longer used */
/* i-th name, plugins first, the base model last; NULL beyond. */
const char *spa_models_name(const struct spa_models *m, size_t i, bool *is_base);
bool spa_models_connected(struct spa_models *m, char *why, size_t why_len);   /* all lines; otherwise why not */
struct spa_models_counts { struct spa_line_counts lines; uint64_t reloads, reloads_refused; uint32_t lost; };
struct spa_models_counts spa_models_counts(struct spa_models *m);
void spa_models_free(struct spa_models *m);

#endif
