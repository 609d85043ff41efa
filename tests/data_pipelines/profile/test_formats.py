"""How a text file is written: what is guessed of it, and what is read with the guess."""

from pathlib import Path
from typing import Any

from look_examples import ROWS, log, started

from data_pipelines.dataset.dataset import prepare
from data_pipelines.profile.formats import guess_format
from data_pipelines.profile.inspection import inspect_log


def test_digits_in_groups(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"

    def written(**columns: Any) -> str:
        frame = log(price=[f"{n * 7 / 4:,.2f}" for n in range(ROWS)], **columns)
        frame.write_csv(file)
        return str(file)

    format = guess_format(written())
    assert format is not None
    assert format.model_dump(exclude_defaults=True) == {"thousands": ","}
    profile = inspect_log(str(file))
    price = profile.column("price")
    assert (price.role, price.high) == ("number", "6998.25")
    assert prepare(started(profile).data, tmp_path / "dataset").splits["train"] == 3200
    assert guess_format(written(codes=[f"{100 + n % 800},{200 + n % 700}" for n in range(ROWS)])) is None
