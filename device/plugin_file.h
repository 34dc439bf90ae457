/* plugin_file.h - a plugin between its file and memory, with every number in an array of its own that the caller may change. */
#ifndef SPA_PLUGIN_FILE_H
#define SPA_PLUGIN_FILE_H

#include "plugin.h"

/* What a file's first bytes say that it is. A pickle is a program that loading would run: we never do. */
enum spa_file_kind { SPA_FILE_GGUF, SPA_FILE_SAFETENSORS, SPA_FILE_PICKLE, SPA_FILE_UNKNOWN };
enum spa_file_kind spa_file_kind(const uint8_t *bytes, size_t len);

/* Zero-initialised it is empty and may be freed or closed. Arrays are malloc'd. */
struct spa_plugin_file {
    struct spa_plugin plugin;
    float *params;   /* spa_param_count floats in layout order */
    float *gate_w;   /* [2, spa_gate_width]; NULL without gate */
    float *gate_b;   /* [2]; NULL without bias */
    float *basis;    /* spa_basis_floats floats; NULL without basis or when the file does not hold it */
    bool   generic;  /* not in the file: while it has no basis yet, it wants the cloud's generic one */
};

/* Reads and checks a file, the basis' hash included. 0, or -1 with a sentence that names the file, the trouble and what to do;
 * then *f is empty. */
int  spa_plugin_file_load(const char *path, struct spa_plugin_file *f, char *why, size_t why_len);

/* The same from bytes; name is what the sentence calls them. */
int  spa_plugin_file_parse(const char *name, const uint8_t *bytes, size_t len, struct spa_plugin_file *f, char *why,
                           size_t why_len);

/* Replaces the file at path whole, mode 0600: a plugin is personal. 0, or -1 with a sentence. */
int  spa_plugin_file_save(const char *path, const struct spa_plugin_file *f, char *why, size_t why_len);

/* Frees the arrays and empties *f; NULL is fine. */
void spa_plugin_file_free(struct spa_plugin_file *f);

#endif
