"""The ranker and its parts: sharded embedding tables, interactions, sparse experts, levers of sparsity."""

import ctypes
import os

# Huge pages for tensors of 2 MB and more, where the kernel offers them: it clears fresh ones in a third of the time.
# Torch looks at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# A step takes again what the one before has freed; glibc would hand it back to the kernel, to be cleared anew.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
if _mallopt is not None:
    _mallopt(_M_MMAP_THRESHOLD, 1 << 25)
    _mallopt(_M_TRIM_THRESHOLD, 1 << 30)
