"""Importing the packages changes nothing in the process that imports them; the process is tuned on request."""

import os
import subprocess
import sys
import warnings

import pytest

from data_pipelines.runtime import ENVIRONMENT, tune_process

IMPORT_EVERYTHING = '''
import importlib, logging, os, pkgutil, sys, warnings

ROOMS = ("data_pipelines", "models", "serving", "recsys")
SKIPPED = ("recsys.__main__", "serving.http.migrations.env", "models.moe.triton_kernels")
changes = []

def by_us():
    """The module of these packages that called, past the standard library."""
    frame = sys._getframe(2)
    while frame and frame.f_globals.get("__name__") in ("os", "warnings", "logging", "_collections_abc", "contextlib"):
        frame = frame.f_back
    name = frame.f_globals.get("__name__", "") if frame else ""
    return name if name.split(".")[0] in ROOMS else None

def watch(owner, name):
    function = getattr(owner, name)
    def watched(*arguments, **keywords):
        if module := by_us():
            changes.append(f"{module} calls {name}{arguments[-2:]}")
        return function(*arguments, **keywords)
    setattr(owner, name, watched)

for owner, name in (
    (type(os.environ), "__setitem__"), (type(os.environ), "__delitem__"), (warnings, "filterwarnings"),
    (warnings, "simplefilter"), (logging.Logger, "setLevel"), (logging, "disable"), (logging, "basicConfig"),
):
    watch(owner, name)

def audit(event, arguments):
    if event == "ctypes.dlsym" and arguments[1] == "mallopt":
        changes.append("mallopt is called")

sys.addaudithook(audit)
before = dict(os.environ)
imported = 0
for room in ROOMS:
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__, f"{room}."):
        if module.name not in SKIPPED and not module.name.startswith("serving.http.migrations."):
            importlib.import_module(module.name)
            imported += 1
assert imported > 150, imported
changes += [f"{name} is set" for name in os.environ if name.startswith(("POLARS_", "THP_")) and name not in before]
print("\\n".join(changes))
if "--tuned" in sys.argv:
    from data_pipelines.runtime import tune_process
    changes.clear()
    tune_process()
    print("\\n".join(changes))
'''


def _run(*arguments: str) -> str:
    command = [sys.executable, "-P", "-c", IMPORT_EVERYTHING, *arguments]
    untuned = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=untuned)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_import_changes_nothing_and_the_watcher_sees_what_tuning_changes() -> None:
    seen = _run("--tuned").splitlines()
    assert seen[0].startswith("data_pipelines.runtime calls __setitem__"), seen
    assert all(line.startswith("data_pipelines.runtime") or line == "mallopt is called" for line in seen)
    assert "mallopt is called" in seen
    assert any("filterwarnings" in line for line in seen)


def test_tuning_keeps_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(iter(ENVIRONMENT))
    for variable in ENVIRONMENT:
        monkeypatch.setenv(variable, "untouched")
    monkeypatch.setenv(name, "mine")
    with warnings.catch_warnings():
        warnings.resetwarnings()  # the process may have been tuned before
        before = list(warnings.filters)
        tune_process()
        assert len(warnings.filters) > len(before)
    assert os.environ[name] == "mine"
