"""Settings of the whole process, in one place. Importing this project changes nothing in the process that imports it.

Every process that belongs to this project calls :func:`tune_process` when it starts: the command and its ``torchrun``
ranks, workers of the service, processes of trials, and tasks on Ray. In a notebook or another program it is opt-in.
"""

import ctypes
import logging
import os
import warnings

__all__ = ["ENVIRONMENT", "no_telemetry", "tune_process"]

ENVIRONMENT = {
    # By default Polars decodes so many row groups ahead of a slow query that they take twice the memory of the query,
    # and its hash tables for aggregations are so small that the rest is kept in memory until the end.
    # The number of threads is not read from Polars: that would start them, and they do not survive a fork.
    "POLARS_ROW_GROUP_PREFETCH_SIZE": str(os.cpu_count()),
    "POLARS_PARQUET_DECODE_TARGET_VALUES_PER_THREAD": "100000",
    "POLARS_MAX_HOT_TABLE_SIZE": str(1 << 18),
    # Huge pages for tensors of 2 MB and more, if the kernel offers them: it clears new ones in a third of the time.
    # Torch reads this at its first allocation.
    "THP_MEM_ALLOC_ENABLE": "1",
}
"""Environment variables that :func:`tune_process` sets if they are not set."""

_MUTED = (
    ("fbgemm::dense_embedding_codegen_lookup_function", UserWarning),
    ("`torch.distributed.", FutureWarning),
)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def tune_process() -> None:
    """Set this process up for speed, low memory and quiet logs. Results are the same without it.

    - Polars prefetches fewer row groups and uses larger hash tables; Torch uses huge pages. Both read environment
      variables (:data:`ENVIRONMENT`), so call this before the first query and the first tensor. Variables that are
      already set keep their values. Child processes inherit them.
    - On glibc, freed memory below 32 MiB stays in the process, because the next training step takes it again.
    - Warnings that TorchRec 1.8 and Torch 2.13 print at every start, and that no user can act on, are muted.

    A second call changes nothing.

    Example:
        >>> import os
        >>> tune_process()
        >>> os.environ["THP_MEM_ALLOC_ENABLE"]
        '1'
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 25)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    for message, category in _MUTED:
        warnings.filterwarnings("ignore", message=message, category=category)


def no_telemetry() -> None:
    """Switch off the telemetry of MLflow, unless the environment says otherwise.

    MLflow reads this when it is imported, so every import of it comes after this call.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
