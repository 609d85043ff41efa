"""What a benchmark printed becomes a page of the docs."""

import json

import pytest
from benchmark_modules import benchmark_module

PRINTED = """a machine

| way   |             ms | ratio |
|-------|---------------:|------:|
| ours  | 1.5 (1 to 1,024.5) | 0.5 |
| theirs | 3.0 (2.5 to 4) | 1.0 |


| another |
|---------|
| table   |
{"ratio": 0.5}
"""


@pytest.fixture
def pages():
    return benchmark_module("pages")


def test_a_page_holds_the_tables_the_plot_and_the_result(pages, tmp_path):
    text = pages.keep("speed", "How fast.\n\nMeasured by ``clock``.", PRINTED, tmp_path / "docs").read_text()
    assert text.startswith("# Speed\n\nHow fast.\n\nMeasured by `clock`.")
    assert "\n\n| way   |" in text
    assert "| theirs | 3.0 (2.5 to 4) | 1.0 |\n\n" in text
    assert "(speed.png)" in text
    assert (tmp_path / "docs" / "speed.png").stat().st_size > 1000
    assert json.loads(text.split("```json\n")[1].split("```")[0]) == {"ratio": 0.5}


def test_curves_are_drawn_and_not_repeated(pages, tmp_path):
    points = [{"ratio": 1.0, "auc_change": 0.0}, {"ratio": 9.0, "auc_change": -0.001}]
    text = pages.keep("size", "", json.dumps({"best": 9.0, "curves": {"log": points}}), tmp_path).read_text()
    assert "(size.png)" in text
    assert (tmp_path / "size.png").stat().st_size > 1000
    assert json.loads(text.split("```json\n")[1].split("```")[0]) == {"best": 9.0}


def test_without_medians_there_is_no_plot(pages, tmp_path):
    assert "png" not in pages.keep("kills", "", '| a | n |\n|---|---|\n| x | 3 |\n{"kills": 3}', tmp_path).read_text()
    assert list(tmp_path.glob("*.png")) == []
