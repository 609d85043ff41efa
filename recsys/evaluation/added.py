"""What values of features with `serve`, such as positions, add to the logits: as learned, and as other rows show it.

Letters: N rows, V values of a vocabulary, R rows of a table, T tasks.
"""

import numpy as np
import polars as pl

from data_pipelines.batch import SparseSpec
from data_pipelines.dataset.dataset import Dataset
from models.weights import Weights
from recsys.metrics.arrays import Floats, Indices
from recsys.metrics.bootstrap import Resampling
from recsys.metrics.level_effects import LevelEffects, level_effects
from recsys.metrics.rows import RowFacts
from serving.artifact.export import served_ids

ADDED_FILE = "added.parquet"
"""What :func:`added_values` found when a run was evaluated last."""
_MOST_VALUES = 100
"""The most frequent values get intervals."""

_COLUMNS = pl.Schema(
    {
        "feature": pl.String,
        "value": pl.String,
        "count": pl.Int64,
        "task": pl.String,
        "logit": pl.Float64,
        "measured": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
    }
)


def added_values(
    weights: Weights, dataset: Dataset, split: str, logits_NT: Floats, facts: dict[str, RowFacts]
) -> pl.DataFrame:
    """What each value of a feature with `serve` adds to the logits, less what the served value adds.

    ``logit`` is what the model has learned. ``measured`` is what the rows of ``split`` show beside the rest of the
    model, with a 95% interval from ``low`` to ``high``: of binary tasks, and values with enough rows
    (:func:`~recsys.metrics.level_effects.level_effects`). For a task that happens only after another one, ``logit`` is
    added to that of its conditional probability, and nothing is measured.

    Args:
        logits_NT: Of the rows of ``split``, in their order.
        facts: Users, lists and weights of these rows, by task.

    Returns:
        Columns ``feature``, ``value``, ``count`` of training rows, ``task``, ``logit``, ``measured``, ``low`` and
        ``high``; most frequent values first.
    """
    found = [pl.DataFrame(schema=_COLUMNS)]
    kinds = [task.kind for task in dataset.config.tasks.values()]
    ids, labels_NT = served_ids(weights.schema, dataset.encoder), dataset.labels(split)
    for spec in weights.schema.sparse:
        if spec.name not in ids:
            continue
        served = ids[spec.name]
        logits_RT = _learned(weights, spec, served)
        vocabulary = dataset.encoder.vocabulary(spec.table)
        id_V = vocabulary["id"].to_numpy().astype(np.int64)
        id_N = dataset.feature(split, spec.name).to_numpy().astype(np.int64)
        for t, task in enumerate(weights.schema.tasks):
            frame = vocabulary.select(
                pl.lit(spec.name).alias("feature"),
                "value",
                "count",
                pl.lit(task).alias("task"),
                pl.Series("logit", logits_RT[id_V, t]),
            )
            if kinds[t] == "binary" and task not in weights.schema.after:
                labels_N = labels_NT[:, t].astype(np.float64)
                rest_N = logits_NT[:, t].astype(np.float64) - logits_RT[id_N, t]
                shown = _measured(labels_N, rest_N, id_N, id_V, served, facts[task])
            else:
                shown = LevelEffects(*np.full((3, len(id_V)), np.nan))
            columns = zip(("measured", "low", "high"), shown, strict=True)
            frame = frame.with_columns(pl.Series(name, values) for name, values in columns).fill_nan(None)
            found.append(frame.cast(_COLUMNS))
    return pl.concat(found)


def _learned(weights: Weights, spec: SparseSpec, served: int) -> Floats:
    """(R, T) what each row of the table adds less what the row with the id ``served`` adds."""
    logits_RT = weights.tables[spec.table] @ weights.dense[f"additive.terms.{spec.name}.weight"].T
    if weights.config.wide:
        logits_RT = logits_RT + weights.tables[f"wide {spec.table}"]
    return (logits_RT - logits_RT[served]).double().numpy()


def _measured(
    labels_N: Floats, rest_N: Floats, id_N: Indices, id_V: Indices, served: int, facts: RowFacts
) -> LevelEffects:
    there_N = ~np.isnan(labels_N)
    kept = min(len(id_V), _MOST_VALUES)
    level_R = np.full(int(max(id_V.max(), id_N.max())) + 1, -1)
    level_R[id_V[:kept]] = np.arange(kept)
    if level_R[served] < 0:
        return LevelEffects(*np.full((3, len(id_V)), np.nan))
    facts = facts.take(there_N)
    drawn = Resampling(facts.users_N, int(there_N.sum()), lists_N=facts.lists_N)
    found = level_effects(
        labels_N[there_N],
        rest_N[there_N],
        level_R[id_N[there_N]],
        drawn.cluster_N,
        base=int(level_R[served]),
        levels=kept,
        weights_N=facts.weights_N,
    )
    rest = np.full(len(id_V) - kept, np.nan)
    return LevelEffects(*(np.concatenate([part, rest]) for part in found))
