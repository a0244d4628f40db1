"""Memory that is freed stays with the process while it trains.

glibc gives every large block back to the system when it is freed and asks for it again when a tensor of the next layer needs one; the system hands it out
page by page, each a fault and 4 KB of zeros. A step of a small model takes 16,000 of them, a sixth of its time on one core and more on two, which wait for
each other. Blocks kept for reuse cost nothing: the next step needs the same ones.
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
LARGEST = 1 << 30  # bytes; larger blocks still go back


def keep_freed_memory() -> bool:
    """For the rest of this process. False where the C library has no such switch (it is glibc's): then nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, 2 * LARGEST - 1))
