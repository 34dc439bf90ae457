/* line.h - a slow line for measuring: a TCP proxy on loopback, one thread, that hands every piece of bytes on some time after it came,
 * in order. Cheap, so that its own work does not count for the network's. */
#ifndef SPA_BENCH_LINE_H
#define SPA_BENCH_LINE_H

#include <stdint.h>

struct spa_line;

/* Listens on a free port (*port) of 127.0.0.1 for connections to target_port, each way late by delay_us. NULL: it could not. */
struct spa_line *spa_line_open(uint16_t target_port, uint32_t delay_us, uint16_t *port);
void   spa_line_close(struct spa_line *line);        /* takes NULL; ends its connections */
double spa_line_cpu_s(const struct spa_line *line);  /* of its thread so far */

#endif
