package container

/*
#include <malloc.h>
#include <stdlib.h>

// psi_grow_heap makes room in C's heap, and keeps it. Nothing of it is touched.
static void psi_grow_heap(void) {
#ifdef __GLIBC__
	mallopt(M_MMAP_MAX, 0);
	mallopt(M_TRIM_THRESHOLD, 64 << 20);
	void *volatile room = malloc(16 << 20); // volatile, or the compiler knows better
	free(room);
#endif
}
*/
import "C"

// growHeap takes address space for the seccomp filter that init will compile. A
// bundle's RLIMIT_AS comes into force before that, and Go's runtime alone has reserved
// more than a gigabyte, so that afterwards there may be none.
func growHeap() { C.psi_grow_heap() }
