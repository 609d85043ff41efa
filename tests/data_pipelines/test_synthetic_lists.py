"""Demo logs of lists: what is planted is in the log."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data_pipelines.synthetic_lists import ListsConfig, draw_lists, generate_lists


def test_the_log_holds_whole_lists_and_the_truth_lies_beside_it(tmp_path: Path) -> None:
    config = ListsConfig(lists=500)
    planted = generate_lists(config, tmp_path / "log.parquet")
    log, truth = pl.read_parquet(tmp_path / "log.parquet"), pl.read_parquet(tmp_path / "truth.parquet")
    assert (
        log.group_by("query").agg(pl.col("position").sort()).get_column("position").to_list()
        == [[1, 2, 3, 4, 5]] * config.lists
    )
    assert log.select("query", "item").equals(truth.select("query", "item"))
    effect = np.array(planted.positions)[log["position"].to_numpy() - 1]
    expected = 1 / (1 + np.exp(-(truth["relevance"].to_numpy() + effect)))
    assert log["clicked"].mean() == pytest.approx(expected.mean(), abs=0.02)
    assert planted.logged_value == pytest.approx(expected.mean())
    assert planted.logged_value < planted.best_value


def test_propensities_are_the_frequencies_of_the_logging_policy() -> None:
    drawn = draw_lists(ListsConfig(lists=4000, explore=0.4))
    likely = drawn.propensity > 0.5
    assert set(np.round(drawn.propensity, 6).ravel()) == {0.08, 0.68}
    # by chance, shuffled lists put a fifth of the rows where the policy prefers them
    assert likely.mean() == pytest.approx(0.68, abs=0.02)


def test_every_order_has_its_value() -> None:
    drawn = draw_lists(ListsConfig(lists=300))
    worst = drawn.best[:, ::-1]
    assert drawn.value(worst) < drawn.value(drawn.as_logged) < drawn.value(drawn.best)


def test_the_same_seed_gives_the_same_log(tmp_path: Path) -> None:
    for name in ("one", "other"):
        generate_lists(ListsConfig(lists=50, seed=3), tmp_path / name / "log.parquet")
    assert (tmp_path / "one" / "log.parquet").read_bytes() == (tmp_path / "other" / "log.parquet").read_bytes()
