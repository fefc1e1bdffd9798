/* Fresh memory holds NaN: what reads it before it has written it there does not go unnoticed.
 *     cc -O2 -shared -fPIC tests/fresh_memory.c -o fresh_memory.so
 *     LD_PRELOAD=$PWD/fresh_memory.so python -m pytest
 */
#include <stddef.h>
#include <string.h>

extern void *__libc_malloc(size_t);

void *malloc(size_t size) {
    void *fresh = __libc_malloc(size);
    if (fresh && size < (64u << 20)) memset(fresh, 0xff, size);
    return fresh;
}
