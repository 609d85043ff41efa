"""What zeros in the tower's matrices are worth on this machine: CSR and blocks against dense products, and removal.

First one product of 4096 rows with a (416, 256) matrix of which a tenth is not zero: scattered (CSR), in blocks (BSR),
and multiplied densely in float32 and bf16. Then a whole tower (416-400-400-1) from which three quarters and nine tenths
of the hidden units were removed, as unit pruning leaves it: the rate gained over the FLOPs saved. One thread.

On a GPU, 2:4 semi-structured weights (two zeros in every four, ``torch.sparse.to_sparse_semi_structured``) reached 0.03
of the dense bf16 rate at 4096 rows x 1024 x 1024, 0.20 at 65,536 x 1024 x 1024, 0.33 at 65,536 x 1664 x 1024, and 0.79
at 65,536 x 4096 x 4096 (one H200, torch 2.13+cu130). They are never faster at a tower's shapes, so no lever makes them;
``make bench NAME=gpu`` measures it.
"""

import json
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.common import in_turns, machine, spread, table

ROWS, INPUTS, UNITS, DENSITY, BLOCK = 4096, 416, 256, 0.1, 16
HIDDEN, KEPT = 400, (100, 40)
ROUNDS, REPEATS = 9, 5
_NAMES = {torch.float32: "float32", torch.bfloat16: "bf16"}


def milliseconds(product: Callable[[], Tensor]) -> float:
    """Time of one product."""
    product()
    began = time.perf_counter()
    for _ in range(REPEATS):
        product()
    return (time.perf_counter() - began) / REPEATS * 1000


def tower(hidden: int) -> nn.Module:
    """Two hidden layers and the logit."""
    layers = (nn.Linear(INPUTS, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
    return nn.Sequential(*layers).eval()


def flops(hidden: int) -> int:
    """Multiplications and additions of :func:`tower` for one row."""
    return 2 * (INPUTS * hidden + hidden * hidden + hidden)


def products() -> dict[str, Callable[[], Tensor]]:
    """The same product with zeros in several forms."""
    x = torch.randn(ROWS, INPUTS)
    scattered = torch.randn(UNITS, INPUTS) * (torch.rand(UNITS, INPUTS) < DENSITY)
    blocks = torch.rand(UNITS // BLOCK, INPUTS // BLOCK) < DENSITY
    blocked = torch.randn(UNITS, INPUTS) * blocks.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    csr, bsr, x_columns = scattered.to_sparse_csr(), blocked.to_sparse_bsr((BLOCK, BLOCK)), x.T.contiguous()
    x_16, dense_16 = x.bfloat16(), scattered.bfloat16()
    return {
        "dense float32": lambda: x @ scattered.T,
        "dense bf16": lambda: x_16 @ dense_16.T,
        "CSR, 90% zeros": lambda: csr @ x_columns,
        "BSR 16 x 16, 90% zeros": lambda: bsr @ x_columns,
    }


def towers() -> dict[tuple[torch.dtype, int], Callable[[], Tensor]]:
    """The tower whole and with units removed, in both precisions."""
    found: dict[tuple[torch.dtype, int], Callable[[], Tensor]] = {}
    for dtype in _NAMES:
        x = torch.randn(ROWS, INPUTS, dtype=dtype)
        for hidden in (HIDDEN, *KEPT):
            found[dtype, hidden] = partial(tower(hidden).to(dtype), x)
    return found


def main() -> None:
    warnings.filterwarnings("ignore", message="Sparse (CSR|BSR)")
    torch.set_num_threads(1)
    print(machine(), "1 thread")
    torch.manual_seed(0)
    with torch.inference_mode():
        times = in_turns({name: partial(milliseconds, run) for name, run in products().items()}, ROUNDS)
        timed = in_turns({key: partial(milliseconds, run) for key, run in towers().items()}, ROUNDS)
    base = statistics.median(times["dense bf16"])
    rates = {name: base / statistics.median(values) for name, values in times.items()}
    rows = [[name, spread(values), f"{rates[name]:.2f}"] for name, values in times.items()]
    print(table(["product", "ms", "times dense bf16's rate"], rows))
    result = {"csr_vs_dense_bf16": rates["CSR, 90% zeros"], "bsr_vs_dense_bf16": rates["BSR 16 x 16, 90% zeros"]}
    rows = []
    for (dtype, hidden), values in timed.items():
        gained = statistics.median(timed[dtype, HIDDEN]) / statistics.median(values)
        saved = flops(HIDDEN) / flops(hidden)
        rows.append([f"{_NAMES[dtype]}, {hidden} units", spread(values), f"{gained:.1f}", f"{saved:.1f}"])
        if hidden != HIDDEN:
            result[f"removed_{1 - hidden / HIDDEN:.0%}_vs_flop_ratio_{_NAMES[dtype]}"] = gained / saved
    print()
    print(table(["tower", "ms", "times as fast", "times fewer FLOPs"], rows))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
