"""The ranker and its parts: sharded embedding tables, interactions, sparse experts, levers of sparsity."""

import os

# Huge pages for tensors of 2 MB and more, where the kernel offers them: it clears fresh ones in a third of the time.
# Torch looks at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
