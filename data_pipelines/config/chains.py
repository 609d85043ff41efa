"""Checks of tasks that happen only after another one: ``data.tasks.<name>.after``."""

import difflib
from collections.abc import Iterator, Mapping

from data_pipelines.config.learning import Task


def chain_problems(tasks: Mapping[str, Task]) -> Iterator[str]:
    """What is wrong with the keys ``after`` of tasks, one sentence each."""
    after = {name: task.after for name, task in tasks.items() if task.after is not None}
    for name, first in after.items():
        if first not in tasks:
            nearest = difflib.get_close_matches(first, tasks, n=1, cutoff=0.0)
            yield f"`tasks.{name}.after`: there is no task `{first}`: did you mean `{nearest[0]}`?"
            return
        for task in (name, first):
            if tasks[task].kind != "binary":
                yield (
                    f"`tasks.{name}.after` multiplies probabilities, and task `{task}` is of kind {tasks[task].kind}: "
                    "remove the key"
                )
    for name in after:
        seen = [name]
        while seen[-1] in after:
            if after[seen[-1]] in seen:
                circle = " after ".join([*seen, after[seen[-1]]])
                yield f"`tasks.{name}.after` goes in a circle ({circle}): one of these tasks must come first"
                return
            seen.append(after[seen[-1]])
