"""What a report knows about experts: which rows they serve, and what those rows lose without them."""

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.dataset.loader import Loader
from models.moe.router import routers
from models.ranker import Ranker, RankerConfig
from models.tables.lookup import SparseTables
from models.tables.rows import local_rows
from recsys.config.experiment import ExperimentConfig
from recsys.config.validation import parse_config
from recsys.evaluation.evaluate import facts_by_task
from recsys.evaluation.experts import expert_gains, expert_values
from recsys.metrics.binary import AUC, LOG_LOSS

ROWS = 3000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("experts")
    generator = np.random.default_rng(0)
    user = generator.integers(0, 300, ROWS) * generator.integers(0, 2, ROWS)
    log = pl.DataFrame(
        {
            "user": user,
            "device": generator.choice(["tv", "phone", "tablet"], ROWS),
            "shop": generator.choice(["north", "south"], ROWS),
            "price": generator.lognormal(size=ROWS),
            "click": generator.integers(0, 2, ROWS),
            "time": [datetime(2026, 1, 5) + timedelta(minutes=7 * i) for i in range(ROWS)],
        }
    )
    log.write_parquet(folder / "log.parquet")
    content: dict[str, Any] = {
        "log": str(folder / "log.parquet"),
        "time": "time",
        "user": "user",
        "tasks": {"click": {"column": "click"}},
        "keys": ["user", "shop"],
        "features": {
            "user": {"kind": "id"},
            "device": {"kind": "id"},
            "price": {"kind": "number"},
            "past": {"kind": "history", "of": ["device"], "entity": "user", "last": 4},
        },
    }
    return prepare(parse_config(ExperimentConfig, {"data": content}, source="test").data, folder / "dataset")


def _ranker(dataset: Dataset, context: str, *, top_k: int = 1) -> Ranker:
    """Its router reads one feature: an expert for each sign of the first number of its embedding."""
    torch.manual_seed(1)
    tower = {"kind": "moe", "experts": 3, "top_k": top_k, "hidden": 4}
    config = RankerConfig.model_validate({"dim": 4, "context": [context], "tower": tower})
    ranker = Ranker(config, dataset.schema, SparseTables(dataset.schema, config)).eval()
    with torch.no_grad():
        weight = routers(ranker)["tower.mixtures.0.router"].weight
        weight.zero_()
        weight[0, 0], weight[1, 0], weight[2, 0] = 5.0, -5.0, -9.0 if top_k == 1 else 0.0
    return ranker


def _set(ranker: Ranker, table: str, ids: list[int]) -> None:
    """The first number of a table is 1 for ``ids`` and -1 for others."""
    for shard in local_rows(ranker):
        if shard.table == table:
            shard.weight[:, 0] = -1.0
            shard.weight[ids, 0] = 1.0


def test_experts_are_named_by_values_of_ids_and_by_how_often_they_were_seen(dataset: Dataset) -> None:
    ranker = _ranker(dataset, "device")
    device = dataset.encoder.vocabulary("device").filter(value="tv")["id"].item()
    _set(ranker, "device", [device])
    found = expert_values(ranker, dataset, "test")
    first = found.filter(expert=0).row(0, named=True)
    assert (first["feature"], first["value"], first["share"]) == ("device", "tv", 1.0)
    assert set(found.filter(expert=0)["feature"]) == {"device"}  # nothing else goes with it
    assert {"phone", "tablet"} == set(found.filter(expert=2)["value"])

    ranker = _ranker(dataset, "user")
    _set(ranker, "user", [dataset.encoder.vocabulary("user").filter(value="0")["id"].item()])
    found = expert_values(ranker, dataset, "test")
    named = dict(found.filter(expert=0).select("feature", "value").iter_rows())
    assert (named["user"], named["training rows of user"]) == ("0", "1,000 to 9,999")
    assert "2 to 3" in found.filter(expert=2, feature="events in past")["value"]


def test_experts_are_named_by_numbers_hours_and_key_columns(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Routing by price: the ends of its scale, as the router reads a number."""
    ranker = _ranker(dataset, "price")
    ranker.standardize.mean_D.fill_(0.7)
    found = expert_values(ranker, dataset, "test").filter(feature="price")
    assert "from 90% to 100% of its rows" in found.filter(expert=0)["value"]
    assert "from 0% to 10% of its rows" in found.filter(expert=2)["value"]

    keys = dataset.keys("test")
    _route(monkeypatch, ranker, keys["time"].dt.hour().is_between(12, 13))
    named = expert_values(ranker, dataset, "test").filter(expert=1)
    assert set(named.filter(feature="hour")["value"]) == {"12", "13"}
    _route(monkeypatch, ranker, keys["shop"] == "north")
    named = expert_values(ranker, dataset, "test").filter(expert=1)
    assert named.filter(feature="shop")["value"].to_list() == ["north"]


def _route(monkeypatch: pytest.MonkeyPatch, ranker: Ranker, chosen: pl.Series) -> None:
    """Send the ``chosen`` rows of a split of one batch to expert 1, and the others to expert 0."""
    chosen_N = torch.from_numpy(chosen.to_numpy())
    rows_E = torch.tensor([int((~chosen_N).sum()), int(chosen_N.sum()), 0], dtype=torch.int32)
    router = routers(ranker)["tower.mixtures.0.router"]
    routed = torch.ones(len(chosen_N), 1), chosen_N.long().unsqueeze(1), rows_E
    monkeypatch.setattr(router, "forward", lambda _: routed)


def test_gains_compare_an_expert_with_the_next_best_choice(dataset: Dataset) -> None:
    ranker = _ranker(dataset, "device", top_k=2)
    _set(ranker, "device", [3])
    gains = expert_gains(ranker, dataset, "test", facts_by_task(dataset, "test"))
    batch = next(iter(Loader(dataset, "test", batch_size=1 << 14)))
    labels_N = dataset.labels("test")[batch.rows.numpy(), 0]
    router = routers(ranker)["tower.mixtures.0.router"]
    with torch.no_grad():
        own_N = ranker(batch)[:, 0].double().numpy()
        for expert in (0, 1, 2):
            chosen_NK = []
            hook = router.register_forward_hook(lambda _, __, out, chosen_NK=chosen_NK: chosen_NK.append(out[1]))
            ranker(batch)
            hook.remove()
            served_N = (chosen_NK[0] == expert).any(1).numpy()
            with router.without(expert):
                without_N = ranker(batch)[:, 0].double().numpy()
            for metric, sign in ((AUC, 1), (LOG_LOSS, -1)):
                row = gains.filter(expert=expert, metric=metric.name).row(0, named=True)
                own, other = (
                    metric.measure("binary", labels_N[served_N], logits_N[served_N]) for logits_N in (own_N, without_N)
                )
                assert row["rows"] == served_N.sum()
                assert row["share"] == pytest.approx(served_N.mean())
                assert (row["own"], row["next_best"]) == pytest.approx((own, other), abs=1e-6)
                assert row["gain"] == pytest.approx(sign * (own - other), abs=1e-6)
                assert row["low"] <= row["gain"] <= row["high"]


def test_metrics_that_are_undefined_on_the_rows_of_an_expert_are_left_out(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker = _ranker(dataset, "device")
    labels_NT = np.ones_like(dataset.labels("test"))
    monkeypatch.setattr(dataset, "labels", lambda split: labels_NT)
    gains = expert_gains(ranker, dataset, "test", facts_by_task(dataset, "test"))
    assert set(gains["metric"]) == {"logloss"}
