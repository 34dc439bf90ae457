/* convert.h - between our plugin file and the checkpoint that the authors of SPA publish (safetensors), bit for bit in F32.
 *
 * Their form: every layer is a tap, raw and d wide; the gate, when there is one, has no bias and the threshold 0.5. Their names,
 * with ours:  ladder_side.input_adapter = W.0, b.0;  ladder_side.down_adapters.i = W.i+1, b.i+1;
 * ladder_side.side_adapters.i.adapter_h_to_r = U.i+1, c.i+1;  .adapter_r_to_h = V.i+1, e.i+1;
 * ladder_side.output_adapter = W_out, b_out;  opt.weight = gate.weight. Each is followed by .weight or .bias. */
#ifndef SPA_CONVERT_H
#define SPA_CONVERT_H

#include "plugin_file.h"

/* Reads a checkpoint's bytes; N, d, r and m come from its tensors' shapes. F16 and BF16 are widened. The checkpoint does not say
 * how logits are made (mode) nor on which base (base_name, may be ""). name is what a sentence calls the bytes.
 * 0 and *out is the caller's to free, or -1 with a sentence. */
int spa_convert_from_checkpoint(const char *name, const uint8_t *bytes, size_t len, enum spa_mode mode, const char *base_name,
                                struct spa_plugin_file *out, char *why, size_t why_len);

/* Writes a checkpoint; *bytes is the caller's to free(). 0, or -1 with a sentence when the plugin has what their form has not. */
int spa_convert_to_checkpoint(const char *name, const struct spa_plugin_file *f, uint8_t **bytes, size_t *len, char *why,
                              size_t why_len);

/* The forms of a plugin on a disk: our file, the authors' checkpoint, a folder as adapter libraries have it (peft.h). */
enum spa_form { SPA_FORM_BY_NAME, SPA_FORM_PLUGIN, SPA_FORM_CHECKPOINT, SPA_FORM_FOLDER };

struct spa_convert_wishes {
    enum spa_form to;        /* BY_NAME: a folder when `out` is one or ends in '/', a checkpoint when it ends in .safetensors or a plugin file
                                is to become something that does not end in .gguf, else a plugin file */
    int weights;             /* enum spa_dtype of the matrices in `out`; -1: as they are in `in` */
    enum spa_mode mode;      /* of a checkpoint, which says neither */
    const char *base_name;
};
struct spa_convert_done { enum spa_form from, to; };

/* Converts `in`, which the first bytes or the folder's files tell apart, to `out`. *plugin: what was read, empty after -1.
 * 0, or -1 with a sentence. */
int spa_convert_file(const char *in, const char *out, const struct spa_convert_wishes *w, struct spa_convert_done *done,
                     struct spa_plugin_file *plugin, char *why, size_t why_len);

#endif
