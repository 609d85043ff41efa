"""Verbs of studies and reports: report, ablate."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recsys.cli.common import Address, EngineName, Jobs, Json, Overrides, Threads, app, command, finish, trial_engine

if TYPE_CHECKING:
    from recsys.ablation.study import Plan, Progress, Study

_LEADERS = 10


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="One run, or several to compare with the first.")
    ],
    out: Annotated[Path | None, typer.Option(help="The HTML file; by default, RUN/report.html.")] = None,
    json: Json = False,
) -> None:
    """Write one HTML page about a run, or about several side by side."""
    from recsys.reports.report import write_report

    page = write_report(runs, out or runs[0] / "report.html")
    finish({"report": page}, json)


@app.command()
def ablate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The experiment, with its `ablation` block.")],
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="What `recsys prepare` wrote.")],
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of the result; an existing one is replaced.")],
    overrides: Overrides = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print arms, expected time and disk, and run nothing.")] = False,
    trials: Annotated[
        Path | None,
        typer.Option(help="Folder of finished trials, shared by studies; by default, `trials` next to STUDY."),
    ] = None,
    jobs: Jobs = None,
    threads: Threads = 1,
    engine: EngineName = "local",
    address: Address = None,
    json: Json = False,
) -> None:
    """Find out which features, levers and model parts matter, and how certain that is."""
    from data_pipelines.dataset.dataset import Dataset
    from recsys.ablation.ablate import open_study
    from recsys.ablation.outputs import PAGE, write_study
    from recsys.ablation.tables import find
    from recsys.config.experiment import load_config

    experiment, data = load_config(config, overrides or ()), Dataset.open(dataset)
    with trial_engine(engine, address, jobs=jobs, threads=threads) as carries_out:
        planned = open_study(experiment, data, study, carries_out, trials=trials)
        if plan:
            _print_plan(planned.plan(), json)
            return
        with _leaderboard(planned) as observe:
            planned.run(observe)
    findings = find(planned)
    write_study(planned, findings, study)
    verdicts = findings.main(["leave_one_out"])
    result = {
        "study": study,
        "report": study / PAGE,
        "arms": len(planned.arms),
        "trials": findings.trials["trial"].n_unique(),
        "recommended": list(findings.recommended.features),
        "leaks": findings.leaks,
        "effects": dict(zip(verdicts["arm"], verdicts["effect"], strict=True)),
        "verdicts": dict(zip(verdicts["arm"], verdicts["verdict"], strict=True)),
    }
    finish(result, json, command("train", study / "recommended.yaml", dataset, "RUN"))


def _print_plan(plan: "Plan", json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from recsys.reports.pages import byte_size, duration

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("arm", "kind", "compared with"):
        table.add_column(name)
    table.add_column("trials to run", justify="right")
    for arm in plan.arms:
        reference = "" if arm.reference == arm.name else arm.reference
        table.add_row(arm.name, arm.kind.replace("_", " "), reference, str(plan.missing[arm.name]))
    Console(stderr=json).print(table)
    missing = sum(plan.missing.values())
    expected = f"about {duration(plan.seconds)}, {plan.basis}"
    text = {
        "arms": len(plan.arms),
        "trials_to_run": missing,
        "expected_time": expected if missing else "nothing is left to run",
        "expected_disk": byte_size(plan.disk),
        "trials_at_a_time": plan.jobs,
    }
    figures = {"expected_seconds": plan.seconds, "expected_bytes": plan.disk} if json else {}
    finish(text | figures, json)


@contextmanager
def _leaderboard(study: "Study") -> Iterator[Callable[["Progress"], None]]:
    """Show finished arms, time left, and the best and worst arms on standard error; yield the update function."""
    import time

    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    from recsys.reports.pages import duration

    console = Console(stderr=True)
    began = time.monotonic()

    def picture(progress: "Progress") -> Any:
        spent = time.monotonic() - began
        left = spent / max(progress.fresh, 1) * (progress.known - progress.done)
        head = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=progress.known, completed=progress.done, width=30)
        head.add_row(bar, f"{progress.done}/{progress.known} trials", f"{duration(left)} left", progress.latest)
        board = Table(box=None, pad_edge=False, header_style="dim")
        board.add_column("arm")
        board.add_column(f"valid {study.target.main.label}", justify="right")
        ranked = sorted((arm for arm in progress.complete if arm.trains), key=study.score, reverse=True)
        for arm in ranked[:_LEADERS]:
            board.add_row(arm.name, study.failure(arm) or f"{study.valid_value(arm):.4f}")
        return Group(head, board)

    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def observe(progress: "Progress") -> None:
            if console.is_terminal:
                live.update(picture(progress))
            else:
                console.print(f"{progress.done}/{progress.known} trials: {progress.latest}")

        yield observe
