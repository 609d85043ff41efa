"""The command's frame: exit codes, the one sentence of a fault, ``--json``, and help without heavy imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.errors import UserError
from recsys.cli import common, main


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch):
    def set_arguments(*values: str) -> None:
        monkeypatch.setattr(sys, "argv", ["recsys", *values])

    return set_arguments


def exit_code() -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def test_a_users_fault_is_one_sentence_and_exit_code_2(arguments, tmp_path: Path, capsys) -> None:
    arguments("train", str(tmp_path / "absent.yaml"), "dataset", "run")
    assert exit_code() == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("recsys: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("values", [("nosuchverb",), ("train",), ("train", "--nosuchoption")])
def test_wrong_usage_is_exit_code_2(arguments, values: tuple[str, ...], capsys) -> None:
    arguments(*values)
    assert exit_code() == 2


def test_version_and_help_succeed(arguments, capsys) -> None:
    arguments("--version")
    assert exit_code() in (0, None)
    arguments("--help")
    assert exit_code() in (0, None)
    shown = capsys.readouterr().out
    for verb in ("demo", "prepare", "train", "evaluate", "tune", "doctor"):
        assert verb in shown


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, recsys.cli; print(sorted({'torch', 'polars', 'torchrec', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_json_ends_standard_output_with_one_object(capsys) -> None:
    common.finish({"path": Path("a/b"), "auc": 0.5, "bad": float("nan"), "parts": {"x": [1, 2.5, None]}}, True, "next")
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1]) == {
        "path": "a/b",
        "auc": 0.5,
        "bad": None,
        "parts": {"x": [1, 2.5, None]},
    }
    assert "Next: next" in captured.err


def test_ranks_other_than_the_first_are_silent(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("RANK", "1")
    common.finish({"auc": 0.5}, True, "next")
    assert capsys.readouterr().out == ""


def test_a_fault_of_ours_is_not_taken_for_the_users(arguments, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("recsys.config.experiment.load_config", fail)
    arguments("train", "config.yaml", "dataset", "run")
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert "KeyError: 'ours'" in capsys.readouterr().err


def test_a_users_fault_in_the_frame_itself(monkeypatch: pytest.MonkeyPatch, arguments, capsys) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UserError("write this instead.")

    monkeypatch.setattr("recsys.config.experiment.load_config", refuse)
    arguments("train", "config.yaml", "dataset", "run")
    assert exit_code() == 2
    assert capsys.readouterr().err == "recsys: write this instead.\n"
