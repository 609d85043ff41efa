"""Feature selection: a ranked list of features, and a config without those that carry no information.

Statistics on the CSR view test a feature alone and given any one other feature, so that a feature which matters only
together with another (a surface that decides which prices are liked) is found too.

Letters: N rows, a and b codes of two features (their most frequent values and one for the rest).
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse as sp
import torch
from pydantic import BaseModel, ConfigDict
from sklearn.linear_model import LogisticRegression

from data_pipelines.dataset.blocks import make_batch
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.matrices import blocks, to_csr
from data_pipelines.disk.storage import new_directory
from data_pipelines.errors import UserError
from recsys.config.experiment import ExperimentConfig
from recsys.config.yaml_files import to_yaml
from recsys.evaluation.evaluate import predict
from recsys.metrics.binary import auc
from recsys.runs.checkpoints import load_weights
from recsys.trials.perturb import random_order, schema_features, shuffled

Method = Literal["chi2", "mutual_information", "l1_path", "gates", "permutation"]
Floats = npt.NDArray[np.float64]

_CODES = 24
_BINS = 16
_L1_ROWS = 40_000
_L1_STRENGTHS = np.geomspace(80.0, 640.0, 4)
"""Inverse penalties times rows: the strong end of the path, before noise enters."""

_SHUFFLES = 3
_SIGNIFICANT = 5.0
"""Standard deviations above chance, for a statistic that is the maximum of many per feature."""


@dataclass(frozen=True)
class Ranked:
    """One feature of a ranking: the larger ``score``, the more it matters; ``carries`` says whether it is needed."""

    feature: str
    score: float
    carries: bool
    note: str = ""


class Selection(BaseModel):
    """A ranking of features, and which were kept.

    Attributes:
        study: The folder that was written.
        by: The method.
        ranking: Score by feature, in descending order.
        kept: Features of the reduced config.
        dropped: The others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    study: Path
    by: str
    ranking: dict[str, float]
    kept: list[str]
    dropped: list[str]


def select_features(
    config: ExperimentConfig, data: Dataset, out: Path, *, by: str, keep: int | None = None, run: Path | None = None
) -> Selection:
    """Rank the features of ``config`` and write ``ranking.csv`` and ``reduced.yaml`` into ``out``.

    Args:
        by: ``chi2`` and ``mutual_information``: statistics on the CSR view of the train split. ``l1_path``: the
            strength of an L1 penalty at which the feature enters a linear model with crossed features. ``gates``: a
            ranker trained with learned gates. ``permutation``: what a trained ``run`` loses on the valid split when the
            feature is permuted.
        keep: How many features to keep; if absent, those that carry information.

    Raises:
        UserError: There is no such method, the first task is not binary, or ``permutation`` lacks a run.
    """
    if by not in get_args(Method):
        raise UserError(f"--by {by!r} is unknown: choose from {', '.join(get_args(Method))}.")
    task, about = next(iter(data.config.tasks.items()))
    if about.kind != "binary":
        raise UserError(f"feature selection ranks by a binary task, and {task!r} is {about.kind}.")
    names = tuple(config.train.features or data.config.features)
    if by == "permutation":
        if run is None:
            raise UserError("--by permutation needs a trained model: name it with --run.")
        ranking = permutation(data, names, run)
    elif by == "gates":
        ranking = gates(config, data, names, out)
    elif by == "l1_path":
        ranking = l1_path(data, names)
    else:
        ranking = statistics(data, names, pearson if by == "chi2" else likelihood_ratio)
    ranking.sort(key=lambda ranked: -ranked.score)
    kept = [r.feature for r in ranking[:keep]] if keep else [r.feature for r in ranking if r.carries]
    if not kept:
        raise UserError(f"--by {by} finds no feature that carries information: keep some with --keep.")
    kept = [name for name in names if name in kept]
    reduced = config.model_copy(update={"train": config.train.model_copy(update={"features": kept})})
    with new_directory(out, "study", meta={"by": by}, replace=out.exists()) as folder:
        pl.DataFrame([vars(ranked) for ranked in ranking]).write_csv(folder / "ranking.csv")
        (folder / "reduced.yaml").write_text(to_yaml(reduced))
    return Selection(
        study=out,
        by=by,
        ranking={ranked.feature: ranked.score for ranked in ranking},
        kept=kept,
        dropped=[name for name in names if name not in kept],
    )


