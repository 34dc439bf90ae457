/* test_folder.h - a folder of a test's own under TMPDIR, made before each test and removed with its files after it. */
#ifndef SPA_TEST_FOLDER_H
#define SPA_TEST_FOLDER_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char folder[256];

static int folder_make(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/spa-test-XXXXXX", tmp ? tmp : "/tmp");
    return mkdtemp(folder) ? 0 : -1;
}

/* A teardown for cmocka. */
static int folder_remove(void **state)
{
    (void)state;
    char name[600];
    struct dirent *entry;
    DIR *dir = opendir(folder);
    while (dir && (entry = readdir(dir))) {
        snprintf(name, sizeof name, "%s/%s", folder, entry->d_name);
        unlink(name);
    }
    if (dir)
        closedir(dir);
    return rmdir(folder);
}

static int folder_n_files(void)
{
    int n = 0;
    DIR *dir = opendir(folder);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n - 2;   /* . and .. */
}

#endif
