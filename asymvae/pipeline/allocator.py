"""glibc's malloc, told to keep what a CPU worker frees: the next batch needs it again."""

from __future__ import annotations

# A feature map of a batch is larger than any block that glibc keeps by itself: it is mapped anew, and its pages zeroed
# by the kernel, at every layer. Kept, the same network ran 1.65 times as fast (512 px, 2 cores). One arena, since the
# others can't grow to such blocks. https://man7.org/linux/man-pages/man3/mallopt.3.html
KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
