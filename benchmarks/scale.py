"""How training scales over ranks: one and two measured here, one core and one thread each, and a curve predicted to 64.

The prediction adds what a step's parts cost on one core when measured alone (tables, dense part, making the batch), the
bytes that a rank would send by the sharding plan for so many ranks, and what a message costs (latency and bandwidth)
from an all-to-all of two processes here. It is compared with the measurements of one and two ranks. Ranks keep
4096 rows each, so more ranks do more work in the same time. Beside the two ranks: one process with two threads.

Memory is the most that a rank held, less what it held before it trained, on tables that fill it (26 of 200,000 rows).
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

from benchmarks.common import in_turns, machine, peak_rss_bytes, table
from benchmarks.train import SHAPES, Shape, parts
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.loader import Loader
from recsys.config.experiment import load_config
from recsys.training.train import train

RANKS, BATCH, ROUNDS = (1, 2, 4, 8, 16, 32, 64), 4096, 3
COLLECTIVES = 8
"""Of a step: lengths, ids, embeddings, their gradients, dense gradients, loss; gloo does the larger two in two goes."""

_BIN = Path(sys.executable).parent


def launch(task: str, *arguments: str | Path, ranks: int = 1, threads: int = 1) -> Any:
    """What a task of this module leaves as JSON, run by so many ranks; each rank has a core for each of its threads."""
    with tempfile.NamedTemporaryFile() as answer:
        torchrun = [str(_BIN / "torchrun"), "--standalone", "--nproc-per-node", str(ranks)]
        launcher = torchrun if ranks > 1 else [sys.executable]
        cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0))[: ranks * threads])
        command = ["taskset", "-c", cores, *launcher, "-m", "benchmarks.scale", task, answer.name, *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
        return json.loads(Path(answer.name).read_text())


def train_task(config: Path, dataset: Path, run: Path) -> dict[str, float]:
    """Samples a second of a training, and bytes that this rank came to hold."""
    before = peak_rss_bytes()
    result = train(load_config(config), Dataset.open(dataset, verify="sizes"), run)
    return {"samples_per_s": result.samples_per_s, "bytes": peak_rss_bytes() - before}


def costs_task(config: Path, dataset: Path) -> dict[str, float]:
    """Seconds a step of the tables alone, the dense part alone, and making a batch."""
    experiment, data = load_config(config), Dataset.open(dataset, verify="sizes")
    seconds = {name: statistics.median(times) for name, times in parts(experiment, data).items()}
    loader = Loader(data, "train", batch_size=BATCH, shuffle=True, threads=0)
    begin = time.perf_counter()
    batches = sum(1 for _ in loader)
    return seconds | {"loader": (time.perf_counter() - begin) / batches}


def wire_task() -> dict[str, float]:
    """Seconds of a small all-to-all, and bytes a second that each of two ranks sends in a large one."""
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
    dist.destroy_process_group()
    return {"latency_s": small, "bytes_per_s": (1 << 20) * 4 / 2 / (large - small)}


def prepare(shape: Shape, folder: Path) -> tuple[Path, Path]:
    """The config and the data set of a shape, by the commands of a user."""
    folder.mkdir()
    config, dataset, log = folder / "config.yaml", folder / "dataset", folder / "log.parquet"
    shape.write_log(log)
    config.write_text(yaml.safe_dump(shape.config(log, "fp32").model_dump(mode="json")))
    recsys("prepare", config, dataset)
    return config, dataset


def recsys(*arguments: str | Path) -> dict[str, Any]:
    """The result of a verb."""
    command = [str(_BIN / "recsys"), *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        small, large = (prepare(shape, Path(scratch, str(i))) for i, shape in enumerate(SHAPES))

        def trained(files: tuple[Path, Path], ranks: int, threads: int = 1) -> dict[str, float]:
            run = Path(tempfile.mkdtemp(dir=scratch), "run")
            result: dict[str, float] = launch("train", *files, run, ranks=ranks, threads=threads)
            return result

        measured = in_turns(
            {
                "1": lambda: trained(small, 1)["samples_per_s"],
                "2": lambda: trained(small, 2)["samples_per_s"],
                "two threads": lambda: trained(small, 1, threads=2)["samples_per_s"],
            },
            ROUNDS,
        )
        held = {ranks: trained(large, ranks)["bytes"] for ranks in (1, 2)}
        costs, link = launch("costs", *small), launch("wire", ranks=2)
        plans = {ranks: recsys("plan", *small, "--ranks", str(ranks)) for ranks in RANKS}

    rates = {name: statistics.median(values) for name, values in measured.items()}

    def predicted(ranks: int) -> float:
        sent: float = plans[ranks]["largest_rank_sent_bytes_per_step"] / link["bytes_per_s"]
        messages = COLLECTIVES * link["latency_s"] if ranks > 1 else 0.0
        step: float = sum(costs.values()) + messages + sent
        return ranks * BATCH / step

    rows = [
        [
            str(ranks),
            f"{rates[str(ranks)]:,.0f}" if str(ranks) in rates else "",
            f"{predicted(ranks):,.0f}",
            f"{plans[ranks]['largest_rank_bytes'] / 1e6:,.1f}",
            f"{plans[ranks]['largest_rank_sent_bytes_per_step'] / 1e6:,.2f}",
        ]
        for ranks in RANKS
    ]
    print(table(["ranks", "samples/s measured", "predicted", "MB a rank holds", "MB a rank sends a step"], rows))
    print(f"One process with two threads: {rates['two threads']:,.0f} samples/s.")
    print(f"{SHAPES[1].name}: one rank came to hold {held[1] / 1e6:,.0f} MB, each of two {held[2] / 1e6:,.0f} MB.")
    result = {
        "one_rank_samples_per_s": rates["1"],
        "two_rank_samples_per_s": rates["2"],
        "two_rank_speedup": rates["2"] / rates["1"],
        "two_ranks_vs_two_threads": rates["2"] / rates["two threads"],
        "two_rank_memory_share": held[2] / held[1],
        "prediction_error_1": predicted(1) / rates["1"] - 1,
        "prediction_error_2": predicted(2) / rates["2"] - 1,
        "predicted_64_rank_samples_per_s": predicted(64),
        **link,
    }
    print(json.dumps({name: round(value, 6) for name, value in result.items()}))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        tasks: dict[str, Callable[..., Any]] = {"train": train_task, "costs": costs_task, "wire": wire_task}
        outcome = tasks[sys.argv[1]](*map(Path, sys.argv[3:]))
        if os.environ.get("RANK", "0") == "0":
            Path(sys.argv[2]).write_text(json.dumps(outcome))
