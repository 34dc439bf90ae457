/* guard.c - in: what a request says of itself. out: yes or no (guard.h). */
#define _POSIX_C_SOURCE 200809L
#include "guard.h"

#include <arpa/inet.h>
#include <string.h>
#include <strings.h>

enum { HOST_MAX = 255 };

/* Host without its port, and without the brackets of an IPv6 address. */
static bool name_of_host(const char *host, char name[HOST_MAX + 1], bool *v6)
{
    *v6 = host[0] == '[';
    const char *from = host + *v6, *end = from + strcspn(from, *v6 ? "]" : ":"), *port = end + (*v6 && *end ? 1 : 0);
    if (end == from || end - from > HOST_MAX || (*v6 && *end != ']'))
        return false;
    if (*port && (*port != ':' || strspn(port + 1, "0123456789") != strlen(port + 1) || strlen(port + 1) > 5))
        return false;
    memcpy(name, from, (size_t)(end - from));
    name[end - from] = 0;
    return true;
}

bool spa_guard_host(const char *host, const char *const *names, size_t n_names)
{
    char name[HOST_MAX + 1];
    bool v6;
    unsigned char address[16];
    if (!name_of_host(host, name, &v6))
        return false;
    if (v6)
        return inet_pton(AF_INET6, name, address) == 1;
    if (inet_pton(AF_INET, name, address) == 1 || strcasecmp(name, "localhost") == 0)
        return true;
    for (size_t i = 0; i < n_names; i++)
        if (strcasecmp(name, names[i]) == 0)
            return true;
    return false;
}

bool spa_guard_origin(const char *origin, const char *host)
{
    const char *from = strncasecmp(origin, "http://", 7) == 0 ? origin + 7 : strncasecmp(origin, "https://", 8) == 0 ? origin + 8 : NULL;
    return from && strcasecmp(from, host) == 0;
}
