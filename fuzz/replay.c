/* replay.c - runs a fuzz target once on each file that is named, or that lies in a folder that is named: what was found stays fixed, and
 * the kept corpora count in the coverage of readers. Needs no libFuzzer.
 *
 *   replay_TARGET FILE-OR-FOLDER... */
#include <dirent.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static int replay(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END) != 0) {
        perror(path);
        return 1;
    }
    const size_t len = (size_t)ftell(f);
    uint8_t *bytes = malloc(len ? len : 1);
    rewind(f);
    const size_t got = fread(bytes, 1, len, f);
    fclose(f);
    LLVMFuzzerTestOneInput(bytes, got);
    free(bytes);
    return got != len;
}

int main(int argc, char **argv)
{
    int n = 0, bad = argc < 2;
    for (int i = 1; i < argc; i++) {
        struct stat st;
        if (stat(argv[i], &st) == 0 && !S_ISDIR(st.st_mode)) {
            bad |= replay(argv[i]);
            n++;
            continue;
        }
        struct dirent **names;
        const int found = scandir(argv[i], &names, NULL, alphasort);
        for (int k = 0; k < found; k++) {
            char path[PATH_MAX];
            snprintf(path, sizeof path, "%s/%s", argv[i], names[k]->d_name);
            if (stat(path, &st) == 0 && S_ISREG(st.st_mode)) {
                bad |= replay(path);
                n++;
            }
            free(names[k]);
        }
        if (found >= 0)
            free(names);
        bad |= found < 0;
    }
    printf("%d inputs\n", n);
    return bad || n == 0;
}
