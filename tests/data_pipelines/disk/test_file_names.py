"""Names that come from files: none of those accepted leads out of its folder, and all others are one sentence."""

import json
import os
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipelines.disk import object_store
from data_pipelines.disk.file_names import below, checked_name
from data_pipelines.disk.storage import MANIFEST, Manifest, checksum, new_directory, open_directory
from data_pipelines.errors import UserError

HOSTILE = [
    "",
    ".",
    "..",
    "/etc/passwd",
    "../outside",
    "part/../../outside",
    "part/./a",
    "part//a",
    "part/",
    "a\0b",
    "a\nb",
    "part\\..\\a",
    "C:/outside",
    "c:outside",
    "x" * 256,
    "é" * 128,
    "/".join(["x" * 200] * 6),
    "\ud800",
]

pieces = st.one_of(
    st.sampled_from(["..", ".", "", "/", "\\", "C:", "~", "a", "part-0.arrow", "\0", "x" * 256]), st.text(max_size=6)
)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_could_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="file name"):
        checked_name(name)
    with pytest.raises(UserError, match="file name"):
        below(tmp_path, name)


@pytest.mark.parametrize("name", ["a", "..a", "a..", ".hidden", "part/a.bin", "day=2026-01-01 00:00:00/ä.parquet"])
def test_plain_names_are_kept(name: str, tmp_path: Path) -> None:
    assert checked_name(name) == name
    assert below(tmp_path, name) == tmp_path / name


@given(st.lists(pieces, max_size=5).flatmap(lambda parts: st.sampled_from(["/".join(parts), "".join(parts)])))
def test_no_accepted_name_leads_out_of_its_folder(name: str) -> None:
    folder = Path("/nowhere/folder")
    try:
        path = below(folder, name)
    except UserError:
        return
    inside = Path(os.path.normpath(path)).relative_to(folder)
    assert inside.as_posix() == name
    assert inside.parts


def test_links_that_lead_out_and_special_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "inner").write_text("i")
    (folder / "out").symlink_to("../secret")
    (folder / "parent").symlink_to("..")
    (folder / "loop").symlink_to("loop")
    (folder / "within").symlink_to("inner")
    os.mkfifo(folder / "pipe")
    for name in ("out", "parent/secret", "parent/new", "loop"):
        with pytest.raises(UserError, match="link"):
            below(folder, name)
    with pytest.raises(UserError, match="not a regular file"):
        below(folder, "pipe")
    assert below(folder, "within").read_text() == "i"


def make(path: Path) -> None:
    with new_directory(path, "dataset") as folder:
        (folder / "part").mkdir()
        (folder / "part" / "a.bin").write_bytes(b"abc")


def rename(folder: Path, name: str) -> None:
    """Let the manifest in ``folder`` call its file ``name``."""
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    content = manifest.model_dump(mode="json") | {"files": {name: checksum(folder / "part" / "a.bin").model_dump()}}
    (folder / MANIFEST).write_text(json.dumps(content))


@pytest.mark.parametrize("name", [n for n in HOSTILE if n != "\ud800"])
def test_a_manifest_of_hostile_names_opens_nothing(name: str, tmp_path: Path) -> None:
    make(tmp_path / "d")
    rename(tmp_path / "d", name)
    with pytest.raises(UserError, match="file name"):
        open_directory(tmp_path / "d", "dataset")


@pytest.mark.parametrize("target", ["absolute", "above"])
def test_a_fetched_manifest_writes_nothing_outside(target: str, tmp_path: Path) -> None:
    """The attack: the store answers for the hostile name, too."""
    make(tmp_path / "d")
    victim = tmp_path / "home" / "authorized_keys"
    victim.parent.mkdir()
    name = str(victim) if target == "absolute" else "../../home/authorized_keys"
    rename(tmp_path / "d", name)
    store = fsspec.filesystem("memory")
    store.pipe_file(f"/{tmp_path.name}/d/{name}", b"abc")
    store.put_file(str(tmp_path / "d" / MANIFEST), f"/{tmp_path.name}/d/{MANIFEST}")
    with pytest.raises(UserError, match="file name"):
        object_store.pull(f"memory://{tmp_path.name}/d", tmp_path / "copies" / "copy")
    assert not victim.exists()
    assert os.listdir(tmp_path / "copies") == []


def test_a_listing_of_hostile_names_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    store = fsspec.get_filesystem_class("memory")
    monkeypatch.setattr(store, "exists", lambda self, path: True)
    monkeypatch.setattr(store, "find", lambda self, path: [f"{path}/checkpoints/../../x"])
    with pytest.raises(UserError, match="file name"):
        object_store.RemoteFolder("memory://run").names()


def test_nothing_is_fetched_through_links_or_from_devices(tmp_path: Path) -> None:
    store = tmp_path / "store" / "d"
    make(store)
    file = store / "part" / "a.bin"
    (tmp_path / "secret").write_bytes(b"abc")
    file.unlink()
    file.symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="link"):
        object_store.pull(f"file://{store}", tmp_path / "copy")
    with pytest.raises(UserError, match="link"):
        open_directory(store, "dataset")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match="not a regular file"):
        object_store.pull(f"file://{store}", tmp_path / "copy")
    with pytest.raises(UserError, match="not a regular file"):
        open_directory(store, "dataset")
    assert not (tmp_path / "copy").exists()


def test_more_bytes_than_the_manifest_says_are_not_fetched(tmp_path: Path) -> None:
    make(tmp_path / "d")
    (tmp_path / "d" / "part" / "a.bin").write_bytes(b"abcd" * 1000)
    with pytest.raises(UserError, match="more than the 3 bytes"):
        object_store.pull(f"file://{tmp_path}/d", tmp_path / "copy")


def test_a_manifest_that_asks_for_more_than_the_disk_holds_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "d")
    entry = {"bytes": 1 << 60, "xxh3": "0" * 32}
    manifest = Manifest.model_validate_json((tmp_path / "d" / MANIFEST).read_bytes())
    changed = Manifest.model_validate(manifest.model_dump() | {"files": {"part/a.bin": entry}})
    (tmp_path / "d" / MANIFEST).write_text(changed.model_dump_json())
    with pytest.raises(UserError, match="free"):
        object_store.pull(f"file://{tmp_path}/d", tmp_path / "copy")


@pytest.mark.parametrize("names", [("a", "a/b"), (MANIFEST,)])
def test_files_that_stand_in_each_others_place_are_refused(names: tuple[str, ...]) -> None:
    entry = {"bytes": 1, "xxh3": "0" * 32}
    with pytest.raises(ValidationError, match="file name"):
        Manifest.model_validate(
            {"kind": "run", "format": 1, "made_by": {}, "meta": {}, "files": dict.fromkeys(names, entry)}
        )


def test_a_manifest_too_large_to_be_one_is_not_read(tmp_path: Path) -> None:
    make(tmp_path / "d")
    with (tmp_path / "d" / MANIFEST).open("r+b") as file:
        file.truncate(1 << 32)
    with pytest.raises(UserError, match="larger than"):
        open_directory(tmp_path / "d", "dataset")
    with pytest.raises(UserError, match="more than"):
        object_store.pull(f"file://{tmp_path}/d", tmp_path / "copy")
