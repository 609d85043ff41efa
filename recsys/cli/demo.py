"""The demo: all steps in one command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recsys.cli.common import Json, app, command, finish

if TYPE_CHECKING:
    from rich.table import Table

    from recsys.demo import DemoResult


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder of everything the demo makes.")] = Path("demo"),
    rows: Annotated[
        int | None, typer.Option(help="Rows of the generated log; by default 300,000, with --lists 20,000.", min=10_000)
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same log.", min=0)] = 0,
    lists: Annotated[
        bool, typer.Option("--lists", help="A log of lists with known relevance, positions and propensities.")
    ] = False,
    json: Json = False,
) -> None:
    """Generate a log with a known truth and run every step on it: prepare, train, export, score, report."""
    from rich.console import Console

    from recsys.demo import run_demo

    console = Console(stderr=json)

    def announce(step: str, seconds: float) -> None:
        console.print(f"  [green]✓[/green] {step} [dim]{seconds:.1f} s[/dim]")

    if lists:
        from recsys.demo_lists import run_lists_demo

        finish(run_lists_demo(out, rows=rows or 20_000, seed=seed, announce=announce), json)
        return
    console.print("The demo takes one to three minutes on two cores.\n")
    result = run_demo(out, rows=rows or 300_000, seed=seed, announce=announce)
    if json:
        finish(result, True)
        return
    console.print()
    console.print(_table(result))
    console.print(f"\nOpen {result.report} in a browser.")
    console.print("Next: " + command("ablate", out / "config.yaml", out / "dataset", out / "study"))


def _table(result: "DemoResult") -> "Table":
    from rich.table import Table

    from recsys.reports.pages import byte_size

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_row("test AUC", f"[bold]{result.test_auc:.4f}[/bold]")
    table.add_row("best reachable AUC", f"{result.auc_ceiling:.4f}")
    table.add_row("linear model", f"{result.linear_auc:.4f}")
    table.add_row("popularity", f"{result.popularity_auc:.4f}")
    table.add_row("checkpoint", byte_size(result.checkpoint_bytes))
    table.add_row("artifact", byte_size(result.artifact_bytes))
    table.add_row("artifact's test AUC", f"{result.artifact_auc:.4f}")
    table.add_row("scoring rate", f"{result.score_rows_per_s or 0:,.0f} rows/s")
    return table