Statistic = Callable[[Floats, Floats], float]
"""Maps numbers of rows and of positives by cell (b, a) to a measure of dependence of label and a given b."""


def pearson(rows_ba: Floats, positives_ba: Floats) -> float:
    """Pearson's chi-squared, summed over the strata b."""
    expected_ba, spread_ba = _expected(rows_ba, positives_ba)
    return float(((positives_ba - expected_ba) ** 2 / np.maximum(spread_ba, 1e-12))[spread_ba > 0].sum())


def likelihood_ratio(rows_ba: Floats, positives_ba: Floats) -> float:
    """Twice the number of rows times the conditional mutual information in nats (the G statistic)."""
    expected_ba, _ = _expected(rows_ba, positives_ba)
    total = 0.0
    for seen, hoped in ((positives_ba, expected_ba), (rows_ba - positives_ba, rows_ba - expected_ba)):
        there = seen > 0
        total += 2 * float((seen[there] * np.log(seen[there] / hoped[there])).sum())
    return total


def _expected(rows_ba: Floats, positives_ba: Floats) -> tuple[Floats, Floats]:
    """Positives that each cell would have at its stratum's rate, and their variance."""
    rate_b1 = positives_ba.sum(1, keepdims=True) / np.maximum(rows_ba.sum(1, keepdims=True), 1)
    return rows_ba * rate_b1, rows_ba * rate_b1 * (1 - rate_b1)


def statistics(data: Dataset, names: Sequence[str], statistic: Statistic) -> list[Ranked]:
    """Each feature's largest ``(statistic - degrees of freedom) / 2N``, alone or given one other feature.

    Under independence a statistic is about its degrees of freedom; the excess, in nats per row, is the information of
    the feature about the label.
    """
    labels_N = data.labels("train")[:, 0] > 0.5
    codes = dict(_codes(data, names))
    whole = sp.csr_matrix(np.ones((len(labels_N), 1)))
    ranking = []
    for name in names:
        best = Ranked(name, -np.inf, False)
        for given, strata in {"": whole, **codes}.items():
            if given == name:
                continue
            rows_ba = (strata.T @ codes[name]).toarray()
            positives_ba = (strata.T @ codes[name].multiply(labels_N[:, None]).tocsr()).toarray()
            freedom = int((rows_ba > 0).sum() - (rows_ba.sum(1) > 0).sum())
            if freedom < 1:
                continue
            excess = statistic(rows_ba, positives_ba) - freedom
            carries = excess > _SIGNIFICANT * np.sqrt(2 * freedom)
            score = excess / (2 * len(labels_N)) if carries else min(excess, 0.0) / (2 * len(labels_N))
            if score > best.score:
                best = Ranked(name, score, bool(carries), f"given {given}" if given else "alone")
        ranking.append(best)
    return ranking


def _codes(data: Dataset, names: Sequence[str]) -> Iterator[tuple[str, sp.csr_matrix]]:
    """(N, at most 25) 0/1 matrix of each feature by the config's name: its most frequent values, and the rest.

    Dense columns are cut into bins of equal mass first.
    """
    matrix, _ = to_csr(data, "train", names)
    schema = data.schema.model_copy(
        update={
            "sparse": tuple(f for f in data.schema.sparse if f.name in _read(data, names)),
            "dense": tuple(f for f in data.schema.dense if f.name in _read(data, names)),
        }
    )
    where = blocks(schema)
    dense = {feature.name for feature in schema.dense}
    columns = matrix.tocsc()
    for name in names:
        parts = []
        for part in sorted(schema_features(schema, [name])):
            block = columns[:, where[part]]
            parts += (
                [_binned(block[:, i].toarray()[:, 0]) for i in range(block.shape[1])]
                if part in dense
                else [_top(block)]
            )
        yield name, sp.hstack(parts, format="csr")


def _read(data: Dataset, names: Sequence[str]) -> set[str]:
    return schema_features(data.schema, names)


def _top(block: sp.csc_matrix) -> sp.csr_matrix:
    present = (block != 0).astype(np.float64).tocsc()
    order = np.asarray(present.sum(0))[0].argsort()[::-1]
    rest = sp.csc_matrix((present[:, order[_CODES:]].sum(1) > 0).astype(np.float64))
    return sp.hstack([present[:, order[:_CODES]], rest], format="csr")


