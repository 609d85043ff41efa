"""Configs: faults named in one sentence, overrides, the environment, and a resolved copy that reads back the same."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipelines.errors import UserError
from recsys.config.experiment import load_config
from recsys.config.yaml_files import read_yaml, to_yaml

CONTENT: dict[str, Any] = {
    "data": {"log": "log.parquet", "tasks": {"click": {"column": "click"}}, "features": {"user": {"kind": "id"}}},
    "model": {"dim": 8, "tower": {"kind": "moe", "experts": 4}},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(CONTENT))
    return file


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.bach_size=3", "unknown key train.bach_size: did you mean batch_size"),
        ("data.features.user.colum=u", "unknown key data.features.user.colum: did you mean column"),
        ("model.tower.expert=3", "unknown key model.tower.expert: did you mean experts"),
        ("modle.dim=3", "unknown key modle: did you mean model"),
        ("sparsity.row_prunning.sparsity=0.5", "unknown key sparsity.row_prunning: did you mean row_pruning"),
        ("model.dim=0", "model.dim is 0: input should be greater than or equal to 1"),
        ("model.tower.experts=-1", "model.tower.experts is -1"),
        ("train.batch_size=many", "train.batch_size is 'many': input should be a valid integer"),
        ("model.tower.top_k=9", r"top_k \(9\) must not exceed experts"),
        ("data.features.user.kind=picture", "input tag 'picture'"),
        ("train.dense=3", "train.dense is 3"),
        ("nonsense", "is not KEY=VALUE"),
        ("model.dim.x=1", "model.dim.x cannot be set: model.dim holds 8"),
        ("model.dim=[", "not valid YAML"),
    ],
)
def test_a_fault_is_one_sentence_that_names_the_key(path: Path, override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        load_config(path, [override])
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("data: {log: x}")
    with pytest.raises(UserError, match=r"key data\.tasks is missing"):
        load_config(file)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("data:\n  time: t\n  log: x\n  time: u\n")
    with pytest.raises(UserError, match=r"the key 'time' is in lines 2 and 4: keep one"):
        load_config(file)


@pytest.mark.parametrize("text", ["- a", "a: [", "\x00", ""])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=str(file)):
        load_config(file)
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path / "absent.yaml")


def test_overrides_are_yaml_and_the_resolved_config_reads_back_the_same(path: Path, tmp_path: Path) -> None:
    config = load_config(path, ["train.monitor={logloss: -1}", "train.ema=0.9", "model.tower.top_k=1", "name=x"])
    assert config.train.monitor == {"logloss": -1.0}
    assert config.model.tower.top_k == 1
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(to_yaml(config))
    assert load_config(resolved) == config


def test_variables_stay_by_name_and_stand_for_places_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGS", "/logs")
    content = CONTENT | {"data": CONTENT["data"] | {"log": "${LOGS}/a.parquet"}}
    path.write_text(yaml.safe_dump(content))
    assert load_config(path).data.log == "${LOGS}/a.parquet"
    assert "${LOGS}/a.parquet" in to_yaml(load_config(path))
    for override in ("name=${LOGS}", "train.batch_size=${LOGS}", "model.tower={kind: moe, experts: '${LOGS}'}"):
        with pytest.raises(UserError, match=r"holds \$\{LOGS\}, and environment variables are read in data\.log, "):
            load_config(path, [override])


def test_a_credential_in_what_is_read_again_is_refused_and_elsewhere_not_saved(path: Path) -> None:
    for override in ("data.joins=[{table: 'https://me:hush@h/items.csv', on: user}]", "train.start='s3://me:hush@b/r'"):
        with pytest.raises(UserError, match=r"holds a credential.*write \$\{NAME\}") as refused:
            load_config(path, [override])
        assert "hush" not in str(refused.value)
    config = load_config(path, ["train.mlflow='http://me:hush@host:5000'", "data.log='https://h/a.csv?sig=hush'"])
    assert config.train.mlflow == "http://me:hush@host:5000"
    assert "hush" not in to_yaml(config)


def test_on_is_a_key_and_not_a_truth_value(path: Path) -> None:
    path.write_text(path.read_text() + "name: on\n")
    config = load_config(path, ["data.joins=[{table: items.csv, on: user}]", "model.wide=true"])
    assert (config.name, config.data.joins[0].on, config.model.wide) == ("on", "user", True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: &a [1, 1]\nb: &b [*a, *a]\nc: &c [*b, *b]\n" + "d: [" + "*c, " * 20_000 + "1]", "aliases"),
        (
            "a: &a {x: 1}\n"
            + "".join(f"k{i}: &k{i} {{<<: [{', '.join([f'*k{i - 1}' if i else '*a'] * 9)}]}}\n" for i in range(9)),
            "aliases",
        ),
        ("a: &a [*a]", "aliases"),
        ("a: " + "[" * 5000, "nests too deeply"),
        ("a: " + "9" * 5000, "cannot be read"),
        ("a: 2001-99-99", "cannot be read"),
        ("a: '" + "x" * (5 << 20) + "'", "is larger than"),
    ],
)
def test_a_config_that_would_take_memory_without_end_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_yaml(path)


def test_aliases_of_a_usual_size_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: &a {x: [1, 2]}\nb: *a\nc: {<<: *a, y: 1}\n")
    assert read_yaml(path) == {"a": {"x": [1, 2]}, "b": {"x": [1, 2]}, "c": {"x": [1, 2], "y": 1}}
