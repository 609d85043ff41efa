"""Checks of the installation and the machine; from metadata only where an import could crash.

TorchRec and FBGEMM are compiled against one minor version of Torch; any other combination fails at import with an
undefined symbol. :func:`guard` therefore compares the installed versions before anything heavy is imported.
"""

import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, metadata, requires
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from data_pipelines.errors import UserError

PACKAGE = "sparse-recsys"
CPU_BUILD = "fbgemm-gpu-cpu"
CUDA_BUILD = "fbgemm-gpu"
COMPILED_TOGETHER = ("torch", "torchrec", CUDA_BUILD)
OPTIONAL_PARTS = {
    "serve": ("the scoring service", ("fastapi", "uvicorn", "sqlalchemy", "alembic", "psycopg", "prometheus-client")),
    "lake": ("s3:// paths and Delta Lake tables", ("s3fs", "deltalake")),
    "baselines": ("the LightGBM baseline", ("lightgbm",)),
    "tune": ("recsys tune", ("optuna",)),
    "tracking": ("MLflow: tracking and models", ("mlflow-skinny", "pandas")),
    "onnx": ("ONNX graphs of portable artifacts", ("onnx", "onnxruntime")),
    "cluster": ("prepare and score on a Ray cluster", ("ray",)),
}
LOW_MEMORY_BYTES = 4 << 30
_TESTED_MACHINES, _TESTED_PYTHON = ("x86_64", "AMD64"), "3.11."
NOTABLE_SPEEDUP = 1.3
"""How much faster a library must be before it is worth changing a setting."""

Level = Literal["ok", "note", "fault"]


@dataclass(frozen=True)
class Finding:
    """One check: what was found and, unless it is fine, what to do.

    A ``note`` is information; with a ``fault`` the stack does not run.
    """

    level: Level
    subject: str
    found: str
    advice: str = ""


def guard() -> None:
    """Refuse to start on an installation that would crash at import. Takes milliseconds; imports nothing heavy.

    Raises:
        UserError: Torch, TorchRec and FBGEMM do not fit together; says what to install.

    Example:
        >>> rs.guard()  # says nothing if the installation is sound
    """
    for finding in (where(), *builds()):
        if finding.level == "fault":
            raise UserError(f"{finding.subject}: {finding.found}. {finding.advice}")


def where(system: str | None = None, machine: str | None = None, python: str | None = None) -> Finding:
    """Whether the stack runs on this platform and this Python, and whether it is tested there.

    Args:
        system: As :func:`platform.system` names it; that of this process if absent, as are the others.
        machine: As :func:`platform.machine` names it.
        python: The version of Python.
    """
    system, machine = system or platform.system(), machine or platform.machine()
    python = python or platform.python_version()
    wanted = SpecifierSet(",".join(metadata(PACKAGE).get_all("Requires-Python") or ()))
    found = f"{system} {machine}, Python {python}"
    if system != "Linux":
        advice = "FBGEMM has no build for it: use Linux on x86_64, or a container or virtual machine of it."
        return Finding("fault", "platform", found, advice)
    if not wanted.contains(python, prereleases=True):
        return Finding(
            "fault", "platform", found, f"This version needs Python {wanted}, for which TorchRec has builds."
        )
    if machine not in _TESTED_MACHINES or not python.startswith(_TESTED_PYTHON):
        advice = f"Its tests run on Linux x86_64 with Python {_TESTED_PYTHON.rstrip('.')}."
        return Finding("note", "platform", found, advice)
    return Finding("ok", "platform", found)


def builds() -> Iterator[Finding]:
    """Compare Torch, TorchRec and FBGEMM with each other and with the versions that this project needs."""
    wanted = {
        requirement.name: requirement.specifier
        for requirement in map(Requirement, requires(PACKAGE) or ())
        if requirement.name in COMPILED_TOGETHER
    }
    torch = _installed("torch")
    on_cpu = torch is None or _cuda_of(torch) is None
    fbgemm = {name: found for name in (CPU_BUILD, CUDA_BUILD) if (found := _installed(name))}
    right_build = CPU_BUILD if on_cpu else CUDA_BUILD
    pin = f"{right_build}{_exact(wanted[CUDA_BUILD])}"

    for name in ("torch", "torchrec"):
        found = _installed(name)
        if found is None:
            yield Finding("fault", name, "is not installed", f"Run: {_install(name + _exact(wanted[name]))}")
        elif not wanted[name].contains(found.version, prereleases=True):
            advice = f"This version needs {name}{wanted[name]}. Run: {_install(name + _exact(wanted[name]))}"
            yield Finding("fault", name, f"is {found.version}", advice)
        else:
            yield Finding("ok", name, found.version)

    if torch is not None and (missing := _missing_libraries(torch)):
        advice = (
            f"Run: pip install {missing}, or install a CPU build of Torch ({wanted['torch']}) from where you get it."
        )
        yield Finding("fault", "torch", f"is a CUDA build and its library {missing} is not installed", advice)

    if len(fbgemm) > 1:
        advice = f"Keep the one for this Torch. Run: pip uninstall -y {CPU_BUILD} {CUDA_BUILD} && {_install(pin)}"
        yield Finding("fault", "fbgemm", f"{CPU_BUILD} and {CUDA_BUILD} are both installed, in one folder", advice)
    elif not fbgemm:
        yield Finding("fault", "fbgemm", "is not installed", f"Run: {_install(pin)}")
    else:
        ((name, found),) = fbgemm.items()
        if not wanted[CUDA_BUILD].contains(found.version, prereleases=True):
            advice = f"It does not fit this Torch and TorchRec. Run: pip uninstall -y {name} && {_install(pin)}"
            yield Finding("fault", "fbgemm", f"{name} is {found.version}", advice)
        elif name == CUDA_BUILD and on_cpu:
            advice = f"Run: pip uninstall -y {name} && {_install(pin)}"
            yield Finding("fault", "fbgemm", f"{name} is a CUDA build, and this Torch is a CPU build", advice)
        elif name == CPU_BUILD and not on_cpu:
            advice = f"Tables stay on the CPU. For the GPU run: pip uninstall -y {name} && {_install(pin)}"
            yield Finding("note", "fbgemm", f"{name} {found.version}, and this Torch is a CUDA build", advice)
        else:
            yield Finding("ok", "fbgemm", f"{name} {found.version}")


