"""Labels in the spellings that files have them in."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import Notice, UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.profile.inspection import inspect_log
from data_pipelines.profile.roles import guess_roles

ROWS = 600
LABELS = [n * 31 % 7 < 2 for n in range(ROWS)]
EXPECTED = sum(LABELS)


def prepared(folder: Path, labels: Any, suffix: str = "csv", **task: Any) -> Dataset:
    frame = pl.DataFrame({"user": [f"u{n * 7 % 13}" for n in range(ROWS)], "click": labels})
    getattr(frame, f"write_{suffix}")(folder / f"log.{suffix}")
    data = {
        "log": str(folder / f"log.{suffix}"),
        "split": {"by": "random", "valid": 0, "test": 0},
        "tasks": {"click": {"column": "click", **task}},
        "features": {"user": {"kind": "id"}},
    }
    return prepare(DataConfig.model_validate(data), folder / "dataset")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    "spell",
    [bool, int, float, str, lambda x: str(x).upper(), lambda x: f" {int(x)}.0 "],
    ids=["bool", "int", "float", "str", "upper", "blanks"],
)
def test_labels_of_truth_values_are_read_in_every_spelling(spell: Any, suffix: str, tmp_path: Path) -> None:
    assert prepared(tmp_path, [spell(x) for x in LABELS], suffix).labels("train").sum() == EXPECTED


def test_a_positive_value_that_no_row_has_is_said_with_the_values_there_are(tmp_path: Path) -> None:
    with pytest.warns(Notice, match=r"no row has one of its positive values \('>90K'\).* holds '<=50K', '>50K'"):
        prepared(tmp_path, [[" <=50K", " >50K"][x] for x in LABELS], positive=[">90K"])


@pytest.mark.parametrize("given", ["50000+.", "' 50000+.'", " 50000+. ", '"50000+."'])
def test_init_finds_a_positive_value_without_its_quotes_and_blanks(given: str, tmp_path: Path) -> None:
    values = ["' - 50000.'", "' 50000+.'"]
    prepared(tmp_path, [values[x] for x in LABELS], positive=[values[1]])
    profile = inspect_log(str(tmp_path / "log.csv"), label="click", positive=[given])
    assert profile.label_positive == (values[1],)
    with pytest.raises(UserError, match="is not a value of the label"):
        inspect_log(str(tmp_path / "log.csv"), label="click", positive=["50000"])


def test_truth_values_as_text_are_categories_and_whole_decimals_are_what_integers_are() -> None:
    whole = pl.Series([1_700_000_000 + 40 * n for n in range(ROWS)])
    frame = pl.DataFrame(
        {
            "vip": [["True", "False"][x] for x in LABELS],
            "time": whole,
            "user_id": whole % 13,
            "click": [n % 2 for n in range(ROWS)],
        }
    )
    plain = guess_roles(frame, ROWS)
    warehouse = guess_roles(frame.with_columns(pl.col("time", "user_id").cast(pl.Decimal(38, 0))), ROWS)
    assert plain.of == warehouse.of == {"vip": "id", "time": "time", "user_id": "user", "click": "label"}
