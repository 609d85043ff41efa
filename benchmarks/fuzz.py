"""Coverage-guided fuzzing of everything that reads foreign bytes: manifests, models, encoders, tensors, packed streams,
request bodies and configs.

    python -m benchmarks.fuzz --seconds 400 [--corpus DIR] [manifest arrow ...]

The fuzzer is atheris (libFuzzer for Python), in an environment of its own. An input that raises anything but the errors
that become one sentence, ends the process, takes more than 2 GiB or more than 20 seconds is a fault, and is kept beside
the corpus. The tests read the small corpus in ``tests/serving/fuzz_corpus``, which ``--keep`` writes.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import ROOT, machine, peer_python, table

_KEPT, _LARGEST_KEPT = 20, 4096
"""How many inputs of a target the tests replay, and bytes of the largest."""


def drive(name: str, artifact: Path, arguments: list[str]) -> None:
    """Fuzz one target in this process, which never returns. ``arguments`` are libFuzzer's."""
    import atheris

    with atheris.instrument_imports(include=["data_pipelines", "serving", "recsys"]):
        from benchmarks.fuzz_targets import scratch, targets

    with scratch() as folder:
        target = targets(artifact, Path(folder))[name]
        atheris.Setup([name, *arguments], target.run)
        atheris.Fuzz()


def fuzz(name: str, artifact: Path, corpus: Path, arguments: list[str]) -> tuple[int, int, int, str]:
    """Runs, covered edges, exit code and the end of the log of one target."""
    faults = corpus.with_name(f"{corpus.name}-faults")
    faults.mkdir(exist_ok=True)
    command = [peer_python("atheris"), "-m", "benchmarks.fuzz", "--drive", name, "--artifact", artifact, "--"]
    limits = ["-rss_limit_mb=2048", "-timeout=20", f"-artifact_prefix={faults}/", "-print_final_stats=1"]
    packages = [path for path in sys.path if path.endswith("site-packages")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *packages]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(part) for part in [*command, *limits, *arguments]], env=environment, capture_output=True, text=True
    )
    runs = re.search(r"stat::number_of_executed_units: (\d+)", done.stderr)
    edges = re.findall(r"cov: (\d+)", done.stderr)
    return int(runs[1]) if runs else 0, int(edges[-1]) if edges else 0, done.returncode, done.stderr[-3000:]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=int, default=60, help="Of each target.")
    parser.add_argument("--corpus", type=Path, help="Folder that inputs are read from and added to.")
    parser.add_argument("--keep", type=Path, help="Copy a few small inputs of each target here.")
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    parser.add_argument("--artifact", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else None)
    if chosen.drive:
        return drive(chosen.drive, chosen.artifact, sys.argv[sys.argv.index("--") + 1 :])

    from benchmarks.fuzz_targets import targets
    from benchmarks.hostile import prepared

    print(machine(), flush=True)
    lines, faults, total = [], 0, 0
    with tempfile.TemporaryDirectory() as folder:
        artifact = prepared(Path(folder))[1]
        (scratch := Path(folder) / "scratch").mkdir()
        known = targets(artifact, scratch)
        for name in chosen.targets or known:
            corpus = (chosen.corpus or Path(folder) / "corpus") / name
            corpus.mkdir(parents=True, exist_ok=True)
            for number, seed in enumerate(known[name].seeds):
                (corpus / f"seed-{number}").write_bytes(seed)
            runs, edges, code, log = fuzz(name, artifact, corpus, [str(corpus), f"-max_total_time={chosen.seconds}"])
            if code:
                print(name, log, sep="\n", file=sys.stderr)
            if chosen.keep and not code:
                _keep(corpus, chosen.keep / name)
            faults, total = faults + (code != 0), total + runs
            lines.append((name, f"{runs:,}", f"{edges:,}", "fault" if code else "none"))
            print(*lines[-1], flush=True)
    print(table(("target", "inputs", "edges covered", "faults"), lines))
    print(json.dumps({"targets": len(lines), "seconds": chosen.seconds, "inputs": total, "faults": faults}))


def _keep(corpus: Path, kept: Path) -> None:
    """Copy some of the corpus, evenly spread over the sizes of its small inputs: a repository should hold few bytes."""
    small = sorted(
        (file.stat().st_size, file.name) for file in corpus.iterdir() if file.stat().st_size <= _LARGEST_KEPT
    )
    kept.mkdir(parents=True, exist_ok=True)
    for at in range(min(_KEPT, len(small))):
        _, name = small[at * len(small) // min(_KEPT, len(small))]
        shutil.copyfile(corpus / name, kept / name[:16])


if __name__ == "__main__":
    main()
