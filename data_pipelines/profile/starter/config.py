"""A commented experiment to start from, made from a first look at a log."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.files.base import FileFormat
from data_pipelines.files.side_tables import Join
from data_pipelines.profile import words
from data_pipelines.profile.columns import Column
from data_pipelines.profile.inspection import LogProfile
from data_pipelines.profile.starter.features import (
    distinct_values,
    features,
    in_lists,
    is_binary,
    left_out,
    past,
    shows_interactions,
    task_name,
    unknown_shares,
)
from data_pipelines.profile.wording import line, listed, percent, scalar

_FEWEST_DAYS = 10
"""Days from which times that are dates are split between days."""
_LATEST_SHARES = (0.1, 0.2)
"""Shares of the rows from the first day of test, and of valid, on."""
_FEWEST_USERS = 30
"""Distinct values from which a column of ids may hold users."""
_WEIGHTED = {"sample", "instance", "row", "case", "survey", "frequency"}
"""Words that say that a weight is that of a row, and not that of an item."""
_SMALL_TABLES = 200_000
"""Distinct values, of all columns, up to which every row of the tables is updated at each step."""
_AVERAGED_TABLES = 2_000_000
"""Distinct values up to which weights are averaged: it reads and writes every row of the tables at each step."""


def starter_config(profile: LogProfile) -> str:
    """YAML of an experiment on the log of ``profile`` that runs as it stands, every choice with its reason.

    Raises:
        UserError: The log shows no label, and no user and item to draw negatives for; or nothing to learn from.
    """
    missing = what_is_missing(profile)
    if missing is not None:
        raise UserError(f"{profile.location} {missing}")
    described = list(features(profile))
    if not described:
        raise UserError(
            f"{profile.location} has no column to learn from: {'; '.join(left_out(profile)).replace('    # ', '')}"
        )
    name = re.sub(r"\W+", "-", Path(profile.location.rstrip("/*")).stem).strip("-").lower() or "experiment"
    lines = [
        f"# {profile.rows:,} rows, {len(profile.columns)} columns. Everything below is a guess from the log: change",
        "# what you know better. Then: recsys prepare THIS_FILE DATASET, recsys train THIS_FILE DATASET RUN.",
        f"name: {scalar(name)}",
        "seed: 0",
        "",
        "data:",
        _log(profile.location),
        *_format(profile),
        *_sides(profile),
        *_where(profile),
        *_time_and_user(profile),
        *_group(profile),
        *_task(profile),
        *_weight(profile),
        *_split(profile),
        *_keys(profile),
        "  features:",
        *(f"    # Look at this: {sentence}." for sentence in profile.combinations),
        *described,
        *past(profile),
        *in_lists(profile),
        *left_out(profile),
        "",
        *_model(profile),
        *_train(profile),
    ]
    return "\n".join(lines) + "\n"


_FEW_VALUES = 5
"""Distinct values up to which a column is named as a possible label."""
_REPEATED = 0.05
"""Share of repeats among the rows from which half of the negatives are what the user took before."""

_WIDE = "wide: {optimizer: sgd, learning_rate: 0}"


def _model(profile: LogProfile) -> Iterator[str]:
    yield "model:"
    yield "  dim: 16                                   # width of the embeddings"
    yield "  init_std: 0.0001                          # tables start near zero, and grow by what they learn"
    if shows_interactions(profile):
        yield "  batch_norm: true                          # values have many events each: embeddings count at any size"
    yield "  wide: true                                # a linear model of ids and numbers, to which the rest adds"
    yield "  interaction: {kind: cross, layers: 1}     # or fm, dot, multiplicative, none"
    yield "  tower: {kind: mlp, hidden: [128]}         # or {kind: moe, experts: 4, top_k: 1, hidden: 128}"


def _train(profile: LogProfile) -> Iterator[str]:
    """A small log takes small batches: an epoch of fewer than a hundred steps hardly learns.

    The wide part stays the linear model that it is fitted to, and the rest learns what that model misses; the first
    evaluation is of the linear model alone, so a log that shows nothing more keeps it. What is missed has mean zero for
    every value, so strong decay holds embeddings near zero. Where values have enough events, batch normalization lets
    the tower read embeddings of any size, so it learns from them, and decay only weakens rare ones. The log loss
    chooses: it needs fewer positives than AUC to tell models apart. Adam with decay updates every row of a table at
    each step, so tables of many values learn by rowwise Adagrad.
    """
    batch_size = min(2048, max(128, 1 << (max(1, profile.rows // 100).bit_length() - 1)))
    yield from ("", "train:")
    yield "  start: linear                             # fits the wide part to the training rows, before all else"
    yield "  epochs: 10                                # at most: training stops when validation no longer improves"
    yield f"  batch_size: {batch_size}"
    if distinct_values(profile) <= _SMALL_TABLES:
        yield f"  tables: {{optimizer: adam, learning_rate: 0.003, weight_decay: 0.01, {_WIDE}}}"
    else:
        yield f"  tables: {{optimizer: rowwise_adagrad, learning_rate: 0.02, {_WIDE}}}"
    yield "  dense: {optimizer: adamw, learning_rate: 0.003}"
    if distinct_values(profile) <= _AVERAGED_TABLES:
        yield "  ema: 0.99                                 # average of the weights over about 100 steps"
    else:
        yield "  # ema: 0.99                               # an average of all rows of the tables takes most of a step"
    if is_binary(profile):
        yield "  monitor: {logloss: -1}                    # of valid rows: tells more than AUC where positives are few"
    yield "  patience: 3"
    unknown = unknown_shares(profile)
    if unknown:
        shares = ", ".join(f"{scalar(name)}: {share:g}" for name, share in unknown.items())
        yield line(f"  unknown: {{{shares}}}", "ids to train as unknown: new rows have many new values")


def what_is_missing(profile: LogProfile) -> str | None:
    """What a starter config needs and the log does not show, as the end of a sentence; ``None`` where nothing is."""
    if profile.label is not None or (profile.user is not None and profile.item is not None):
        return None
    missing = [f"--{role}" for role, name in (("user", profile.user), ("item", profile.item)) if name is None]
    ids = profile.of("id")[::-1]  # a label is often the last column
    few = [column.name for column in ids if 2 <= (column.distinct or 0) <= _FEW_VALUES]
    two = [column.name for column in ids if column.distinct == 2]
    likely = f", such as {listed(two or few, 3)}" if two or few else ""
    return (
        f"shows no label (a column of 0 and 1, or of ratings): name it with --label{likely}; or, if every row is a "
        f"positive, name its columns with {' and '.join(missing)}; there are "
        f"{listed(column.name for column in profile.columns)}."
    )


def _log(location: str) -> str:
    text = f"  log: {scalar(location)}"
    return line(text, "the credential is not written: put ${NAME} for ***") if "***" in location else text


def _format(profile: LogProfile) -> Iterator[str]:
    if profile.format is not None:
        yield f"  format: {_flow(profile.format)}"


def _flow(format: FileFormat) -> str:
    """A format as one line of YAML."""
    kind = {"kind": format.model_dump()["kind"]}
    keys = kind | format.model_dump(mode="json", exclude_defaults=True)
    return "{" + ", ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()) + "}"


def _sides(profile: LogProfile) -> Iterator[str]:
    if profile.sides:
        yield "  joins:"
    for side in profile.sides:
        join = side.join
        on = _keys_of(join)
        prefix = f", prefix: {scalar(join.prefix)}" if join.prefix else ""
        format = "" if join.format is None else f", format: {_flow(join.format)}"
        columns = f"{len(side.added)} column{'s' * (len(side.added) != 1)}"
        comment = f"{columns}; {percent(side.unmatched)} of the rows have no row in it"
        only = ""
        if list(side.added) == [profile.label]:
            label = str(profile.label).removeprefix(join.prefix)
            only, comment = f", columns: [{scalar(label)}]", f"the label: not read to score; {comment}"
        yield line(f"    - {{table: {scalar(join.table)}, on: {on}{only}{prefix}{format}}}", comment)


def _where(profile: LogProfile) -> Iterator[str]:
    """A condition, commented out, that leaves out rows that seem to be exceptions."""
    conditions = [exclusion.condition for exclusion in profile.exclusions]
    if not conditions:
        return
    for exclusion in profile.exclusions:
        yield f"  # {percent(exclusion.share)} of the rows {exclusion.reason}."
    whole = conditions[0] if len(conditions) == 1 else " AND ".join(f"({condition})" for condition in conditions)
    yield line(f"  # where: {scalar(whole)}", "leaves these rows out, here and of all events that are added later")


def _keys_of(join: Join) -> str:
    """The columns to join on, as YAML."""
    if isinstance(join.on, str):
        return scalar(join.on)
    if isinstance(join.on, list):
        return f"[{', '.join(map(scalar, join.on))}]"
    return "{" + ", ".join(f"{scalar(own)}: {scalar(other)}" for own, other in join.on.items()) + "}"


def _time_and_user(profile: LogProfile) -> Iterator[str]:
    if profile.time is not None:
        yield line(f"  time: {scalar(profile.time)}", f"{profile.first} to {profile.last}")
        match profile.time_formats.get(profile.time, ()):
            case [only]:
                yield line(f"  time_format: {scalar(only)}", "a guess from the values: check the first and last time")
            case [first, second, *_]:
                reason = f"a guess: {scalar(second)} fits as well, so check the order of day and month"
                yield line(f"  time_format: {scalar(first)}", reason)
    if profile.user is not None:
        yield line(f"  user: {scalar(profile.user)}", "of whom rows are: per-user metrics, histories")
    elif profile.time is not None:
        likely = max(_possible_users(profile), key=lambda column: column.distinct or 0, default=None)
        if likely is not None:
            reason = "the likeliest column: if it holds users, init --user writes features of their past"
            yield line(f"  # user: {scalar(likely.name)}", reason)


def _possible_users(profile: LogProfile) -> list[Column]:
    """Columns of ids that new rows have, too, and that have several rows per value."""
    ids = [column for column in profile.of("id") if not column.suspicions and column.side is None]
    return [column for column in ids if _FEWEST_USERS <= (column.distinct or 0) <= profile.rows // 2]


def _task(profile: LogProfile) -> Iterator[str]:
    if profile.label is None:
        yield from _positives_only(profile)
        return
    rule = f"column: {scalar(profile.label)}"
    if profile.label_at_least is not None:
        rule += f", at_least: {profile.label_at_least:g}"
    elif profile.label_positive:
        rule += f", positive: {json.dumps(profile.label_positive, ensure_ascii=False)}"
    else:
        rule += f", kind: {profile.label_kind}"
    if profile.label_rate is not None:
        figure = f"{percent(profile.label_rate)} of the labels are positive"
    else:
        figure = f"mean {profile.label_mean:.4g}"
    yield "  tasks:"
    note = f"{figure}; {profile.label_note}" if profile.label_note else figure
    yield line(f"    {scalar(task_name(profile))}: {{{rule}}}", note)


def _group(profile: LogProfile) -> Iterator[str]:
    lists = profile.lists
    if lists is None:
        return
    keys = ", ".join(map(scalar, lists.keys))
    yield f"  # Guessed: rows that share {keys} were shown together, as a list. {percent(lists.share)} of the rows are"
    yield f"  # in lists of at least two; the median list has {lists.size:g} rows. In scoring, a list is what is asked"
    yield "  # together: neighbouring rows that share these columns, or all --candidates of a user. If the guess is"
    yield "  # wrong, remove this line and the features of kind relative, which compare a row with its list."
    yield f"  group: [{keys}]"


def _positives_only(profile: LogProfile) -> Iterator[str]:
    yield "  # The log has no label, so its rows are taken for positives, and negatives are drawn for each. Metrics of"
    yield "  # metrics of drawn negatives are too optimistic: recsys evaluate RUN --ranking ranks all items."
    nulls = profile.column(str(profile.user)).nulls
    if nulls > 0:
        yield f"  # {percent(nulls)} of the rows have no user: they count for the items, and for nobody's past."
    yield "  tasks: {chosen: {column: positive}}"
    yield "  sampling:"
    yield f"    item: {scalar(str(profile.item))}"
    returns = profile.time is not None and (profile.repeated or 0) >= _REPEATED
    yield line(f"    negatives: {4 if returns else 8}", "per row; more take longer")
    if returns:
        share = percent(profile.repeated or 0)
        yield line("    repeats: 0.5", f"of these, what the user took before: {share} of the rows are such repeats")
    yield line("    by: popularity", "scores do not depend on it: `log_q` corrects for how often an item is drawn")
    yield line("    exclude: basket", "what is taken together is no negative; what was taken before may be one")
    if profile.basket is not None:
        yield line(f"    basket: [{scalar(profile.basket)}]", "what the rows of a basket share; else user and time")


def _split(profile: LogProfile) -> Iterator[str]:
    if profile.split is None and profile.split_files:
        yield f"  # The files are named {', '.join(profile.split_files)}, and read as one log. If that is a split, add"
        yield "  # a column `split` of train, valid and test to each file, and run init again."
    if profile.split is not None:
        reason = "as the log says; a tenth of train is valid if it names none"
        yield line(f"  split: {{by: column, column: {scalar(profile.split)}}}", reason)
    elif profile.time is not None:
        days = _days_of_splits(profile)
        if days is None:
            yield line("  split: {by: time, valid: 0.1, test: 0.1}", "the latest rows are the test")
        else:
            reason = "about a tenth each, in whole days: for newer rows, name later days"
            yield line(f"  split: {{by: time, valid: {days[0]}, test: {days[1]}}}", reason)
    else:
        yield line("  split: {by: random, valid: 0.1, test: 0.1}", "no time was found: add `time` if there is one")


def _days_of_splits(profile: LogProfile) -> tuple[str, str] | None:
    """Where times are dates: the first days of valid and test, so that no day is in two splits; else ``None``."""
    if profile.hours > 1 or len(profile.days) < _FEWEST_DAYS:
        return None
    total, later = sum(rows for _, rows, _ in profile.days), 0
    starts: list[str] = []
    for day, rows, _ in reversed(profile.days):
        later += rows
        if later >= total * _LATEST_SHARES[len(starts)]:
            starts.append(day)
        if len(starts) == len(_LATEST_SHARES):
            return starts[1], starts[0]
    return None


def _weight(profile: LogProfile) -> Iterator[str]:
    for column in profile.columns:
        found = words.words(column.name)
        if column.role in ("number", "id") and found[-1:] in (["weight"], ["weights"]) and set(found) & _WEIGHTED:
            keep = "if it says how much a row counts, and remove the feature"
            yield line(f"  # weight: {scalar(column.name)}", keep)


def _keys(profile: LogProfile) -> Iterator[str]:
    keys = [name for name in (profile.user, profile.item) if name is not None]
    if keys:
        yield line(f"  keys: [{', '.join(map(scalar, keys))}]", "carried along to predictions and scores")
