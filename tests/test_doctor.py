"""The doctor judges an installation by its metadata alone; here the metadata is of environments that are not ours."""

import subprocess
import sys
from email.message import Message
from pathlib import Path

import pytest

from data_pipelines.errors import UserError
from recsys import doctor

CUDA_TORCH = "2.13.0"
CPU_TORCH = "2.13.0+cpu"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Lay out distributions in a folder that hides the real ones: ``install(name=version, ...)``."""
    pins = {"torch==2.13.*", "torchrec==1.8.*", "fbgemm-gpu==1.8.*"}
    site = tmp_path / "site"
    site.mkdir()

    def lay_out(cuda: str | None = None, needs: tuple[str, ...] = (), **versions: str) -> None:
        own = {doctor.PACKAGE: ("0.1.0", pins)}
        found = {name.replace("_", "-"): (version, set()) for name, version in versions.items()}
        if "torch" in found:
            found["torch"] = (versions["torch"], set(needs))
            (site / "torch").mkdir()
            (site / "torch/version.py").write_text(
                f"__version__ = '{versions['torch']}'\ncuda: str | None = {cuda!r}\n"
            )
        for name, (version, required) in (own | found).items():
            folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
            folder.mkdir()
            lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
            lines += [f"Requires-Dist: {text}" for text in sorted(required)]
            (folder / "METADATA").write_text("\n".join(lines) + "\n")
        monkeypatch.setattr(sys, "path", [str(site)])

    return lay_out


def test_accepts_what_belongs_together(install):
    install(torch=CPU_TORCH, torchrec="1.8.0", fbgemm_gpu_cpu="1.8.0")
    doctor.guard()


def test_accepts_the_cuda_builds(install):
    install(cuda="12.8", torch=CUDA_TORCH, torchrec="1.8.0", fbgemm_gpu="1.8.0")
    doctor.guard()


@pytest.mark.parametrize(
    ("versions", "sentence"),
    [
        ({"torch": "2.12.1+cpu", "torchrec": "1.8.0", "fbgemm_gpu_cpu": "1.8.0"}, "torch==2.13.0"),
        ({"torch": CPU_TORCH, "torchrec": "1.7.0", "fbgemm_gpu_cpu": "1.8.0"}, "torchrec==1.8.0"),
        ({"torch": CPU_TORCH, "torchrec": "1.8.0", "fbgemm_gpu_cpu": "1.7.0"}, "fbgemm-gpu-cpu==1.8.0"),
        ({"torch": CPU_TORCH, "torchrec": "1.8.0"}, "fbgemm: is not installed"),
        ({"torch": CPU_TORCH, "torchrec": "1.8.0", "fbgemm_gpu": "1.8.0"}, "is a CUDA build"),
        ({"torch": CPU_TORCH, "torchrec": "1.8.0", "fbgemm_gpu": "1.9.0", "fbgemm_gpu_cpu": "1.8.0"}, "both installed"),
        ({"torchrec": "1.8.0", "fbgemm_gpu_cpu": "1.8.0"}, "torch: is not installed"),
    ],
)
def test_refuses_what_would_crash_at_import(install, versions, sentence):
    install(**versions)
    with pytest.raises(UserError, match=sentence) as refusal:
        doctor.guard()
    assert "pip install" in str(refusal.value)


def test_names_a_cuda_library_that_is_missing(install):
    needs = ("nvidia-cublas-cu12==12.8.4.1", 'nvidia-nccl-cu12==2.27 ; sys_platform == "win32"')
    install(cuda="12.8", needs=needs, torch=CUDA_TORCH, torchrec="1.8.0", fbgemm_gpu="1.8.0")
    with pytest.raises(UserError, match=r"nvidia-cublas-cu12==12\.8\.4\.1"):
        doctor.guard()


def test_only_notes_a_cpu_fbgemm_beside_a_cuda_torch(install):
    install(cuda="12.8", torch=CUDA_TORCH, torchrec="1.8.0", fbgemm_gpu_cpu="1.8.0")
    assert [finding.level for finding in doctor.builds()] == ["ok", "ok", "note"]


def test_finds_this_environment_sound():
    findings = doctor.examine()
    assert [finding for finding in findings if finding.level == "fault"] == []
    assert {"torch", "torchrec", "fbgemm", "trial lookup", "GPU", "CPU", "cores", "memory"} <= {
        f.subject for f in findings
    }


def test_every_advice_comes_with_what_was_found(install):
    install()
    for finding in doctor.builds():
        assert finding.found
        assert finding.level == "ok" or finding.advice


def test_guard_imports_nothing_heavy():
    program = "import sys; from recsys.doctor import guard; guard(); print({'torch', 'polars'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_says_where_it_runs_and_where_it_is_tested(monkeypatch):
    def fields(package):
        found = Message()
        found["Requires-Python"] = "<3.14,>=3.11"
        return found

    monkeypatch.setattr(doctor, "metadata", fields)
    assert doctor.where("Linux", "x86_64", "3.11.7").level == "ok"
    for machine, python in (("x86_64", "3.13.1"), ("aarch64", "3.11.7")):
        found = doctor.where("Linux", machine, python)
        assert (found.level, found.advice) == ("note", "Its tests run on Linux x86_64 with Python 3.11.")
    assert "FBGEMM has no build" in doctor.where("Darwin", "arm64", "3.12.0").advice
    too_new = doctor.where("Linux", "x86_64", "3.14.0")
    assert too_new.level == "fault"
    assert "TorchRec" in too_new.advice
