"""The wheel is whole: what the code reads at runtime is in it, and it works away from the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("data_pipelines", "models", "serving", "recsys")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path):
    files = subprocess.run(
        ["git", "ls-files", *ROOMS], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in files if (ROOT / name).exists()} <= packed
    assert not [name for name in packed if name.split("/")[0] not in ROOMS and ".dist-info/" not in name]


def test_the_wheel_works_away_from_the_repository(wheel: Path, tmp_path: Path):
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True)
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, "-P", str(site / "bin/recsys")]
    log = "user,item,time,click\n" + "".join(f"u{n % 7},i{n % 11},{1_700_000_000 + n},{n % 2}\n" for n in range(400))
    (tmp_path / "log.csv").write_text(log)
    where = "import recsys, serving; print(recsys.__file__, serving.__file__)"
    found = subprocess.run([sys.executable, "-P", "-c", where], env=environment, capture_output=True, text=True)
    assert found.stdout.count(str(site)) == 2, found.stdout
    for arguments in (["init", "log.csv", "experiment.yaml"], ["prepare", "experiment.yaml", "dataset"]):
        done = subprocess.run(script + arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "dataset/manifest.json").is_file()
