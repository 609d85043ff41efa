"""``make bench NAME=prepare``: run one benchmark, or all of them one after the other, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

NAMES = sorted(
    path.stem for path in Path(__file__).parent.glob("*.py") if "def main(" in path.read_text() and path.stem[0] != "_"
)


def main(names: list[str]) -> int:
    """Run the benchmarks of these names, all if there are none; 2 for a name that is none."""
    unknown = set(names) - set(NAMES)
    if unknown:
        print(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}.", file=sys.stderr)
        return 2
    codes = []
    for name in names or NAMES:
        print(f"\n== {name}", flush=True)
        codes.append(subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
