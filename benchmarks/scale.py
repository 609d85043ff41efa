"""How training scales over ranks: one and two measured here, one thread each, and a curve predicted to 64.

The prediction takes a step's computing from one rank alone, the bytes each rank would send from the sharding plan of
so many ranks, and what a message costs (latency and bandwidth) from an all-to-all of two processes here. It is held
against the two ranks that were measured. Ranks keep 4096 rows each, so more ranks do more work in the same time.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

from benchmarks.common import in_turns, machine, table
from benchmarks.train import SHAPES

RANKS, BATCH, ROUNDS = (1, 2, 4, 8, 16, 32, 64), 4096, 3
COLLECTIVES = 8
"""Of a step: lengths, ids, embeddings, their gradients, dense gradients, loss; gloo does the larger two in two goes."""

_BIN = Path(sys.executable).parent
_ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def recsys(*arguments: str, ranks: int = 0) -> dict[str, Any]:
    """The result of a verb; on so many ranks under torchrun."""
    launcher = [str(_BIN / "torchrun"), "--standalone", "--nproc-per-node", str(ranks), "--no-python"] if ranks else []
    command = [*launcher, str(_BIN / "recsys"), *arguments, "--json"]
    done = subprocess.run(command, env=_ONE_THREAD, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def wire() -> None:
    """Run by two processes: seconds of a small all-to-all, and bytes a second that each sends in a large one."""
    dist.init_process_group("gloo")

    def seconds(floats: int, times: int) -> float:
        sent, received = torch.ones(floats), torch.empty(floats)
        for _ in range(3):
            dist.all_to_all_single(received, sent)
        begin = time.perf_counter()
        for _ in range(times):
            dist.all_to_all_single(received, sent)
        return (time.perf_counter() - begin) / times

    small, large = seconds(2, 200), seconds(1 << 20, 20)
    if dist.get_rank() == 0:
        print(json.dumps({"latency_s": small, "bytes_per_s": (1 << 20) * 4 / 2 / (large - small)}))
    dist.destroy_process_group()


def measure_wire() -> dict[str, float]:
    command = [str(_BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", "-m", "benchmarks.scale", "wire"]
    done = subprocess.run(command, env=_ONE_THREAD, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        SHAPES[0].write_log(folder / "log.parquet")
        config, dataset = str(folder / "config.yaml"), str(folder / "dataset")
        Path(config).write_text(
            yaml.safe_dump(SHAPES[0].config(folder / "log.parquet", "fp32").model_dump(mode="json"))
        )
        recsys("prepare", config, dataset)

        def rate(ranks: int) -> float:
            run = str(Path(tempfile.mkdtemp(dir=folder), "run"))
            return float(recsys("train", config, dataset, run, ranks=ranks)["samples_per_s"])

        measured = in_turns({"1": lambda: rate(1), "2": lambda: rate(2)}, ROUNDS)
        link = measure_wire()
        plans = {ranks: recsys("plan", config, dataset, "--ranks", str(ranks)) for ranks in RANKS}

    rates = {int(ranks): statistics.median(values) for ranks, values in measured.items()}
    computing = BATCH / rates[1]

    def predicted(ranks: int) -> float:
        sent = plans[ranks]["largest_rank_sent_bytes_per_step"] / link["bytes_per_s"]
        messages = COLLECTIVES * link["latency_s"] if ranks > 1 else 0.0
        return ranks * BATCH / (computing + messages + sent)

    rows = [
        [
            str(ranks),
            f"{rates[ranks]:,.0f}" if ranks in rates else "",
            f"{predicted(ranks):,.0f}",
            f"{plans[ranks]['largest_rank_bytes'] / 1e6:,.1f}",
            f"{plans[ranks]['largest_rank_sent_bytes_per_step'] / 1e6:,.2f}",
        ]
        for ranks in RANKS
    ]
    print(table(["ranks", "samples/s measured", "predicted", "MB a rank holds", "MB a rank sends a step"], rows))
    result = {
        "one_rank_samples_per_s": rates[1],
        "two_rank_samples_per_s": rates[2],
        "two_rank_speedup": rates[2] / rates[1],
        "prediction_error": predicted(2) / rates[2] - 1,
        "predicted_64_rank_samples_per_s": predicted(64),
        **link,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    wire() if sys.argv[1:] == ["wire"] else main()
