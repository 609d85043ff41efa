"""What zeros in the tower's matrices are worth on this machine: CSR and blocks against dense products, and removal.

One product of 4096 rows with a (416, 256) matrix of which a tenth is not zero: scattered (CSR), in blocks (BSR), and
multiplied densely in float32 and bf16; and a dense matrix from which nine tenths of the columns were removed.
"""

import json
import statistics
import time
import warnings
from collections.abc import Callable

import torch

from benchmarks.common import in_turns, machine, spread, table

ROWS, INPUTS, UNITS, DENSITY, BLOCK = 4096, 416, 256, 0.1, 16
ROUNDS, REPEATS = 7, 10


def milliseconds(product: Callable[[], torch.Tensor]) -> float:
    """Time of one product."""
    product()
    began = time.perf_counter()
    for _ in range(REPEATS):
        product()
    return (time.perf_counter() - began) / REPEATS * 1000


def main() -> None:
    warnings.filterwarnings("ignore", message="Sparse (CSR|BSR)")
    print(machine(), f"{torch.get_num_threads()} threads")
    torch.manual_seed(0)
    x = torch.randn(ROWS, INPUTS)
    scattered = torch.randn(UNITS, INPUTS) * (torch.rand(UNITS, INPUTS) < DENSITY)
    blocks = torch.rand(UNITS // BLOCK, INPUTS // BLOCK) < DENSITY
    blocked = torch.randn(UNITS, INPUTS) * blocks.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    csr, bsr, x_columns = scattered.to_sparse_csr(), blocked.to_sparse_bsr((BLOCK, BLOCK)), x.T.contiguous()
    narrow = scattered[: round(DENSITY * UNITS)].contiguous()
    x_16, dense_16, narrow_16 = x.bfloat16(), scattered.bfloat16(), narrow.bfloat16()
    candidates: dict[str, Callable[[], torch.Tensor]] = {
        "dense float32": lambda: x @ scattered.T,
        "dense bf16": lambda: x_16 @ dense_16.T,
        "CSR, 90% zeros": lambda: csr @ x_columns,
        "BSR 16 x 16, 90% zeros": lambda: bsr @ x_columns,
        "units removed, float32": lambda: x @ narrow.T,
        "units removed, bf16": lambda: x_16 @ narrow_16.T,
    }
    with torch.inference_mode():
        times = in_turns({name: lambda p=product: milliseconds(p) for name, product in candidates.items()}, ROUNDS)
    base = statistics.median(times["dense bf16"])
    rows = [[name, spread(values), f"{base / statistics.median(values):.2f}"] for name, values in times.items()]
    print(table(["product", "ms", "times dense bf16's rate"], rows))
    rates = {name: base / statistics.median(values) for name, values in times.items()}
    float32 = statistics.median(times["dense float32"])
    print(
        json.dumps(
            {
                "csr_vs_dense_bf16": rates["CSR, 90% zeros"],
                "bsr_vs_dense_bf16": rates["BSR 16 x 16, 90% zeros"],
                "removed_vs_flop_ratio": float32
                / statistics.median(times["units removed, float32"])
                / (UNITS / round(DENSITY * UNITS)),
                "removed_vs_flop_ratio_bf16": rates["units removed, bf16"] / (UNITS / round(DENSITY * UNITS)),
            }
        )
    )


if __name__ == "__main__":
    main()
