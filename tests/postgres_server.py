"""A real PostgreSQL server for the time of a test or a benchmark, in a folder of its own, reached by a socket."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path


def binaries() -> Path | None:
    """The newest server's programs; ``None`` where none is installed."""
    found = [Path(path) for path in sorted(glob("/usr/lib/postgresql/*/bin"))]
    on_path = shutil.which("initdb")
    return found[-1] if found else Path(on_path).parent if on_path else None


@contextmanager
def postgres_server() -> Iterator[str]:
    """Start a server and yield its URL."""
    programs = binaries()
    assert programs is not None
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    user = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
    if user:
        shutil.chown(folder, user)
    data = folder / "data"

    def run(program: str, *arguments: str) -> None:
        subprocess.run([str(programs / program), *arguments], check=True, user=user, capture_output=True, cwd=folder)

    run("initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync")
    options = f"-k {folder} -c listen_addresses= -c fsync=off -c max_connections=200"
    run("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql://postgres@/postgres?host={folder}"
    finally:
        run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder)
