/* line.c - in: connections and bytes. out: the same bytes at the other end, late (line.h).
 *
 * A connection is two directions; each reads from one socket and has a queue of pieces that are due at some time. One ppoll waits for
 * all sockets and the earliest piece. Writing blocks: both ends are on this machine and read what they get. */
#define _GNU_SOURCE
#include "line.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { DIRECTIONS_MAX = 512, PIECE = 64 * 1024 };

struct piece {
    struct piece *next;
    int64_t due_us;
    size_t len;          /* 0: the end */
    uint8_t bytes[];
};

struct direction {
    int from, to;
    bool read_ended, done;
    struct piece *head, *tail;
};

struct spa_line {
    pthread_t thread;
    int listener;
    uint16_t target;
    int64_t delay_us;
    atomic_bool stop;
    struct direction ways[DIRECTIONS_MAX];
    size_t n_ways;
    uint8_t buffer[PIECE];
};

static int64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void no_delay(int fd)
{
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static void take_connection(struct spa_line *l)
{
    const struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(l->target), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    const int near = accept4(l->listener, NULL, NULL, SOCK_CLOEXEC), far = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (near < 0 || far < 0 || l->n_ways + 2 > DIRECTIONS_MAX || connect(far, (const struct sockaddr *)&to, sizeof to) != 0) {
        if (near >= 0)
            close(near);
        if (far >= 0)
            close(far);
        return;
    }
    no_delay(near);
    no_delay(far);
    l->ways[l->n_ways++] = (struct direction){ .from = near, .to = far };
    l->ways[l->n_ways++] = (struct direction){ .from = far, .to = near };
}

static void take_piece(struct spa_line *l, struct direction *w)
{
    const ssize_t n = recv(w->from, l->buffer, PIECE, 0);
    const size_t len = n > 0 ? (size_t)n : 0;
    struct piece *p = malloc(sizeof *p + len);
    w->read_ended = !p || len == 0;
    if (!p)
        return;
    *p = (struct piece){ NULL, now_us() + l->delay_us, len };
    memcpy(p->bytes, l->buffer, len);
    if (w->tail)
        w->tail->next = p;
    else
        w->head = p;
    w->tail = p;
}

/* Hands on what is due. */
static void give(struct direction *w, int64_t now)
{
    while (w->head && w->head->due_us <= now) {
        struct piece *p = w->head;
        w->head = p->next;
        if (!w->head)
            w->tail = NULL;
        size_t at = 0;
        while (at < p->len) {
            const ssize_t n = send(w->to, p->bytes + at, p->len - at, MSG_NOSIGNAL);
            if (n <= 0)
                break;
            at += (size_t)n;
        }
        if (p->len == 0 || at < p->len) {
            shutdown(w->to, SHUT_WR);
            w->done = true;
        }
        free(p);
    }
}

static void *run(void *arg)
{
    struct spa_line *l = arg;
    static const int64_t idle_us = 100000;
    struct pollfd fds[DIRECTIONS_MAX + 1];
    while (!atomic_load(&l->stop)) {
        int64_t next = now_us() + idle_us;
        const size_t n = l->n_ways;
        fds[n] = (struct pollfd){ .fd = l->listener, .events = POLLIN };
        for (size_t i = 0; i < n; i++) {
            struct direction *w = &l->ways[i];
            fds[i] = (struct pollfd){ .fd = w->read_ended || w->done ? -1 : w->from, .events = POLLIN };
            next = w->head && w->head->due_us < next ? w->head->due_us : next;
        }
        const int64_t wait = next > now_us() ? next - now_us() : 0;
        const struct timespec until = { wait / 1000000, wait % 1000000 * 1000 };
        if (ppoll(fds, n + 1, &until, NULL) < 0)
            continue;
        for (size_t i = 0; i < n; i++)
            if (fds[i].revents)
                take_piece(l, &l->ways[i]);
        if (fds[n].revents)
            take_connection(l);
        for (size_t i = 0; i < n; i++)
            give(&l->ways[i], now_us());
    }
    return NULL;
}

struct spa_line *spa_line_open(uint16_t target_port, uint32_t delay_us, uint16_t *port)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t len = sizeof at;
    struct spa_line *l = calloc(1, sizeof *l);
    if (!l)
        return NULL;
    l->target = target_port;
    l->delay_us = delay_us;
    l->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (l->listener < 0 || bind(l->listener, (const struct sockaddr *)&at, sizeof at) != 0 || listen(l->listener, 128) != 0 ||
        getsockname(l->listener, (struct sockaddr *)&at, &len) != 0 || pthread_create(&l->thread, NULL, run, l) != 0) {
        if (l->listener >= 0)
            close(l->listener);
        free(l);
        return NULL;
    }
    *port = ntohs(at.sin_port);
    return l;
}

double spa_line_cpu_s(const struct spa_line *l)
{
    clockid_t clock;
    struct timespec t = { 0 };
    if (l && pthread_getcpuclockid(l->thread, &clock) == 0)
        clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void spa_line_close(struct spa_line *l)
{
    if (!l)
        return;
    atomic_store(&l->stop, true);
    pthread_join(l->thread, NULL);
    close(l->listener);
    for (size_t i = 0; i < l->n_ways; i++) {
        for (struct piece *p = l->ways[i].head, *next; p; p = next) {
            next = p->next;
            free(p);
        }
        if (i % 2 == 0) {
            close(l->ways[i].from);
            close(l->ways[i].to);
        }
    }
    free(l);
}
