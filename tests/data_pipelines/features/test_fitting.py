"""A vocabulary that memory cannot hold is refused before it is counted."""

from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from data_pipelines.dataset.dataset import prepare
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig


@pytest.fixture
def _little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for about 100 values."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=17_000))


@pytest.mark.usefixtures("_little_memory")
def test_a_vocabulary_larger_than_memory_is_refused_with_its_size_and_what_to_set(
    tiny_data: dict[str, Any], tmp_path
) -> None:
    with pytest.raises(UserError, match=r"'item' has about 1\d\d distinct values.*free: give it the kind hash"):
        prepare(DataConfig.model_validate(tiny_data), tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()


@pytest.mark.usefixtures("_little_memory")
def test_a_hashed_feature_needs_no_such_memory(tiny_data: dict[str, Any], tmp_path) -> None:
    features = tiny_data["features"] | {"item": {"kind": "hash", "rows": 512}}
    made = prepare(DataConfig.model_validate(tiny_data | {"features": features}), tmp_path / "dataset")
    assert made.schema.table("item").rows >= 512
