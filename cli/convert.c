/* convert.c - `spa convert`: plugin file, the authors' safetensors checkpoint, adapter folder: each into each (device/convert.h). */
#include "commands.h"
#include "convert.h"
#include "options.h"
#include "store.h"

#include <stdio.h>

enum { AS_IT_IS = 3 };   /* of --type: after enum spa_dtype's */

static const char *const form_names[] = { [SPA_FORM_PLUGIN] = "plugin file", [SPA_FORM_CHECKPOINT] = "safetensors checkpoint",
                                          [SPA_FORM_FOLDER] = "adapter folder" };

int spa_cmd_convert(int argc, char **argv)
{
    int32_t mode = SPA_REPLACE, to = SPA_FORM_BY_NAME, type = AS_IT_IS;
    const char *base_name = "";
    const struct spa_option options[] = {
        { "to", NULL, "name|gguf|checkpoint|peft", "what to make: as OUT's name says, a plugin file, the authors' checkpoint, an adapter folder (default name)",
          SPA_OPT_CHOICE, &to, 0, 0 },
        { "type", NULL, "f32|f16|q8_0|same", "how OUT keeps the ladder's matrices (default same: as IN does)", SPA_OPT_CHOICE, &type, 0, 0 },
        { "mode", NULL, "replace|add", "how a checkpoint's states make logits (replace, as the authors do)",
          SPA_OPT_CHOICE, &mode, 0, 0 },
        { "base-name", NULL, "NAME", "base model that a checkpoint belongs to, for people", SPA_OPT_STRING, &base_name, 0, 0 },
    };
    const struct spa_usage usage = {
        "spa convert", "IN OUT",
        "Makes a plugin file (OUT ends in .gguf), a safetensors checkpoint as the authors of SPA publish it (.safetensors) or an adapter\n"
        "folder with adapter_config.json (OUT ends in / or is an empty folder) of any of the three. Weights stay the same to the bit,\n"
        "unless --type says otherwise.",
        options, sizeof options / sizeof options[0], 2, 2,
    };
    int n_positional, rc = spa_options_parse(&usage, argc, argv, &n_positional);
    if (rc != SPA_OPTIONS_GO)
        return rc;
    char why[SPA_WHY_MAX];
    const struct spa_convert_wishes wishes = { (enum spa_form)to, type == AS_IT_IS ? -1 : type, (enum spa_mode)mode, base_name };
    struct spa_convert_done done;
    struct spa_plugin_file plugin;
    if (spa_convert_file(argv[0], argv[1], &wishes, &done, &plugin, why, sizeof why) != 0) {
        fprintf(stderr, "spa convert: %s\n", why);
        return 1;
    }
    const struct spa_shape *s = &plugin.plugin.shape;
    printf("%s: %s, %u layers, d %u, r %u, %zu weights%s\n", argv[1], form_names[done.to],
           s->n_layers, s->d, s->r, spa_param_count(s), plugin.plugin.has_gate ? ", gate" : "");
    if (done.to == SPA_FORM_CHECKPOINT && s->mode == SPA_ADD)
        fprintf(stderr, "spa convert: note that a checkpoint does not say that its states are added: convert it back with --mode add\n");
    spa_plugin_file_free(&plugin);
    return 0;
}
