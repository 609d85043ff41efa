"""Walks find what :func:`glob.glob` finds where there are no links, follow none, and end."""

import os
import sys
from glob import glob
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.errors import UserError
from serving.http.walking import Walk


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for a, b, c in product(("a", "ab", ".h"), ("b", "[x]", "d=1"), ("c.csv", "cd.parquet", ".e", "_f")):
        (root / a / b).mkdir(parents=True, exist_ok=True)
        (root / a / b / c).touch()
        (root / a / c).touch()
    return root


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(["**", "*", "a*", "?", "[ab]", "[!a]*", "b", "*.csv", ".*", "c*", "d=*"]),
        min_size=1,
        max_size=4,
    )
)
def test_as_glob_finds_files(tree: Path, parts: list[str]) -> None:
    expected = {name for name in glob(str(tree.joinpath(*parts)), recursive=True) if Path(name).is_file()}
    assert set(Walk().glob(tree, parts)) == expected


def test_links_to_folders_are_not_followed(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tree)
    (tmp_path / "up").symlink_to("/")
    assert set(Walk().glob(tmp_path, ["**", "*.csv"])) == set()
    assert set(Walk().glob(tmp_path, ["*", "*", "*"])) == set()
    assert set(Walk().below(tmp_path)) == {str(tmp_path / "link"), str(tmp_path / "up")}


def test_walks_end(tree: Path) -> None:
    for walk in (Walk(entries=10), Walk(seconds=0.0)):
        with pytest.raises(UserError, match="name a folder that holds fewer other files"):
            list(walk.below(tree))


def test_a_walk_goes_deeper_than_python_recurses(tmp_path: Path) -> None:
    folders = [tmp_path / "/".join("d" * depth) for depth in range(1, sys.getrecursionlimit() + 100)]
    try:
        for folder in folders:
            os.mkdir(folder)
        assert list(Walk().glob(tmp_path, ["**", "*.csv"])) == []
    finally:
        for folder in reversed(folders):  # pytest's own cleaning recurses
            folder.rmdir()
