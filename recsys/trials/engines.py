"""Engines, which run the trials of studies and searches, several at a time, on this machine or others."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from threading import Thread
from typing import Any, TypeVar

from data_pipelines import extensions
from data_pipelines.errors import UserError
from data_pipelines.runtime import tune_process

Result = TypeVar("Result")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
"""Environment variables from which libraries read their number of threads when they are loaded."""


@dataclass(frozen=True)
class Engine:
    """Runs calls, ``jobs`` at a time with ``threads`` each.

    Attributes:
        submit: Starts a call, possibly in another process; the call and its result must be picklable.
    """

    jobs: int
    threads: int
    submit: Callable[[Callable[[], Any]], "Future[Any]"]

    def run(self, calls: Iterable[Callable[[], Result]]) -> Iterator[tuple[int, Result]]:
        """The number and the result of each call, as it ends; a call is taken from ``calls`` when it can start.

        Raises:
            UserError: As a call raised it; calls that have not started are dropped.
        """
        waiting = enumerate(calls)
        running: dict[Future[Any], int] = {}
        try:
            while True:
                for number, call in islice(waiting, self.jobs - len(running)):
                    running[self.submit(partial(_outcome, call, extensions.loaded()))] = number
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    number, outcome = running.pop(future), future.result()
                    if isinstance(outcome, UserError):
                        raise outcome
                    yield number, outcome
        finally:
            for future in running:
                future.cancel()


def _outcome(call: Callable[[], Result], modules: Sequence[str]) -> Result | UserError:
    """Import the extensions of the process that asks, and carry out the call.

    Errors that the user can fix are returned, because engines wrap exceptions in their own tracebacks.
    """
    try:
        extensions.load(modules)
        return call()
    except UserError as error:
        return error


@contextmanager
def processes(*, threads: int = 1, jobs: int | None = None) -> Iterator[Engine]:
    """An engine of processes on this machine, which start when they are needed and end with the block.

    Args:
        jobs: As many as the processors allow if ``None``.
    """
    jobs = jobs or max(1, len(os.sched_getaffinity(0)) // threads)
    context = get_context("spawn")
    end, ending = context.Pipe(duplex=False)
    with (
        _environment(dict.fromkeys(THREAD_VARIABLES, str(threads))),
        end,
        ending,
        ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(end,)) as pool,
    ):
        try:
            yield Engine(jobs, threads, pool.submit)
        except KeyboardInterrupt:
            ending.close()  # else the pool waits for trials to end
            raise
        except BrokenProcessPool:
            raise RuntimeError(
                f"a process with a trial died (out of memory?): use fewer jobs than {jobs}; finished trials are kept."
            ) from None


def _begin(end: Connection) -> None:
    """The first call in a process of the pool, which ends as soon as its parent has ended or has closed the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes: the parent ends this one
    tune_process()
    parent = parent_process()
    assert parent is not None
    ends: list[Connection | int] = [end, parent.sentinel]

    def watch() -> None:
        wait_for_any(ends)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
