/* err.c - names of the error codes. */
#include "err.h"

const char *spa_err_name(enum spa_err e)
{
    switch (e) {
    case SPA_OK:          return "OK";
    case SPA_NONE:        return "NONE";
    case SPA_ERR_NOMEM:   return "NOMEM";
    case SPA_ERR_SHAPE:   return "SHAPE";
    case SPA_ERR_FORMAT:  return "FORMAT";
    case SPA_ERR_LIMIT:   return "LIMIT";
    case SPA_ERR_VERSION: return "VERSION";
    case SPA_ERR_ORDER:   return "ORDER";
    case SPA_ERR_TIMEOUT: return "TIMEOUT";
    case SPA_ERR_RANGE:   return "RANGE";
    case SPA_ERR_CLOSED:  return "CLOSED";
    }
    return "UNKNOWN";
}
