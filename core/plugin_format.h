/* plugin_format.h - the words and numbers that the plugin file's reader and writer share. PLUGIN.md explains them. */
#ifndef SPA_PLUGIN_FORMAT_H
#define SPA_PLUGIN_FORMAT_H

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "plugin files are little-endian and their numbers are used in place"
#endif

enum {
    SPA_PLUGIN_VERSION   = 2,         /* the newest; a file has the oldest that says all of it */
    SPA_PLUGIN_MIX       = 2,         /* the first with spa.context.mix */
    SPA_GGUF_VERSION     = 3,
    SPA_GGUF_ALIGNMENT   = 32,        /* where a file names none; ours names none */
    SPA_GGUF_MAX_ALIGN   = 4096,
    SPA_GGUF_MAX_KEYS    = 256,
    SPA_GGUF_MAX_TENSORS = 4096,
    SPA_GGUF_MAX_NAME    = 256,       /* bytes of a key or tensor name */
    SPA_GGUF_MAX_STRING  = 1 << 16,
    SPA_GGUF_MAX_ARRAY   = 1024,
    SPA_GGUF_MAX_DIMS    = 4,
    SPA_GGUF_Q8_0_BLOCK  = 32,        /* numbers that share a scale */
};

/* Types of values, numbered by GGUF. */
enum spa_gguf_type {
    SPA_GGUF_U8, SPA_GGUF_I8, SPA_GGUF_U16, SPA_GGUF_I16, SPA_GGUF_U32, SPA_GGUF_I32, SPA_GGUF_F32, SPA_GGUF_BOOL,
    SPA_GGUF_STRING, SPA_GGUF_ARRAY, SPA_GGUF_U64, SPA_GGUF_I64, SPA_GGUF_F64, SPA_GGUF_N_TYPES
};

/* Index = the enum's value in ladder.h and dtype.h. */
static const char *const spa_mode_words[]      = { "replace", "add" };
static const char *const spa_normalise_words[] = { "none", "rms" };
static const char *const spa_dtype_words[]     = { "f32", "f16", "i8" };
static const char *const spa_weights_words[]   = { "f32", "f16", "q8_0" };

/* GGUF's numbers of a tensor's types, index as above: a block of Q8_0 is a group of I8 (dtype.h) of 32 numbers. */
static const unsigned spa_gguf_tensor_types[] = { 0, 1, 8 };

#endif
