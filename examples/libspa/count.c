/* Says how large a plugin is. cc count.c $(pkg-config --cflags --libs spa), or the CMakeLists.txt beside it. */
#include <spa/plugin_file.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    struct spa_plugin_file f = { 0 };
    char why[1024] = "usage: count PLUGIN";
    if (argc != 2 || spa_plugin_file_load(argv[1], &f, why, sizeof why) != 0)
        return fprintf(stderr, "%s\n", why), 1;
    printf("%zu numbers, rank %u, for a model of width %u\n", spa_param_count(&f.plugin.shape), f.plugin.shape.r, f.plugin.shape.d);
    spa_plugin_file_free(&f);
}
