"""The ``recsys`` command: one verb for each step of the work, in the order of the work.

Exit codes: 0 done; 2 the user's input or config is at fault (one sentence on standard error); 1 anything else.
"""

import errno
import importlib
import os
import sys
import traceback
import warnings
from typing import NoReturn, TextIO

from data_pipelines.errors import Notice, UserError, writing
from data_pipelines.redaction import conceal
from data_pipelines.runtime import tune_process
from recsys.cli.common import app

VERBS = ("demo", "logs", "fit", "data", "plan", "train", "serve", "daily", "study", "sparsity", "doctor")
"""Modules of this package that register verbs, in the order of ``recsys --help``."""

for _module in VERBS:
    importlib.import_module(f"recsys.cli.{_module}")

__all__ = ["app", "main"]


def main() -> NoReturn:
    """Run the command; exit with 2 and one sentence for errors that the user can fix."""
    code: int | str | None = 0
    try:
        with warnings.catch_warnings(), writing("what this command makes"):
            tune_process()
            _print_notices()
            app()
    except SystemExit as end:
        code = end.code
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"recsys: {error.filename} is longer than file names may be: choose a shorter one.", file=sys.stderr)
        code = 2
    except UserError as error:
        print(f"recsys: {error}", file=sys.stderr)
        code = 2
    except Exception:
        print(conceal(traceback.format_exc()), file=sys.stderr)
        code = 1
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Threads of Gloo outlive their group. One that frees a tensor while the interpreter shuts down aborts a rank
        # that has finished its work (pytorch/pytorch pull request 179291).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))
    raise SystemExit(code)


def _print_notices() -> None:
    """Print a :class:`Notice` as one sentence, without the line of code that Python would add."""
    show = warnings.showwarning

    def print_notice(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, Notice):
            print(f"recsys: {message}", file=sys.stderr)
        else:
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = print_notice
