"""Runs what a page of the docs tells its reader to do, top to bottom, in one folder.

A page is Markdown with fenced blocks. ``bash`` blocks are commands, ``python`` blocks are programs, and a block with a
``title="name"`` is a file of that name. ``yaml`` blocks without a title are parts of a config, and must be valid in
that of the first page. ``text`` blocks are what the reader sees, and are not run. Of ``make`` and ``pip`` lines only
the form is checked (the target exists): they build the environment that runs this.

``recsys`` lines run in this process, because a page has many and each would import Torch again.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^( *)```(\w+)?([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
CHECKED_ONLY = ("make", "pip", "python3.11", "git", "cd")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the file it is (if it has a title), its text, and the line it begins on."""

    language: str
    file: str | None
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a Markdown page that are to be run or written, in order."""
    markdown = page.read_text()
    for match in FENCE.finditer(markdown):
        indent, language, rest, text = match.groups()
        title = re.search(r'title="([^"]+)"', rest)
        body = re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)
        line = markdown.count("\n", 0, match.start()) + 1
        if title or language in ("bash", "python", "yaml"):
            yield Block(language or "", title and title[1], body, line)


def run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what ``page`` says, in ``folder``; fail at the first command that fails, naming page and line."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    background: list[subprocess.Popen[bytes]] = []
    try:
        for block in blocks(page):
            where = f"{page.relative_to(ROOT)}, line {block.line}"
            if block.file:
                (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
                (folder / block.file).write_text(block.text)
            elif block.language == "python":
                _program([sys.executable, "-P", "-c", block.text], where)
            elif block.language == "yaml":
                _check_part_of_config(block.text, folder)
            else:
                for command in commands(block.text):
                    _command(command, f"{where}: {command}", monkeypatch, background)
    finally:
        for process in background:
            process.terminate()
        for process in background:
            process.wait()


def commands(text: str) -> Iterator[str]:
    """The commands of a ``bash`` block: lines, with continued lines joined and comments left out."""
    for line in text.replace("\\\n", " ").splitlines():
        command = re.sub(r"\s+# .*$", "", line).strip()
        if command and not command.startswith("#"):
            yield command


def _command(
    command: str, where: str, monkeypatch: pytest.MonkeyPatch, background: list[subprocess.Popen[bytes]]
) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        _program(["make", "--dry-run", "--directory", str(ROOT), *targets], where)
    elif words[0] == "export":
        name, _, value = words[1].partition("=")
        monkeypatch.setenv(name, os.path.expandvars(value))
    elif words[-1] == "&":
        background.append(subprocess.Popen(words[:-1]))
    elif words[0] == "recsys" and not {"|", ">", "&&", "<"} & set(words):
        _verb([os.path.expandvars(word) for word in words[1:]], where)
    elif words[0] not in CHECKED_ONLY:
        _program(["bash", "-euo", "pipefail", "-c", command], where)


def _check_part_of_config(text: str, folder: Path) -> None:
    from recsys.config.experiment import ExperimentConfig
    from recsys.config.validation import parse_config
    from recsys.config.yaml_files import read_yaml

    whole, part = read_yaml(folder / "experiment.yaml"), yaml.safe_load(text)
    for block, keys in part.items():
        whole[block] = {**whole.get(block, {}), **keys} if isinstance(keys, dict) else keys
    parse_config(ExperimentConfig, whole, source=text)


def _program(arguments: list[str], where: str) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(
            f"{where} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}", pytrace=False
        )


def _verb(arguments: list[str], where: str) -> None:
    from typer.testing import CliRunner

    from recsys.cli import app

    result = CliRunner().invoke(app, arguments)
    if result.exit_code:
        reason = result.exception if result.exception else result.output[-2000:]
        pytest.fail(f"{where} ended with {result.exit_code}: {reason!r}\n{result.output[-2000:]}", pytrace=False)
