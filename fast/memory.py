"""Allocator settings for a whole process on Linux: the C library keeps freed memory, in large pages.

Elsewhere nothing happens. Numbers do not change, only the time it takes to allocate them.
"""

import ctypes
import os
from pathlib import Path


def keep_freed_memory() -> None:
    """Make the C library (glibc) keep large blocks that are freed, for the next allocation.

    It would return each to the system and get it back as zeroed pages: fine-tuning GPT-2 small requested 190,000 pages
    in every step, an eighth of its time. It affects the whole process, so a program calls it once, at its start.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
    mallopt(M_TRIM_THRESHOLD, -1)  # never trim
    mallopt(M_MMAP_MAX, 0)  # no block gets a mapping of its own, which would end when it is freed
    use_large_pages(libc)


def use_large_pages(libc: ctypes.CDLL) -> None:
    """Ask Linux for pages of 2 MB instead of 4 kB for everything allocated from now on.

    The fewer pages, the less time every access spends on address translation. Half of the machine's memory is requested
    at once and freed, so that the C library serves later requests from it; until written to, it is address space, not
    memory. Nothing is done where address space is limited or all allocated memory is written to.
    """
    try:
        import resource  # not on Windows

        limits = {resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)}
        counted = Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"  # address space counts as memory
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        malloc, free, madvise = libc.malloc, libc.free, libc.madvise
    except (ImportError, AttributeError, OSError, ValueError):
        return
    if limits != {resource.RLIM_INFINITY} or counted or "MALLOC_PERTURB_" in os.environ:
        return
    malloc.argtypes, malloc.restype, free.argtypes = [ctypes.c_size_t], ctypes.c_void_p, [ctypes.c_void_p]
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    MADV_HUGEPAGE, page = 14, 2**21  # mman.h
    if block := malloc(size):
        begin = -(-block // page) * page  # the next multiple
        madvise(begin, (block + size - begin) // page * page, MADV_HUGEPAGE)
        free(block)
