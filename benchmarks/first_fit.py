"""The part of ``benchmarks.first`` on ``recsys fit``: what the command makes of a log within its budget.

The command itself runs, in a process of its own, and the figures are those of its result: metrics of test rows, and
the differences to the baselines that it compares with, which learn from the same features, statistics included.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import table
from benchmarks.first_logs import LOGS, write_log
from recsys.cli.log_options import LogOptions
from recsys.studies.fit import RESULT

FITTED = ("trivago", "census")
"""Logs that are fitted."""


def measure_fits(asked: Sequence[tuple[str, int]], minutes: float, folder: Path) -> dict[str, dict[str, Any]]:
    """Figures of ``recsys fit`` on those of the asked logs that are fitted; what it makes is kept in ``folder``."""
    fits = {}
    for name, part in asked:
        if name in FITTED:
            kept = folder / f"fit-{name}-{part}-{minutes:g}"
            kept.mkdir(parents=True, exist_ok=True)
            write_log(name, part, kept / "log.parquet")
            options = LogOptions(label=LOGS[name].label, positive=list(LOGS[name].positive))
            fits[f"{name}/{part}".removesuffix("/1")] = measure_fit(
                kept / "log.parquet", kept / "fit", minutes, options
            )
    return fits


def measure_fit(log: Path, folder: Path, minutes: float, options: LogOptions) -> dict[str, Any]:
    """Figures of test rows after ``recsys fit LOG FOLDER --minutes``.

    A fit that was stopped in ``folder`` continues, and the minutes of the processor are those of the last call.

    Raises:
        CalledProcessError: The command failed; it has said why.
    """
    words = ["fit", str(log), str(folder), "--minutes", f"{minutes:g}", *options.words()]
    began = _processor_seconds()
    subprocess.run([sys.executable, "-m", "recsys", *words], check=True, stdout=sys.stderr)
    found = json.loads((folder / RESULT).read_bytes())
    metrics, test = found["metrics"]["test"], found["standing"]["test"]
    figures: dict[str, Any] = {
        "auc": round(metrics["auc"], 5),
        "logloss": round(metrics["logloss"], 5),
        "trials": found["trials"],
        "minutes": round((_processor_seconds() - began) / 60, 1),
        "summary": found["summary"],
    }
    for name, metric in test["against"].items():
        auc = metric["auc"]
        figures[f"{name}_auc"] = round(auc["baseline"], 5)
        figures[f"less_{name}"] = [round(auc[key], 5) for key in ("difference", "low", "high")]
    return figures


def _processor_seconds() -> float:
    """Of the child processes that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def fit_table(fits: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures of :func:`measure_fit`, a line per log."""
    columns = ["test, after `fit`", "auc", "logloss", "lightgbm auc", "auc less lightgbm", "trials", "minutes"]
    return table(columns, [[name, *_cells(figures)] for name, figures in fits.items()])


def _cells(figures: Mapping[str, Any]) -> Sequence[str]:
    value, low, high = figures["less_lightgbm"]
    return [
        f"{figures['auc']:.4f}",
        f"{figures['logloss']:.4f}",
        f"{figures['lightgbm_auc']:.4f}",
        f"{value:+.4f} ({low:+.4f} to {high:+.4f})",
        f"{figures['trials']}",
        f"{figures['minutes']:.1f}",
    ]
