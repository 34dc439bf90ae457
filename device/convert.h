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

/* Converts the file `in` to the file `out`, in the direction that the first bytes of `in` ask for; *from gets what `in` was and
 * *plugin the plugin that was read or written, empty after -1. 0, or -1 with a sentence. */
int spa_convert_file(const char *in, const char *out, enum spa_mode mode, const char *base_name, enum spa_file_kind *from,
                     struct spa_plugin_file *plugin, char *why, size_t why_len);

#endif
