"""A log has no more rows than can be numbered."""

from typing import Any

import pytest

from data_pipelines.dataset.dataset import prepare
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.logs import row_counts


def test_a_log_of_more_rows_than_can_be_numbered_is_refused(
    tiny_data: dict[str, Any], tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_counts, "MOST_NUMBERED", 1999)
    with pytest.raises(UserError, match=r"has 2,000 rows, and one `recsys prepare` can number 1,999: .*--extend"):
        prepare(DataConfig.model_validate(tiny_data), tmp_path / "dataset")
