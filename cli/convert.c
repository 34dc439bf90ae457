/* convert.c - `spa convert`: plugin file to the authors' safetensors checkpoint, or back (device/convert.h). */
#include "commands.h"
#include "convert.h"
#include "options.h"
#include "store.h"

#include <stdio.h>

int spa_cmd_convert(int argc, char **argv)
{
    int32_t mode = SPA_REPLACE;
    const char *base_name = "";
    const struct spa_option options[] = {
        { "mode", NULL, "replace|add", "how a checkpoint's states make logits (replace, as the authors do)",
          SPA_OPT_CHOICE, &mode, 0, 0 },
        { "base-name", NULL, "NAME", "base model that a checkpoint belongs to, for people", SPA_OPT_STRING, &base_name, 0, 0 },
    };
    const struct spa_usage usage = {
        "spa convert", "IN OUT",
        "Makes a plugin file of a safetensors checkpoint in the form that the authors of SPA publish, or such a checkpoint\n"
        "of a plugin file; which of the two, the first bytes of IN tell. The weights stay the same to the bit.",
        options, sizeof options / sizeof options[0], 2, 2,
    };
    int n_positional, rc = spa_options_parse(&usage, argc, argv, &n_positional);
    if (rc != SPA_OPTIONS_GO)
        return rc;
    char why[SPA_WHY_MAX];
    enum spa_file_kind from;
    struct spa_plugin_file plugin;
    if (spa_convert_file(argv[0], argv[1], (enum spa_mode)mode, base_name, &from, &plugin, why, sizeof why) != 0) {
        fprintf(stderr, "spa convert: %s\n", why);
        return 1;
    }
    const struct spa_shape *s = &plugin.plugin.shape;
    printf("%s: %s, %u layers, d %u, r %u, %zu weights%s\n", argv[1], from == SPA_FILE_GGUF ? "safetensors checkpoint" : "plugin file",
           s->n_layers, s->d, s->r, spa_param_count(s), plugin.plugin.has_gate ? ", gate" : "");
    if (from == SPA_FILE_GGUF && s->mode == SPA_ADD)
        fprintf(stderr, "spa convert: note that a checkpoint does not say that its states are added: convert it back with --mode add\n");
    spa_plugin_file_free(&plugin);
    return 0;
}
