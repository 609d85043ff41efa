"""Logs and directories at an S3 server on loopback: read, sent, fetched; nothing that opens after an interruption."""

import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.disk import object_store
from data_pipelines.disk.object_store import RemoteFolder, push
from data_pipelines.disk.storage import MANIFEST
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig


@pytest.fixture
def dataset(bucket: str, tiny_log: Path, tiny_data: dict[str, Any], tmp_path: Path) -> Dataset:
    """Prepared from a log that lies in the bucket."""
    fsspec.filesystem("s3").put_file(str(tiny_log), f"{bucket}/logs/day-1.parquet")
    config = DataConfig.model_validate({**tiny_data, "log": f"{bucket}/logs/*.parquet"})
    return prepare(config, tmp_path / "dataset")


def test_a_log_is_read_from_the_store(dataset: Dataset, tiny_data: dict[str, Any], tmp_path: Path) -> None:
    local = prepare(DataConfig.model_validate(tiny_data), tmp_path / "local")
    assert dataset.splits == local.splits
    for split in local.splits:
        assert dataset.frame(split).collect().equals(local.frame(split).collect())


def test_a_directory_there_and_back(dataset: Dataset, bucket: str, tmp_path: Path) -> None:
    object_store.push(dataset.path, f"{bucket}/made/dataset")
    object_store.pull(f"{bucket}/made/dataset", tmp_path / "back")
    assert Dataset.open(tmp_path / "back").manifest == dataset.manifest
    with pytest.raises(UserError, match="already exists"):
        object_store.push(dataset.path, f"{bucket}/made/dataset")
    object_store.push(dataset.path, f"{bucket}/made/dataset", replace=True)


def test_a_copy_is_fetched_once_per_content(dataset: Dataset, bucket: str) -> None:
    object_store.push(dataset.path, f"{bucket}/dataset")
    first = object_store.fetched(f"{bucket}/dataset")
    written = first.stat().st_mtime_ns
    assert object_store.fetched(f"{bucket}/dataset") == first
    assert first.stat().st_mtime_ns == written
    assert object_store.fetched(dataset.path) == dataset.path


def test_what_is_written_is_sent(bucket: str, tiny_data: dict[str, Any]) -> None:
    config = DataConfig.model_validate(tiny_data)
    with object_store.sent(f"{bucket}/dataset") as folder:
        made = prepare(config, folder)
        splits = made.splits
    assert Dataset.open(object_store.fetched(f"{bucket}/dataset")).splits == splits
    with pytest.raises(UserError, match="already exists"), object_store.sent(f"{bucket}/dataset"):
        pass


def test_an_interrupted_upload_leaves_nothing_that_opens(
    dataset: Dataset, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, sent = fsspec.get_filesystem_class("s3"), []
    send = store.put_file

    def fail(self: Any, source: str, target: str, **options: Any) -> None:
        sent.append(target)
        if len(sent) == 4:
            raise ConnectionResetError("the line is cut")
        send(self, source, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(store, "put_file", fail)
        with pytest.raises(UserError, match="cannot be reached: the line is cut"):
            object_store.push(dataset.path, f"{bucket}/dataset")
    assert not any(target.endswith(MANIFEST) for target in sent)
    with pytest.raises(UserError, match="nothing complete is there"):
        object_store.pull(f"{bucket}/dataset", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    object_store.push(dataset.path, f"{bucket}/dataset")
    object_store.pull(f"{bucket}/dataset", tmp_path / "back")


def test_what_arrives_damaged_is_refused(dataset: Dataset, bucket: str, tmp_path: Path) -> None:
    object_store.push(dataset.path, f"{bucket}/dataset")
    fsspec.filesystem("s3").pipe_file(f"{bucket}/dataset/encoder.json", b"{}")
    with pytest.raises(UserError, match="damaged"):
        object_store.pull(f"{bucket}/dataset", tmp_path / "back")
    assert not [path for path in tmp_path.iterdir() if "back" in path.name]


def test_unknown_stores_and_buckets(bucket: str) -> None:
    with pytest.raises(UserError, match="not an address of a known store"):
        object_store.fetched("nowhere://bucket/dataset")
    with pytest.raises(UserError, match="s3://no-such-bucket"):
        object_store.fetched("s3://no-such-bucket/dataset")


def test_a_damaged_directory_is_not_sent(dataset: Dataset, bucket: str, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(dataset.path, damaged)
    with (damaged / "encoder.json").open("r+b") as file:
        file.write(b"?")
    with pytest.raises(UserError, match=r"encoder\.json is damaged"):
        push(damaged, f"{bucket}/damaged")
    assert RemoteFolder(f"{bucket}/damaged").names() == []


def test_only_what_the_manifest_names_is_sent(dataset: Dataset, bucket: str, tmp_path: Path) -> None:
    folder = tmp_path / "with-a-stray"
    shutil.copytree(dataset.path, folder)
    (folder / "notes.txt").write_text("mine")
    push(folder, f"{bucket}/sent")
    assert "notes.txt" not in RemoteFolder(f"{bucket}/sent").names()
