"""How well a run ranks all candidates for each user, beside baselines that know the same past.

Letters: U users, C candidates, k positions of a list.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.errors import UserError
from data_pipelines.locations import expand
from data_pipelines.logs import sources
from data_pipelines.logs.validation import checked
from data_pipelines.names import REASON, TIME
from data_pipelines.past.state import State
from models.weights import Weights
from recsys.config.experiment import stored_config
from recsys.evaluation.catalog import Catalog, baselines
from recsys.metrics.arrays import Floats
from recsys.metrics.bootstrap import Resampling, interval
from recsys.metrics.top_k import top_k, top_k_metrics
from recsys.runs.checkpoints import CONFIG_FILE, load_weights
from serving.artifact.artifact import Artifact, served_encoder, write_artifact
from serving.artifact.card import ModelCard
from serving.artifact.outputs import Outputs
from serving.batch.pairs import PairScorer
from serving.batch.scorer import Scorer
from serving.formula import Formula

MODEL = "model"
SEGMENTS = ("all", "repeated", "new")

Values = dict[str, dict[str, dict[str, Floats]]]
"""(U,) a value per user, by segment, ranker and metric."""


@dataclass(frozen=True)
class Ranking:
    """Metrics of the first k candidates, averaged over users.

    Attributes:
        split: What is ranked for.
        k: Length of the lists.
        by: What candidates are ranked by: ``score``, the formula of the config, or else the first task.
        users: Users that took something in the split.
        candidates: Items that were taken before the split began.
        segments: By segment (``all``; ``repeated``: items that the user had taken before; ``new``: the others), how
            many users have any, and the metrics of ``model`` and of each baseline. ``<metric>_difference`` of a
            baseline is the 95% interval of the model's metric minus its own, over paired draws of users.
    """

    split: str
    k: int
    by: str
    users: int
    candidates: int
    segments: dict[str, dict[str, Any]]


def rank(
    source: Path | Weights,
    dataset: Dataset,
    split: str = "test",
    *,
    k: int = 20,
    item: str | None = None,
    users: int = 10_000,
    draws: int = 400,
    score: Formula | None = None,
) -> Ranking:
    """Rank all candidates for the users of ``split``, as they would have been ranked when it began.

    Every user is scored once with all items that were taken before, at the time when the split begins, with the past as
    of then and the other columns of the user's first row in the split. Items of the split that nobody took before count
    as missed. Memory does not grow with users times candidates.

    Args:
        source: A finished run, or weights.
        dataset: The data set that it was trained on, split by time, whose log is still there.
        split: ``test`` or ``valid``.
        k: Length of the lists.
        item: The column of items (see :meth:`Catalog.of`).
        users: Rank for at most so many users, drawn evenly.
        draws: Bootstrap draws of users for the intervals.
        score: The formula by which candidates are ranked; if absent, that of the run's config, and if it has none, they
            are ranked by the first task. What a user took are rows with the label 1 of the first task in any case.

    Raises:
        UserError: The data set is not split by time or its log is gone, the model cannot score pairs, or the formula
            is NaN or infinite for a pair.
    """
    if split not in ("valid", "test") or k < 1:
        raise UserError(f"a ranking is of the valid or test split, and k at least 1, not {split!r} and {k}.")
    weights = load_weights(source) if isinstance(source, Path) else source
    if score is None and isinstance(source, Path):
        score = stored_config(source / CONFIG_FILE).formula
    catalog = Catalog.of(dataset, split, item=item, users=users)
    outputs = Outputs(dataset.config.tasks, {}, score=score)
    collected: list[Values] = []
    with TemporaryDirectory(prefix="ranking-") as scratch:
        for first, scores_UC in _scores(weights, dataset, catalog, outputs, Path(scratch)):
            last = first + len(scores_UC)
            scores = {MODEL: scores_UC, **baselines(catalog, first, last)}
            collected.append(_measure(catalog, scores, first, last, k))
    segments = {name: _summary([part[name] for part in collected], draws) for name in SEGMENTS}
    return Ranking(split, k, outputs.ranks_by, len(catalog.users), len(catalog.items), segments)


def _scores(
    weights: Weights, dataset: Dataset, catalog: Catalog, outputs: Outputs, scratch: Path
) -> Iterator[tuple[int, Floats]]:
    """The first user of each chunk, and (u, C) what candidates are ranked by: scores, or logits of the first task."""
    encoder = served_encoder(weights, dataset.encoder)
    plan, log, state = encoder.served, expand(dataset.manifest.meta["log"]), None
    if plan.past:
        state = State.before(dataset.encoder.plan, log, catalog.begin, scratch / "state").path
    write_artifact(weights, encoder, state, ModelCard(name="ranking"), scratch / "artifact", outputs=outputs)
    candidates = pl.DataFrame({catalog.item: catalog.items}).lazy()
    offered = sources.join_sides(plan, candidates, partial=True).collect()
    wanted = plan.row_columns - set(offered.columns)
    rows = checked(plan, sources.scan(plan, log).rows(log), labelled=False)
    rows = rows.filter(pl.col(REASON).is_null() & (pl.col(TIME) >= catalog.begin))
    first_rows = rows.filter(pl.col(TIME) == catalog.begin)
    rows = rows.filter(pl.col(catalog.user).is_in(catalog.users.implode())).sort(TIME, maintain_order=True)
    columns = [name for name in rows.collect_schema().names() if name in wanted | {catalog.user}]
    asked = (
        rows.group_by(catalog.user, maintain_order=True).agg(pl.col(columns).exclude(catalog.user).first()).collect()
    )
    asked = pl.DataFrame({catalog.user: catalog.users}).join(asked, on=catalog.user, how="left", maintain_order="left")
    if plan.time in columns:  # all are asked when the split begins
        begin = first_rows.select(plan.time).first().collect().to_series()
        asked = asked.with_columns(begin.new_from_index(0, len(asked)))
    first = 0
    pairs = PairScorer(Scorer(Artifact.open(scratch / "artifact")), offered)
    for chunk, logits_UCT in pairs.score(asked):
        yield first, pairs.ranked_by(logits_UCT, outputs.ranks_by).astype(np.float64)
        first += len(chunk)


def _measure(catalog: Catalog, scores: dict[str, Floats], first: int, last: int, k: int) -> Values:
    candidates = len(catalog.items)
    low, high = np.searchsorted(catalog.taken_M, [first * candidates, last * candidates])
    taken, repeated = catalog.taken_M[low:high], catalog.repeated_M[low:high]
    whole_U = catalog.wanted_U[first:last]
    repeated_U = np.bincount(taken[repeated] // candidates - first, minlength=last - first)
    parts = {"all": (taken, whole_U), "repeated": (taken[repeated], repeated_U)}
    parts["new"] = (taken[~repeated], whole_U - repeated_U)
    lists = {name: top_k(scores_UC, k) for name, scores_UC in scores.items()}
    values: Values = {}
    for segment, (items, wanted_U) in parts.items():
        hits = {
            name: np.isin(list_Uk + np.arange(first, last)[:, None] * candidates, items)
            for name, list_Uk in lists.items()
        }
        values[segment] = {name: top_k_metrics(hit_Uk, wanted_U) for name, hit_Uk in hits.items()}
    return values


def _summary(parts: list[dict[str, dict[str, Floats]]], draws: int) -> dict[str, Any]:
    rankers = {
        name: {metric: np.concatenate([part[name][metric] for part in parts]) for metric in parts[0][name]}
        for name in parts[0]
    }
    asked_U = ~np.isnan(rankers[MODEL]["recall"])
    users = int(asked_U.sum())
    summary: dict[str, Any] = {"users": users}
    resampling = Resampling(None, users, draws=draws)
    for name, metrics in rankers.items():
        means: dict[str, Any] = {m: float(v[asked_U].mean()) if users else float("nan") for m, v in metrics.items()}
        if name != MODEL and users:
            for metric, value_U in metrics.items():
                difference_U = (rankers[MODEL][metric] - value_U)[asked_U]
                means[f"{metric}_difference"] = list(interval(resampling.ratio(difference_U, np.ones(users))))
        summary[name] = means
    return summary
