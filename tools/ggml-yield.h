/* ggml-yield.h - put in front of ggml's C files when libllama is built (tools/setup). ggml's threads wait for each other by
 * spinning on _mm_pause. On a machine where anything else wants the cores, a spinning thread keeps the one it waits for from
 * running: measured, two clouds on two cores slowed down twentyfold. So after a short spin they give the core away. */
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#include <sched.h>

static inline void spa_relax(void)
{
    static _Thread_local unsigned spins;
    _mm_pause();
    if (++spins % 128 == 0)   /* some microseconds: longer than a barrier takes when all threads run */
        sched_yield();
}
#define _mm_pause() spa_relax()
#endif