def examine() -> list[Finding]:
    """All checks of ``recsys doctor``, the installation first."""
    findings = [where(), *builds()]
    if all(finding.level != "fault" for finding in findings):
        findings.append(_trial())
        findings.append(_gpu())
        findings.append(_products())
    findings += [*_machine(), *_optional_parts()]
    return findings


def _trial() -> Finding:
    """Import FBGEMM in another process and look up rows with it, so that a crash is reported."""
    import subprocess
    import sys

    program = (
        "import torch, fbgemm_gpu, torchrec\n"
        "bags = torchrec.EmbeddingBagCollection(tables=[torchrec.EmbeddingBagConfig(name='t', embedding_dim=4, "
        "num_embeddings=3, feature_names=['f'])])\n"
        "ids = torchrec.KeyedJaggedTensor.from_lengths_sync(['f'], torch.tensor([1, 2]), torch.tensor([2, 0]))\n"
        "assert torch.ops.fbgemm.asynchronous_complete_cumsum(ids.lengths()).tolist() == [0, 2, 2]\n"
        "assert bags(ids)['f'].shape == (2, 4)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return Finding("ok", "trial lookup", "FBGEMM loads and looks rows up")
    advice = "Install the pinned list again: pip install --no-deps -r requirements/cpu.txt"
    last = (done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"])[-1]
    return Finding("fault", "trial lookup", last, advice)


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("ok", "GPU", "none that Torch can use; everything runs on the CPU")
    names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return Finding("ok", "GPU", ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in names))


def _products() -> Finding:
    """Which library computes float32 products, and whether it is the faster one here."""
    from models.products import VARIABLE, library, measure

    used, rates = library(), measure()
    best = max(rates, key=rates.__getitem__)
    text = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in rates.items())
    found = f"{used} computes them; GFLOP/s measured here: {text}"
    if rates[best] > NOTABLE_SPEEDUP * rates[used]:
        return Finding("note", "fp32 products", found, f"If this stays so on an idle machine, set {VARIABLE}={best}.")
    return Finding("ok", "fp32 products", found)


def _machine() -> Iterator[Finding]:
    import psutil

    flags = _cpu_flags()
    if flags and "avx2" not in flags:
        yield Finding("fault", "CPU", "has no AVX2", "FBGEMM's lookups need it: use a machine made after 2013.")
    elif flags & {"amx_bf16", "avx512_bf16"}:
        fast = "AMX" if "amx_bf16" in flags else "AVX-512"
        yield Finding("ok", "CPU", f"bf16 in hardware ({fast}): train.precision=bf16 is the fast setting")
    elif flags:
        yield Finding("ok", "CPU", "AVX2, no bf16 in hardware: leave train.precision=fp32")
    if flags & {"avx512_vnni", "avx_vnni"}:
        yield Finding("ok", "CPU", "int8 in hardware (VNNI): sparsity.quantization.activations=int8 scores fastest")
    cores = len(os.sched_getaffinity(0))
    threads = os.environ.get("OMP_NUM_THREADS")
    yield Finding("ok", "cores", f"{cores} to use" + (f", OMP_NUM_THREADS={threads}" if threads else ""))
    memory = psutil.virtual_memory()
    found = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    if memory.available < LOW_MEMORY_BYTES:
        advice = "The demo needs about 4 GiB: close something, or lower train.batch_size."
        yield Finding("note", "memory", found, advice)
    else:
        yield Finding("ok", "memory", found)


def _optional_parts() -> Iterator[Finding]:
    for extra, (what, names) in OPTIONAL_PARTS.items():
        missing = [name for name in names if _installed(name) is None]
        if missing:
            advice = f"For {what} run: pip install {' '.join(missing)}"
            yield Finding("note", f"extra {extra}", f"without {', '.join(missing)}", advice)
        else:
            yield Finding("ok", f"extra {extra}", f"{what}: ready")


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _install(pin: str) -> str:
    return f"pip install --no-deps {pin}"


def _exact(specifier: object) -> str:
    """``==1.8.*`` as the pin of its first release: ``==1.8.0``."""
    return str(specifier).replace(".*", ".0")


def _cuda_of(torch: Distribution) -> str | None:
    """CUDA version that an installed Torch was built for, read from its files; ``None`` for a CPU build."""
    source = Path(str(torch.locate_file("torch/version.py")))
    found = re.search(r"^cuda\b[^=]*=\s*'([\d.]+)'", source.read_text() if source.is_file() else "", re.MULTILINE)
    return found and found[1]


def _missing_libraries(torch: Distribution) -> str:
    """First of the CUDA libraries that this build of Torch asks for and that is not installed, as a requirement."""
    for text in torch.requires or ():
        requirement = Requirement(text)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if requirement.name.startswith("nvidia-") and applies and _installed(requirement.name) is None:
            return f"{requirement.name}{requirement.specifier}"
    return ""


def _cpu_flags() -> set[str]:
    """The CPU's features as Linux lists them; empty on other systems."""
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.is_file() else ""
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else set()
