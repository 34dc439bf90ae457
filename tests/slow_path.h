/* slow_path.h - a TCP proxy that holds every piece of bytes back for some milliseconds, drawn from a seed and bounded: the round trip of
 * a test. One thread for each direction of each connection; what comes while one sleeps goes with the next piece. */
#ifndef SPA_SLOW_PATH_H
#define SPA_SLOW_PATH_H

#include "sample.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SLOW_LINES = 256 };

struct slow_line {                /* one direction */
    struct slow_path *path;
    int from, to;
    uint64_t seed;
    pthread_t thread;
};

struct slow_path {
    int port, listener, target_port;
    uint32_t min_us, max_us;
    uint64_t seed;
    struct slow_line lines[SLOW_LINES];
    int fds[SLOW_LINES];
    int n_lines;
    pthread_t thread;
    char url[64];
};

static void *slow_line_run(void *arg)
{
    struct slow_line *l = arg;
    char bytes[65536];
    ssize_t n;
    for (uint64_t i = 0; (n = recv(l->from, bytes, sizeof bytes, 0)) > 0; i++) {
        const uint64_t us = l->path->min_us + spa_noise64(l->path->seed, l->seed, i) % (l->path->max_us - l->path->min_us + 1);
        nanosleep(&(struct timespec){ 0, (long)us * 1000 }, NULL);
        for (ssize_t at = 0, sent; at < n; at += sent)
            if ((sent = send(l->to, bytes + at, (size_t)(n - at), MSG_NOSIGNAL)) <= 0)
                n = 0, sent = 1;
    }
    shutdown(l->to, SHUT_WR);
    shutdown(l->from, SHUT_RD);
    return NULL;
}

static void slow_line_start(struct slow_path *p, int from, int to)
{
    struct slow_line *l = &p->lines[p->n_lines];
    p->fds[p->n_lines] = from;
    *l = (struct slow_line){ .path = p, .from = from, .to = to, .seed = (uint64_t)p->n_lines };
    if (pthread_create(&l->thread, NULL, slow_line_run, l) == 0)
        p->n_lines++;
}

static void *slow_path_run(void *arg)
{
    struct slow_path *p = arg;
    int near;
    while (p->n_lines + 2 <= SLOW_LINES && (near = accept(p->listener, NULL, NULL)) >= 0) {
        struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)p->target_port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        const int far = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(far, (struct sockaddr *)&a, sizeof a) != 0)
            abort();
        slow_line_start(p, near, far);
        slow_line_start(p, far, near);
    }
    return NULL;
}

static void slow_path_start(struct slow_path *p, int target_port, uint32_t min_us, uint32_t max_us, uint64_t seed)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t len = sizeof a;
    memset(p, 0, sizeof *p);
    p->target_port = target_port;
    p->min_us = min_us;
    p->max_us = max_us;
    p->seed = seed;
    p->listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(p->listener, (struct sockaddr *)&a, sizeof a) != 0 || listen(p->listener, 16) != 0 ||
        getsockname(p->listener, (struct sockaddr *)&a, &len) != 0 || pthread_create(&p->thread, NULL, slow_path_run, p) != 0)
        abort();
    p->port = ntohs(a.sin_port);
    snprintf(p->url, sizeof p->url, "ws://127.0.0.1:%d", p->port);
}

static void slow_path_stop(struct slow_path *p)
{
    shutdown(p->listener, SHUT_RDWR);
    pthread_join(p->thread, NULL);
    close(p->listener);
    for (int i = 0; i < p->n_lines; i++)
        shutdown(p->fds[i], SHUT_RDWR);
    for (int i = 0; i < p->n_lines; i++)
        pthread_join(p->lines[i].thread, NULL);
    for (int i = 0; i < p->n_lines; i++)
        close(p->fds[i]);
}

#endif
