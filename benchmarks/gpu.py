"""How fast a GPU trains and scores, beside plain FBGEMM, an MLP, and all experts.

The rows are described in ``benchmarks/gpu_models.py`` and ``benchmarks/gpu_layers.py``. Candidates take turns, and
medians are compared. Each group of rows runs in a process of its own, so that a failure ends no other:
``python -m benchmarks.gpu [GROUP ...]`` runs some or all. The last line is JSON, with what failed under ``failed``.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.common import SKIPPED, machine, table
from benchmarks.gpu_layers import Lines, measure_experts, measure_sparse
from benchmarks.gpu_models import measure_demo, measure_large, measure_memory, measure_scoring, measure_tables

GROUP_S = 900
"""Seconds after which a group is stopped."""

Group = Callable[[Path, Lines], dict[str, float]]


def _layers(measure: Callable[[Lines], dict[str, float]]) -> Group:
    return lambda _folder, lines: measure(lines)


GROUPS: dict[str, Group] = {
    "demo": measure_demo,
    "tables-65536": partial(measure_tables, batch_size=65_536),
    "tables-8192": partial(measure_tables, batch_size=8_192),
    "large": measure_large,
    "memory": measure_memory,
    "scoring": measure_scoring,
    "experts-bf16": _layers(partial(measure_experts, dtype=torch.bfloat16, triton=False)),
    "experts-bf16-triton": _layers(partial(measure_experts, dtype=torch.bfloat16, triton=True)),
    "experts-fp32": _layers(partial(measure_experts, dtype=torch.float32, triton=False)),
    "experts-fp32-triton": _layers(partial(measure_experts, dtype=torch.float32, triton=True)),
    "2:4": _layers(measure_sparse),
}


def run_group(name: str) -> None:
    """Measure one group in this process; the last line is its JSON."""
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    lines: Lines = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = GROUPS[name](Path(folder), lines)
    finally:
        if lines:
            print(table([name, "median (range)", "beside"], lines), flush=True)
    print(json.dumps(found))


def run_apart(name: str) -> dict[str, float] | str:
    """The figures of a group that is measured in another process, or why there are none."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--here", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GROUP_S)
    except subprocess.TimeoutExpired:
        return f"stopped after {GROUP_S} s"
    lines = done.stdout.splitlines()
    last = next((line for line in reversed(lines) if line.startswith("{")), None)  # libraries may print at the end
    print("\n".join(line for line in lines if line is not last), "\n", flush=True)
    if done.returncode or last is None:
        print(done.stderr[-3000:], file=sys.stderr, flush=True)
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]
    figures: dict[str, float] = json.loads(last)
    return figures


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["--here"]:
        run_group(arguments[1])
        return
    if not torch.cuda.is_available():
        print("Nothing was measured: Torch sees no GPU.")
        sys.exit(SKIPPED)
    print(f"{machine()}; {torch.cuda.get_device_name()}\n", flush=True)
    figures, failed = dict[str, float](), dict[str, str]()
    for name in arguments or GROUPS:
        found = run_apart(name)
        if isinstance(found, str):
            failed[name] = found
        else:
            suffix = " (Triton)" if name.endswith("triton") else ""
            figures |= {f"{key}{suffix}": round(value, 3) for key, value in found.items()}
    print(json.dumps(figures | ({"failed": failed} if failed else {})))


if __name__ == "__main__":
    main()
