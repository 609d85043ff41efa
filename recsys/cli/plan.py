"""``recsys plan``: the sharding of tables, and what each rank stores and sends, before anything runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recsys.cli.common import Json, Overrides, app, finish

if TYPE_CHECKING:
    from data_pipelines.batch import Schema
    from models.sharding.planning import PaperPlan
    from recsys.config.experiment import ExperimentConfig


@app.command("plan")
def plan_verb(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The experiment's YAML.")],
    dataset: Annotated[
        Path | None,
        typer.Argument(metavar="[DATASET]", help="What `recsys prepare` wrote; needed unless --values states sizes."),
    ] = None,
    overrides: Overrides = None,
    values: Annotated[
        list[str] | None,
        typer.Option(metavar="TABLE=N", help="Without DATASET: distinct values of a table, such as user=5e8."),
    ] = None,
    length: Annotated[
        list[str] | None, typer.Option(metavar="FEATURE=N", help="Without DATASET: mean ids per row of a bag.")
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes to plan for; they need not exist.")] = 1,
    ranks_per_node: Annotated[
        int | None, typer.Option(min=1, help="Processes per machine; by default, all on one machine.")
    ] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Memory of each rank (with cuda, of its GPU); by default, this machine's, divided among its ranks.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Json = False,
) -> None:
    """Print the sharding plan: tables, bytes and traffic of each rank."""
    import torch

    from data_pipelines.errors import UserError
    from models.sharding.memory import memory_per_rank
    from models.sharding.planning import draw_plan
    from recsys.config.experiment import load_config

    if device not in ("cpu", "cuda"):
        raise UserError(f"--device must be cpu or cuda, not {device}.")
    if device == "cuda" and memory_gb is None and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: Torch sees no GPU here, so give the memory of the GPU to plan for with --memory-gb."
        )
    overrides = overrides or []
    if dataset is not None and "=" in dataset.name and not dataset.exists():
        dataset, overrides = None, [str(dataset), *overrides]
    experiment = load_config(config, overrides)
    schema, ids_per_row = _sizes(experiment, dataset, values or [], length or [])
    per_node = min(ranks_per_node or ranks, ranks)
    memory = int(memory_gb * 1e9) if memory_gb else memory_per_rank(torch.device(device), per_node)
    plan = draw_plan(
        schema,
        experiment.model,
        experiment.train.tables,
        ranks=ranks,
        ranks_per_node=per_node,
        bytes_per_rank=memory,
        device=device,
        batch_size=experiment.train.batch_size,
        ids_per_row=ids_per_row,
    )
    command = "recsys" if ranks == 1 else f"torchrun --nproc-per-node {per_node} --no-python recsys"
    finish(
        {**_tables_and_ranks(plan, ranks), "memory_per_rank_bytes": memory, "notes": list(plan.notes)},
        json,
        f"{command} train {config} {dataset or 'DATASET'} RUN",
    )


def _sizes(
    experiment: "ExperimentConfig", dataset: Path | None, values: list[str], lengths: list[str]
) -> tuple["Schema", dict[str, float]]:
    """The schema, and the mean ids per row of each sparse feature: of a data set, or as they are stated."""
    from data_pipelines.dataset.dataset import Dataset
    from data_pipelines.dataset.loader import Loader
    from data_pipelines.errors import UserError
    from recsys.config.stated import stated_lengths, stated_numbers, stated_schema

    if dataset is None:
        schema = stated_schema(experiment.data, stated_numbers("--values", values))
        return schema, stated_lengths(experiment.data, stated_numbers("--length", lengths))
    if values or lengths:
        raise UserError(f"--values and --length are for a plan without a data set: leave them out, or {dataset}.")
    data = Dataset.open(dataset, verify="sizes")
    batch = next(iter(Loader(data, "train", batch_size=experiment.train.batch_size)))
    ids = {spec.name: batch.bags(spec).values().numel() for spec in data.schema.sparse}
    return data.schema, {name: count / len(batch) for name, count in ids.items()}


def _tables_and_ranks(plan: "PaperPlan", ranks: int) -> dict[str, Any]:
    return {
        "tables": {
            table.name: {
                "rows": table.rows,
                "dim": table.dim,
                "sharding": table.sharding,
                "memory": table.memory,
                "ranks": table.ranks,
                "bytes": table.bytes,
                "sent_bytes_per_step": sum(table.rank_traffic),
            }
            for table in plan.tables
        },
        "ranks": ranks,
        "dense_bytes_per_rank": plan.dense_bytes,
        "largest_rank_bytes": max(plan.rank_bytes),
        "smallest_rank_bytes": min(plan.rank_bytes),
        "largest_card_bytes": max(plan.card_bytes),
        "largest_rank_sent_bytes_per_step": max(plan.rank_traffic),
    }
