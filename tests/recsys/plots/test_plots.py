"""Figures: one drawing that follows the page from light to dark, and what they leave out or point out."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.metrics.binary import reliability
from recsys.plots import runs, studies
from recsys.plots.style import PALETTES, Draw, png, svg


def _drawings() -> dict[str, Draw]:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=500)
    labels = (rng.random(500) < 1 / (1 + np.exp(-logits))).astype(float)
    rows = [
        studies.Row(name, v, v - 0.01, v + 0.01, w) for name, v, w in [("a", -0.1, "worse"), ("b", 0.0, "no effect")]
    ]
    points = [studies.Point(name, c, b, b, b) for name, c, b in [("big", 9.0, 0.8), ("small", 1.0, 0.7)]]
    return {
        "curves": runs.curves(
            "Loss <of> & all", "step", [runs.Curve("one", [1, 2], [3, 4]), runs.Curve("two", [1], [2])]
        ),
        "reliability": runs.reliability("Reliability", {"run": reliability(labels, logits)}),
        "histogram": runs.score_histogram("Scores", labels, 1 / (1 + np.exp(-logits))),
        "experts": runs.expert_load("Load", rng.dirichlet(np.ones(4), size=3)),
        "scale": runs.scale("AUC", "AUC", [runs.Mark("run", 0.8, 0.7, 0.9, True)], ceiling=("best reachable", 0.95)),
        "forest": studies.forest("Effects", "change of AUC", rows, tolerance=0.001),
        "cost": studies.cost_benefit("Cost", "bytes", "AUC", points, x_text=str),
        "pairs": studies.heat_map("Pairs", ["a", "b"], np.full((2, 2), 0.1), known_FF=np.ones((2, 2), bool), note=""),
    }


@pytest.fixture(params=list(_drawings()))
def draw(request: pytest.FixtureRequest) -> Draw:
    return _drawings()[request.param]


def test_inline_svg_is_well_formed_and_takes_every_colour_from_the_page(draw: Draw) -> None:
    text = str(svg(draw, 'a "label"'))
    ElementTree.fromstring(text.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1))
    assert not re.search(r"#[0-9a-f]{6}\b", text)
    assert "var(--ink)" in text
    assert "<style" not in text


def test_the_same_drawing_gives_the_same_bytes(draw: Draw) -> None:
    assert svg(draw, "x") == svg(draw, "x")


def test_numbers_in_text_keep_their_digits() -> None:
    text = svg(studies.forest("t", "x", [studies.Row("arm", 0.12345, 0.1, 0.2, "better")]), "x")
    assert "+0.1235" in text or "+0.1234" in text


def test_a_png_has_the_ground_of_its_theme(tmp_path: Path) -> None:
    from matplotlib.image import imread

    for theme, palette in PALETTES.items():
        png(_drawings()["forest"], tmp_path / f"{theme}.png", theme)
        corner = imread(tmp_path / f"{theme}.png")[0, 0, :3]
        expected = [int(palette.surface[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        np.testing.assert_allclose(corner, expected, atol=0.01)


def test_a_colour_stands_for_one_role() -> None:
    colours = list(vars(PALETTES["light"]).values())
    assert len(set(colours)) == len(colours)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_the_frontier_is_what_nothing_beats_in_both(points: list[tuple[int, int]]) -> None:
    cost, benefit = [float(p[0]) for p in points], [float(p[1]) for p in points]
    front = studies.frontier(cost, benefit)
    for i, (c, b) in enumerate(points):
        beaten = any(c2 <= c and b2 >= b and (c2, b2) != (c, b) for c2, b2 in points)
        same_before = any(points[j] == (c, b) for j in front)
        assert beaten != same_before, (i, points, front)
