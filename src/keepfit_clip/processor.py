"""What makes a CPU fast: freed memory that is kept for the next batch, bfloat16 where it is at home.

python benchmarks/cpu_step.py      # shows what each of them brings
"""

import ctypes
import os
from pathlib import Path

__all__ = ["has_fast_bfloat16", "keep_freed_memory"]

# Numbers of glibc's malloc.h, what each is set to, and the variables of the environment that say the same.
_TRIM_THRESHOLD, _NEVER = -1, -1
_MMAP_MAX, _NONE = -4, 0
_CHOSEN = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}


def keep_freed_memory() -> bool:
    """Makes glibc keep what this process frees, for as long as it lives: for a program's start, not for a library.

    By itself it gives each large tensor back to the system and asks for it anew with the next batch: every page is
    cleared and mapped again. The peak grows by what lies between tensors of different sizes.

    Returns:
        Whether that holds now: False where the C library is another one, or the environment says how malloc shall be.
    """
    if os.name != "posix" or _CHOSEN & set(os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, _NONE) and mallopt(_TRIM_THRESHOLD, _NEVER))


def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies matrices of bfloat16 several times faster than those of float32 (AMX)."""
    file = Path("/proc/cpuinfo")
    return file.exists() and "amx_bf16" in file.read_text().split()
