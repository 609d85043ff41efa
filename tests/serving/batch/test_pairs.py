"""Pairs scored with each side's work done once give what flat rows give."""

import numpy as np
import polars as pl
import pytest
import torch

from data_pipelines.dataset.dataset import prepare
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from models.ranker import Ranker, RankerConfig
from models.tables.plain import PlainTables
from models.tables.plan import lookup_plan
from models.weights import Weights
from serving.artifact.artifact import Artifact, write_artifact
from serving.artifact.card import ModelCard
from serving.batch.batch_job import run_job
from serving.batch.options import JobOptions
from serving.batch.pairs import PairScorer
from serving.batch.scorer import Scorer

PAST = {
    "likes": {"kind": "history", "of": ["item", "tags"], "where": "click = 1", "last": 5, "age": True},
    "fans": {"kind": "history", "of": ["user"], "where": "click = 1", "last": 3, "entity": "item"},
    "rate": {"kind": "statistic", "measure": "rate", "of": "click", "by": ["item"]},
    "seen": {"kind": "statistic", "measure": "count", "by": ["user", "item"]},
    "user_device": {"kind": "cross", "of": ["user", "device"]},
    "user_item": {"kind": "cross", "of": ["user", "item"]},
}


@pytest.fixture(
    scope="module",
    params=[
        {"likes": "attention", "fans": "attention"},
        {"likes": "convolution", "fans": "last"},
        {"likes": "hstu", "fans": "bst"},
        {"likes": "mean", "tags": "sum"},
    ],
)
def scorer(request, tiny_data, tmp_path_factory) -> Scorer:
    """An untrained ranker over the tiny log, with features of users, of items and of both."""
    folder = tmp_path_factory.mktemp("pairs")
    features = {"item": {"kind": "id"}, "user": {"kind": "id"}} | tiny_data["features"] | PAST
    dataset = prepare(DataConfig.model_validate(tiny_data | {"features": features}), folder / "dataset")
    generator = torch.Generator().manual_seed(0)
    config = RankerConfig(dim=4, pooling=request.param, wide=True, tower={"kind": "mlp", "hidden": [16]})
    schema = dataset.schema
    tables = {t.name: torch.randn(t.rows, t.dim, generator=generator) for t in lookup_plan(schema, config).tables}
    ranker = Ranker(config, schema, PlainTables(schema, config, tables, {}, {}))
    card = ModelCard(name="pairs", versions={})
    weights = Weights(config, schema, tables, ranker.dense_state(), bits=dict.fromkeys(tables, 8))
    write_artifact(weights, dataset.encoder, dataset.path / "state", card, folder / "artifact")
    return Scorer(Artifact.open(folder / "artifact"))


@pytest.fixture(scope="module")
def users(tiny_log) -> pl.DataFrame:
    return pl.read_parquet(tiny_log).unique("user", keep="last", maintain_order=True).select("user", "device").head(7)


@pytest.fixture(scope="module")
def candidates(tiny_log) -> pl.DataFrame:
    log = pl.read_parquet(tiny_log).unique("item", keep="last", maintain_order=True)
    return log.select("item", "tags", "price").head(11)


def test_pairs_score_as_flat_rows(scorer, users, candidates, monkeypatch):
    monkeypatch.setattr("serving.batch.pairs._PAIRS", 25)
    monkeypatch.setattr("serving.batch.scorer.MICROBATCH", 7)
    flat = scorer.score(users.join(candidates, how="cross", maintain_order="left_right"), logits=True)
    pairs = np.concatenate([logits.ravel() for _, logits in PairScorer(scorer, candidates).score(users)])
    np.testing.assert_allclose(pairs, flat["click:logit"], rtol=1e-5, atol=2e-5)


def test_top_k_is_the_best_of_all_pairs(scorer, users, candidates):
    flat = scorer.score(users.join(candidates, how="cross", maintain_order="left_right"))
    best = flat.sort("click", descending=True, maintain_order=True).group_by("user", maintain_order=True).head(3)
    found = PairScorer(scorer, candidates).top_k(users, 3)
    assert found.columns == ["user", "item", "rank", "click"]
    for (user,), expected in best.group_by("user"):
        mine = found.filter(user=user)
        assert mine["rank"].to_list() == [1, 2, 3]
        np.testing.assert_allclose(mine["click"], expected["click"], atol=1e-5)


def test_bad_questions_are_refused(scorer, users, candidates):
    pairs = PairScorer(scorer, candidates)
    with pytest.raises(UserError, match="k must be at least 1"):
        pairs.top_k(users, 0)
    with pytest.raises(UserError, match="no feature reads only"):
        PairScorer(scorer, candidates.select(pl.col("price").alias("colour")))
    assert len(pairs.top_k(users, 100)) == len(users) * len(candidates)


def test_a_job_writes_the_best_candidates_of_every_user(scorer, users, candidates, tmp_path):
    users.write_parquet(tmp_path / "users.parquet")
    candidates.write_parquet(tmp_path / "candidates.parquet")
    options = JobOptions(candidates=str(tmp_path / "candidates.parquet"), top_k=3)
    result = run_job(scorer.artifact, str(tmp_path / "users.parquet"), tmp_path / "best", options)
    assert (result.rows_in, result.rows_out, result.quarantined) == (7, 21, 0)
    best = pl.read_parquet(tmp_path / "best" / "part-*.parquet")
    assert best.equals(PairScorer(scorer, candidates).top_k(users, 3))
    everything = JobOptions(candidates=str(tmp_path / "candidates.parquet"))
    assert run_job(scorer.artifact, str(tmp_path / "users.parquet"), tmp_path / "all", everything).rows_out == 77
