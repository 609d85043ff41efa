"""Rankings of all candidates, beside plain loops over the log."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.past.state import State
from models.ranker import Ranker, RankerConfig
from models.tables.plain import PlainTables
from models.tables.plan import lookup_plan
from models.weights import Weights
from recsys.evaluation.ranking import Ranking, rank
from serving.artifact.artifact import Artifact, write_artifact
from serving.artifact.card import ModelCard
from serving.batch.scorer import Scorer
from serving.formula import Formula

K = 4


def config_of(log: Path, **keys: Any) -> DataConfig:
    data: dict[str, Any] = {
        "log": str(log),
        "time": "t",
        "user": "u",
        "keys": ["u", "i"],
        "joins": [{"table": str(log.parent / "items.csv"), "on": "i"}],
        "tasks": {"chosen": {"column": "positive"}},
        "sampling": {"item": "i", "negatives": 2},
        "split": {"by": "time", "valid": 0.1, "test": 0.3},
        "features": {
            "u": {"kind": "id"},
            "i": {"kind": "id"},
            "group": {"kind": "id"},
            "hour": {"kind": "time", "column": "t", "parts": ["hour"]},
            "again": {"kind": "recency", "by": ["u", "i"]},
            "times": {"kind": "statistic", "measure": "count", "by": ["i"]},
            "recent": {"kind": "history", "of": ["i"], "last": 3},
        },
    }
    return DataConfig.model_validate(data | keys)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranking")
    rng = np.random.default_rng(0)
    items = (rng.zipf(1.3, 400) % 17).tolist()
    items[-20:-10] = [40] * 10  # never taken before the test
    users = pl.Series(rng.integers(0, 12, 400)).set(pl.Series(rng.random(400) < 0.05), None)
    pl.DataFrame({"u": users, "i": items, "t": np.arange(400) * 60}).write_parquet(folder / "log.parquet")
    pl.DataFrame({"i": range(41), "group": [item % 4 for item in range(41)]}).write_csv(folder / "items.csv")
    return folder / "log.parquet"


@pytest.fixture(scope="module")
def dataset(log: Path) -> Dataset:
    return prepare(config_of(log), log.parent / "dataset")


@pytest.fixture(scope="module")
def weights(dataset: Dataset) -> Weights:
    generator = torch.Generator().manual_seed(0)
    config = RankerConfig(dim=4, tower={"kind": "mlp", "hidden": [8]})
    tables = {
        table.name: torch.randn(table.rows, table.dim, generator=generator)
        for table in lookup_plan(dataset.schema, config).tables
    }
    ranker = Ranker(config, dataset.schema, PlainTables(dataset.schema, config, tables, {}, {}))
    return Weights(config, dataset.schema, tables, ranker.dense_state())


@pytest.fixture(scope="module")
def ranking(weights: Weights, dataset: Dataset) -> Ranking:
    return rank(weights, dataset, k=K, draws=50)


def reference(dataset: Dataset, weights: Weights, log: Path, folder: Path) -> dict[str, dict[str, list[list[int]]]]:
    """By ranker and segment, for each user the ranked items that were wanted."""
    rows = [row for row in pl.read_parquet(log).rows() if row[0] is not None]
    begin = dataset.frame("test").select(pl.col(":time").min()).collect().item() // 10**6
    past, now = [row for row in rows if row[2] < begin], [row for row in rows if row[2] >= begin]
    span = now[-1][2] - begin
    count = Counter(item for _, item, _ in past)
    recent = Counter(item for _, item, time in past if time >= begin - span)
    items = sorted(count, key=lambda item: (-count[item], item))
    by_recent = sorted(items, key=lambda item: -recent[item])
    state = State.before(dataset.encoder.plan, str(log), begin * 10**6, folder / "state")
    write_artifact(weights, dataset.encoder, state.path, ModelCard(name="x"), folder / "artifact")
    scorer = Scorer(Artifact.open(folder / "artifact"))
    takers = {item: {user for user, other, _ in past if other == item} for item in items}
    found: dict[str, list[tuple[list[int], set[int], set[int]]]] = {}
    for user in sorted({user for user, _, _ in now}):
        own = Counter(item for other, item, _ in past if other == user)
        frame = pl.DataFrame({"u": [user] * len(items), "i": items, "t": [begin] * len(items)})
        logits = scorer.score(scorer.read(frame.lazy()).collect(), logits=True)["chosen:logit"].to_list()

        def cosine(item: int, own: Counter[int] = own) -> float:
            both = [len(takers[item] & takers[o]) / (len(takers[item]) * len(takers[o])) ** 0.5 for o in own]
            return sum(both) + 1e-9 * (1 - (by_recent.index(item) + 1) / len(items))

        lists = {
            "model": [item for _, item in sorted(zip(logits, items, strict=True), key=lambda pair: -pair[0])],
            "popularity": items,
            "recent_popularity": by_recent,
            "own_repeats": sorted(by_recent, key=lambda item: -own[item]),
            "item_cosine": sorted(items, key=lambda item: -cosine(item)),
        }
        taken = {item for other, item, _ in now if other == user}
        for name, listed in lists.items():
            found.setdefault(name, []).append((listed[:K], taken, taken & own.keys()))
    segments: dict[str, dict[str, list[list[int]]]] = {}
    for name, users in found.items():
        parts = {"all": [(listed, taken) for listed, taken, _ in users]}
        parts["repeated"] = [(listed, repeated) for listed, _, repeated in users]
        parts["new"] = [(listed, taken - repeated) for listed, taken, repeated in users]
        for segment, asked in parts.items():
            values = [len(set(listed) & wanted) / min(K, len(wanted)) for listed, wanted in asked if wanted]
            segments.setdefault(segment, {})[name] = values  # type: ignore[assignment]
    return segments


def test_rankings_are_those_of_plain_loops(
    ranking: Ranking, dataset: Dataset, weights: Weights, log: Path, tmp_path: Path
) -> None:
    for segment, rankers in reference(dataset, weights, log, tmp_path).items():
        found = ranking.segments[segment]
        assert found["users"] == len(rankers["model"])
        for name, values in rankers.items():
            assert found[name]["recall"] == pytest.approx(np.mean(values)), (segment, name)  # type: ignore[arg-type]
        low, high = found["popularity"]["recall_difference"]
        differences = np.subtract(rankers["model"], rankers["popularity"])  # type: ignore[arg-type]
        assert low <= differences.mean() <= high
    assert ranking.segments["new"]["model"]["recall"] < ranking.segments["repeated"]["own_repeats"]["recall"]


def test_a_formula_ranks_as_the_artifact_would(ranking: Ranking, dataset: Dataset, weights: Weights) -> None:
    assert ranking.by == "chosen"
    same = rank(weights, dataset, k=K, draws=10, score=Formula.parse("log(chosen) + 1", ["chosen"]))
    assert same.by == "score"
    assert same.segments["all"]["model"] == ranking.segments["all"]["model"]
    reverse = rank(weights, dataset, k=ranking.candidates, draws=10, score=Formula.parse("1 - chosen", ["chosen"]))
    every = rank(weights, dataset, k=ranking.candidates, draws=10)
    assert reverse.segments["all"]["model"]["recall"] == every.segments["all"]["model"]["recall"]
    assert reverse.segments["all"]["model"]["ndcg"] != every.segments["all"]["model"]["ndcg"]


def test_few_users_and_small_chunks(
    ranking: Ranking, dataset: Dataset, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.batch.pairs._PAIRS", 20)
    again = rank(weights, dataset, k=K, draws=50)
    assert again.segments["all"]["model"]["recall"] == pytest.approx(ranking.segments["all"]["model"]["recall"])
    assert again.segments["all"]["item_cosine"] == ranking.segments["all"]["item_cosine"]
    few = rank(weights, dataset, k=K, users=3, draws=10)
    assert (few.users, few.segments["all"]["users"]) == (3, 3)
    assert few.candidates == ranking.candidates


def test_what_cannot_be_ranked_is_refused(dataset: Dataset, weights: Weights, log: Path) -> None:
    with pytest.raises(UserError, match="name it with --item"):
        rank(weights, dataset, item="t2")
    with pytest.raises(UserError, match="valid or test split"):
        rank(weights, dataset, "train")
    random = prepare(config_of(log, split={"by": "random"}), log.parent / "random")
    with pytest.raises(UserError, match="the split is by random"):
        rank(weights, random)
