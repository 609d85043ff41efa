"""What benchmarks share: the machine in one line, peers in environments of their own, real data, turns, and tables."""

import fcntl
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import psutil

from data_pipelines.errors import UserError

Name = TypeVar("Name")

ROOT = Path(__file__).parents[1]
SKIPPED = 77
"""The exit code of a benchmark that this machine cannot run."""

PEERS: Mapping[str, Sequence[str]] = {
    # FuxiCTR reads CSV with an argument that Polars 2 no longer has, and pandas in a way that pandas 3 refuses.
    "fuxictr": ("torch==2.13.*", "fuxictr==2.3.10", "polars==1.30.0", "pandas<3"),
    "onnx": ("onnxruntime", "onnx", "numpy"),
    "atheris": ("atheris==3.0.0",),
}
"""Packages of each peer; every peer has an environment below ``.peers/``."""


def machine() -> str:
    """One line on the machine and the versions that were measured."""
    processor = next(
        (line.split(":", 1)[1].strip() for line in _cpu_info() if line.startswith("model name")), platform.processor()
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchrec", "polars"))
    memory = psutil.virtual_memory().total / 2**30
    return f"{processor}, {os.cpu_count()} cores, {memory:.0f} GiB; Python {platform.python_version()}, {packages}"


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def peak_rss_bytes(process: int | str = "self") -> int:
    """Most memory that a process held. (``ru_maxrss`` would count what its parent held when it was started.)"""
    line = next(line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def peer_python(name: str) -> Path:
    """The interpreter of a peer's environment, which is made when it is not there."""
    folder = ROOT / ".peers" / name
    python, mark = folder / "bin" / "python", folder / "packages.txt"
    wanted = "\n".join(PEERS[name])
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (mark.exists() and mark.read_text() == wanted):
            print(f"making an environment for {name} ...", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*install, *PEERS[name]], check=True)
            mark.write_text(wanted)
    return python


def peer_says(name: str, script: str, *arguments: object) -> Any:
    """The JSON in the last line of a script beside this file that runs in a peer's environment.

    Raises:
        CalledProcessError: It failed; what it wrote to standard error is shown.
    """
    command = [peer_python(name), Path(__file__).with_name(script), *arguments]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    done.check_returncode()
    return json.loads(done.stdout.splitlines()[-1])


def real_data(name: str) -> Path | None:
    """The folder ``name`` (``ml-1m``, ``frappe``, ...) below ``RECSYS_DATA``; ``None`` without that variable.

    Raises:
        UserError: ``RECSYS_DATA`` is set and has no such folder.
    """
    if "RECSYS_DATA" not in os.environ:
        return None
    folder = Path(os.environ["RECSYS_DATA"], name)
    if not folder.is_dir():
        raise UserError(f"{folder} is not there: RECSYS_DATA must name the folder that holds {name}/.")
    return folder


def in_turns(candidates: Mapping[Name, Callable[[], float]], rounds: int) -> dict[Name, list[float]]:
    """What each candidate returns, round after round, so that a slow minute of the machine hits all alike."""
    results: dict[Name, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, measure in candidates.items():
            results[name].append(measure())
    return results


def spread(values: Sequence[float]) -> str:
    """Median, and the least and greatest beside it."""
    median = statistics.median(values)
    digits = 0 if median >= 1000 else 2
    return f"{median:,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns aligned: words to the left, everything else to the right."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        aligned = (f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return "| " + " | ".join(aligned) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(columns), rule, *map(line, rows)])
