"""Directories are complete or absent, and a changed byte is noticed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.disk.storage import MANIFEST, fingerprint, new_directory, open_directory, write_file
from data_pipelines.errors import UserError


def make(path: Path) -> None:
    with new_directory(path, "dataset", meta={"rows": 2}) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "a.bin").write_bytes(b"abc")


def test_what_was_written_opens_with_its_meta(tmp_path: Path) -> None:
    make(tmp_path / "d")
    manifest = open_directory(tmp_path / "d", "dataset")
    assert manifest.meta == {"rows": 2}
    assert list(manifest.files) == ["part/a.bin"]
    assert os.listdir(tmp_path) == ["d"]


def test_others_can_read_every_file(tmp_path: Path) -> None:
    """A service runs as another user than the one that exports."""
    with new_directory(tmp_path / "d", "artifact") as folder:
        (folder / "tables").touch(mode=0o600)
        (folder / "inside").mkdir()
        (folder / "inside" / "more").touch(mode=0o600)
    assert {f"{path.stat().st_mode & 0o777:o}" for path in (tmp_path / "d").rglob("*") if path.is_file()} == {"644"}


def test_an_error_inside_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_directory(tmp_path / "d", "dataset") as folder:
        (folder / "no such folder" / "a").write_text("half")
    assert os.listdir(tmp_path) == []


def test_a_failed_replacement_keeps_the_old(tmp_path: Path) -> None:
    make(tmp_path / "d")
    with pytest.raises(RuntimeError), new_directory(tmp_path / "d", "dataset", replace=True):
        raise RuntimeError
    open_directory(tmp_path / "d", "dataset")


def test_an_existing_path_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "d")
    with pytest.raises(UserError, match="already exists"):
        make(tmp_path / "d")


def test_a_process_killed_inside_leaves_nothing_that_opens(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from data_pipelines.disk.storage import new_directory\n"
        "with new_directory(Path(sys.argv[1]), 'dataset') as f:\n"
        "    (f / 'a').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "d")], check=False)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(UserError, match="not a directory"):
        open_directory(tmp_path / "d", "dataset")
    make(tmp_path / "d")
    assert os.listdir(tmp_path) == ["d"]


def test_what_another_is_still_writing_is_left_alone(tmp_path: Path) -> None:
    with new_directory(tmp_path / "d", "dataset") as folder:
        write_file(folder / "by", "the first")
        with pytest.raises(RuntimeError), new_directory(tmp_path / "d", "dataset"):
            raise RuntimeError
    assert open_directory(tmp_path / "d", "dataset").files.keys() == {"by"}


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda d: (d / "part" / "a.bin").write_bytes(b"abd"), "checksum does not match"),
        (lambda d: (d / "part" / "a.bin").write_bytes(b"ab"), "checksum does not match"),
        (lambda d: (d / "part" / "a.bin").unlink(), "is missing"),
        (lambda d: (d / MANIFEST).unlink(), "not a dataset"),
        (lambda d: (d / MANIFEST).write_text("{"), "is damaged"),
        (
            lambda d: (d / MANIFEST).write_text(json.dumps(json.loads((d / MANIFEST).read_text()) | {"format": 99})),
            "has format 99",
        ),
        (
            lambda d: (d / MANIFEST).write_text(json.dumps(json.loads((d / MANIFEST).read_text()) | {"kind": "run"})),
            "is a run, not a dataset",
        ),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, sentence: str) -> None:
    make(tmp_path / "d")
    damage(tmp_path / "d")
    with pytest.raises(UserError, match=sentence):
        open_directory(tmp_path / "d", "dataset")


def test_the_manifest_of_a_directory_inside_is_a_file_like_others(tmp_path: Path) -> None:
    with new_directory(tmp_path / "outer", "artifact") as folder, new_directory(folder / "inner", "state") as inner:
        (inner / "a").write_text("a")
    (tmp_path / "outer" / "inner" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"inner/manifest\.json is damaged"):
        open_directory(tmp_path / "outer", "artifact")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_file(tmp_path / "f", "one")
    with pytest.raises(TypeError):
        write_file(tmp_path / "f", 3)  # type: ignore[arg-type]
    assert (tmp_path / "f").read_text() == "one"
    assert os.listdir(tmp_path) == ["f"]


names = st.text(max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | names,
    lambda v: st.lists(v, max_size=4) | st.dictionaries(names, v, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(names, json_values, max_size=6))
def test_equal_values_have_equal_fingerprints(value: dict) -> None:
    assert fingerprint(value) == fingerprint(dict(reversed(value.items())))


def test_the_fingerprint_of_a_directory_follows_its_content(tmp_path: Path) -> None:
    for name, content in (("a", "x"), ("b", "x"), ("c", "y")):
        with new_directory(tmp_path / name, "dataset") as folder:
            (folder / "f").write_text(content)
    a, b, c = (open_directory(tmp_path / name, "dataset").fingerprint for name in "abc")
    assert a == b != c
