"""Removing a feature with ``data.features.NAME=null``."""

from typing import Any

import pytest

from data_pipelines.errors import UserError
from recsys.config.experiment import ExperimentConfig
from recsys.config.validation import parse_config
from recsys.config.yaml_files import override


def content() -> dict[str, Any]:
    return {
        "data": {
            "log": "log.parquet",
            "time": "time",
            "user": "user",
            "tasks": {"click": {"column": "click"}},
            "features": {
                "item": {"kind": "id"},
                "topics": {"kind": "bag", "column": "tags", "delimiter": "|"},
                "pair": {"kind": "cross", "of": ["item", "shop"]},
                "shop": {"kind": "id"},
                "read": {"kind": "history", "of": ["item", "topics"]},
                "liked": {"kind": "history", "of": ["topics"]},
                "rate": {"kind": "statistic", "measure": "rate", "of": "click", "by": ["user", "tags"]},
                "seen": {"kind": "statistic", "measure": "count", "by": ["item"]},
            },
            "groups": {"content": ["topics", "item"], "only": ["topics"]},
        },
        "model": {"pooling": {"topics": "mean", "read": "attention", "liked": "attention"}},
        "train": {"unknown": {"topics": 0.1, "item": 0.2}},
    }


def test_what_refers_to_a_feature_goes_with_it() -> None:
    left = override(content(), ["data.features.topics=null"])
    features = left["data"]["features"]
    assert set(features) == {"item", "pair", "shop", "read", "seen"}
    assert features["read"]["of"] == ["item"]
    assert left["data"]["groups"] == {"content": ["item"]}
    assert left["model"]["pooling"] == {"read": "attention"}
    assert left["train"]["unknown"] == {"item": 0.2}
    parse_config(ExperimentConfig, left, source="removed")


def test_a_cross_needs_two_parts_and_a_statistic_of_an_id_stays() -> None:
    features = override(content(), ["data.features.item=null"])["data"]["features"]
    assert "pair" not in features
    assert features["read"]["of"] == ["topics"]
    assert "seen" in features


def test_the_original_is_not_changed_and_a_name_must_be_there() -> None:
    original = content()
    override(original, ["data.features.topics=null"])
    assert original == content()
    with pytest.raises(UserError, match="removes a feature that is not there"):
        override(content(), ["data.features.nope=null"])