def _binned(values_N: Floats) -> sp.csr_matrix:
    edges = np.unique(np.quantile(values_N, np.linspace(0, 1, _BINS + 1)[1:-1]))
    codes_N = np.searchsorted(edges, values_N, side="right")
    return sp.csr_matrix(
        (np.ones(len(codes_N)), (np.arange(len(codes_N)), codes_N)), shape=(len(codes_N), len(edges) + 1)
    )


def l1_path(data: Dataset, names: Sequence[str]) -> list[Ranked]:
    """The weight of a feature along the L1 path of logistic regression; early entries count most.

    The model is linear in the features' codes and in the products of pairs, whose weight counts half for each feature.
    The score is the sum of absolute weights over descending penalties, each times its penalty.
    """
    labels_N = data.labels("train")[:, 0] > 0.5
    rows = np.random.default_rng(0).permutation(len(labels_N))[:_L1_ROWS]
    codes = {name: matrix[rows] for name, matrix in _codes(data, names)}
    owners: list[tuple[str, ...]] = []
    parts = []
    for pair in (*((name,) for name in names), *itertools.combinations(names, 2)):
        part = codes[pair[0]] if len(pair) == 1 else _crossed(codes[pair[0]], codes[pair[1]])
        parts.append(part)
        owners += [pair] * part.shape[1]
    matrix = sp.hstack(parts, format="csr")
    entry = dict.fromkeys(names, 0.0)
    for strength in _L1_STRENGTHS / len(rows):
        model = LogisticRegression(l1_ratio=1.0, C=float(strength), solver="liblinear", tol=1e-2, random_state=0)
        model.fit(matrix, labels_N[rows])
        share = dict.fromkeys(names, 0.0)
        for column in np.flatnonzero(model.coef_[0]):
            for name in owners[column]:
                share[name] += abs(float(model.coef_[0, column])) / len(owners[column])
        for name, weight in share.items():
            entry[name] += weight / float(strength)
    largest = max(entry.values())
    return [Ranked(name, score, score > 0.01 * largest) for name, score in entry.items()]


def _crossed(left: sp.csr_matrix, right: sp.csr_matrix) -> sp.csr_matrix:
    """(N, a x b): the products of each two columns."""
    right = right.tocsc()
    return sp.hstack([left.multiply(right[:, i]) for i in range(right.shape[1])], format="csr")


def gates(config: ExperimentConfig, data: Dataset, names: Sequence[str], out: Path) -> list[Ranked]:
    """Gates of a ranker trained with ``sparsity.feature_gates``, at the default strength if the config has none."""
    from tempfile import TemporaryDirectory

    from models.sparsity.penalties.feature_gates import gate_values
    from recsys.config.validation import parse_config
    from recsys.config.yaml_files import override
    from recsys.training.train import train

    content = config.model_dump(mode="json", exclude_none=True)
    if config.sparsity.feature_gates is None:
        content = override(content, ["sparsity.feature_gates={settle: 0.9}"])
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent) as scratch:
        run = Path(scratch) / "run"
        train(parse_config(ExperimentConfig, content, source="gates"), data, run)
        weights = load_weights(run)
    values = gate_values(weights)
    strongest = {name: max(abs(values[part]) for part in schema_features(weights.schema, [name])) for name in names}
    return [Ranked(name, gate, gate > 0) for name, gate in strongest.items()]


def permutation(data: Dataset, names: Sequence[str], run: Path) -> list[Ranked]:
    """AUC that a trained ranker loses on the valid split when a feature's values are permuted (Breiman, 2001)."""
    weights = load_weights(run)
    columns = data.columns("valid", weights.schema.feature_names)
    block = columns.block([(0, len(columns))])
    ranker, labels_N = weights.to_ranker(), data.labels("valid")[:, 0]

    def auc_of(changed: Any) -> float:
        starts = range(0, len(changed), 1 << 14)
        batches = (make_batch(weights.schema, [(changed, at, min(at + (1 << 14), len(changed)))]) for at in starts)
        return auc(labels_N, predict(ranker, batches, torch.device("cpu"))[1][:, 0].numpy())

    whole = auc_of(block)
    ranking = []
    for name in names:
        losses = [
            whole - auc_of(shuffled(block, columns.schema, [name], random_order(len(block), seed)))
            for seed in range(_SHUFFLES)
        ]
        ranking.append(Ranked(name, float(np.mean(losses)), min(losses) > 1e-4))
    return ranking
