/* peft.h - a plugin as the folder in which adapter libraries pass adapters around.
 *
 *   adapter_config.json         peft_type "SPA" and what PLUGIN.md's keys say, under the same names without "spa."
 *   adapter_model.safetensors   the tensors under the names of the plugin file, matrices in F32 or F16
 *   README.md                   a model card, for people
 *
 * PLUGIN.md describes it. Nothing in a folder that is read is trusted more than a plugin file. */
#ifndef SPA_PEFT_H
#define SPA_PEFT_H

#include "plugin_file.h"

/* Makes the folder, whole or not at all; it must not exist yet, or be empty. 0, or -1 with a sentence. */
int spa_peft_save(const char *folder, const struct spa_plugin_file *f, char *why, size_t why_len);

/* 0 and *f is the caller's to free, or -1 with a sentence. Numbers are checked when the plugin is saved (spa_plugin_file_save). */
int spa_peft_load(const char *folder, struct spa_plugin_file *f, char *why, size_t why_len);

#endif
