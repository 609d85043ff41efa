"""``make bench NAME=prepare``: run one benchmark, or all of them one after the other, each in a process of its own.

``KEEP=1`` also writes what they printed into the docs, as ``docs/benchmarks/NAME.md`` with a plot.
"""

import ast
import subprocess
import sys
from pathlib import Path

from benchmarks.common import ROOT, SKIPPED
from benchmarks.pages import keep

FILES = {path.stem: path for path in sorted(Path(__file__).parent.glob("[!_]*.py")) if "def main(" in path.read_text()}


def main(arguments: list[str]) -> int:
    """Run the benchmarks of these names, all if there are none; returns 2 for an unknown name."""
    names = [argument for argument in arguments if argument != "--keep"]
    unknown = set(names) - set(FILES)
    if unknown:
        print(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(FILES)}.", file=sys.stderr)
        return 2
    codes = []
    for name in names or FILES:
        print(f"\n== {name}", flush=True)
        code, output = _run(name)
        codes.append(0 if code == SKIPPED else code)
        if code == 0 and "--keep" in arguments:
            about = ast.get_docstring(ast.parse(FILES[name].read_text())) or ""
            keep(name, about, output, ROOT / "docs" / "benchmarks")
    return max(codes)


def _run(name: str) -> tuple[int, str]:
    """Exit code of a benchmark and what it printed, which is shown as it comes."""
    command = [sys.executable, "-u", "-m", f"benchmarks.{name}"]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return process.returncode, "".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
