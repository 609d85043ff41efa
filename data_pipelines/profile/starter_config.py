"""A commented experiment to start from, made from a first look at a log."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.files.csv import CsvFormat
from data_pipelines.profile.inspection import Column, LogProfile

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
_RARE = 0.5
_SKEWED = 20.0
_SMALL_TABLES = 200_000
"""Distinct values, of all columns, up to which every row of the tables is updated at each step."""


def starter_config(profile: LogProfile) -> str:
    """YAML of an experiment on the log of ``profile`` that runs as it stands, every choice with its reason.

    Raises:
        UserError: The log shows no label, and no user and item to draw negatives for; or nothing to learn from.
    """
    task = list(_task(profile))
    features = list(_features(profile))
    if not features:
        raise UserError(f"{profile.location} has no column to learn from: all are constant, an index, or the label.")
    name = re.sub(r"\W+", "-", Path(profile.location.rstrip("/*")).stem).strip("-").lower() or "experiment"
    lines = [
        f"# {profile.rows:,} rows, {len(profile.columns)} columns. Everything below is a guess from the log: change",
        "# what you know better. Then: recsys prepare THIS_FILE DATASET, recsys train THIS_FILE DATASET RUN.",
        f"name: {_quoted(name)}",
        "seed: 0",
        "",
        "data:",
        _log(profile.location),
        *_format(profile),
        *_time_and_user(profile),
        *task,
        *_split(profile),
        *_keys(profile),
        "  features:",
        *features,
        *_past(profile),
        *_left_out(profile),
        "",
        *_model(profile),
        *_train(profile),
    ]
    return "\n".join(lines) + "\n"


_EVENTS_PER_VALUE = 5
"""Rows of the rarer class per distinct value from which a log shows how values act together."""

_WIDE = "wide: {optimizer: sgd, learning_rate: 0}"


def _model(profile: LogProfile) -> Iterator[str]:
    yield "model:"
    yield "  dim: 16                                   # width of the embeddings"
    if _shows_interactions(profile):
        yield "  init_std: 0.01                            # start of tables: values have many events each"
    else:
        yield "  init_std: 0.0001                          # tables start near zero: most values have few events"
    yield "  wide: true                                # a linear model of ids and numbers, to which the rest adds"
    yield "  interaction: {kind: cross, layers: 1}     # or fm, dot, multiplicative, none"
    yield "  tower: {kind: mlp, hidden: [128]}         # or {kind: moe, experts: 4, top_k: 1, hidden: 128}"


def _train(profile: LogProfile) -> Iterator[str]:
    """A small log takes small batches: an epoch of fewer than a hundred steps hardly learns.

    The wide part stays the linear model that it is fitted to, and the rest learns what that model misses; the first
    evaluation is of the linear model alone, so a log that shows nothing more keeps it. What is missed has mean zero for
    every value, so near zero and under strong decay embeddings never grow: where values have events enough, tables
    start larger and decay less. The log loss chooses: it needs fewer positives than AUC to tell models apart. Adam with
    decay updates every row of a table at each step, so tables of many values learn by rowwise Adagrad.
    """
    batch_size = min(2048, max(128, 1 << (max(1, profile.rows // 100).bit_length() - 1)))
    decay = "0.0001" if _shows_interactions(profile) else "0.01"
    yield from ("", "train:")
    yield "  start: linear                             # fits the wide part to the training rows, before all else"
    yield "  epochs: 10                                # at most: training stops when validation no longer improves"
    yield f"  batch_size: {batch_size}"
    if _values(profile) <= _SMALL_TABLES:
        yield f"  tables: {{optimizer: adam, learning_rate: 0.003, weight_decay: {decay}, {_WIDE}}}"
    else:
        yield f"  tables: {{optimizer: rowwise_adagrad, learning_rate: 0.02, {_WIDE}}}"
    yield "  dense: {optimizer: adamw, learning_rate: 0.003}"
    yield "  ema: 0.99                                 # average of the weights over about 100 steps"
    if _is_binary(profile):
        yield "  monitor: {logloss: -1}                    # of valid rows: tells more than AUC where positives are few"
    yield "  patience: 3"


def _values(profile: LogProfile) -> int:
    """Distinct values of all columns that have tables."""
    return sum(column.distinct or 0 for column in profile.of("user", "item", "id", "bag"))


def _is_binary(profile: LogProfile) -> bool:
    return not any(kind in keys for keys in _task(profile) for kind in ("kind: regression", "kind: count"))


def _shows_interactions(profile: LogProfile) -> bool:
    """Whether a log has enough events per value to learn how values act together, beyond what each does alone."""
    rate = profile.label_rate if _is_binary(profile) and profile.label_rate is not None else 0.5
    return profile.rows * min(rate, 1 - rate) >= _EVENTS_PER_VALUE * _values(profile)


def _log(location: str) -> str:
    line = f"  log: {_quoted(location)}"
    return _line(line, "the credential is not written: put ${NAME} for ***") if "***" in location else line


def _format(profile: LogProfile) -> Iterator[str]:
    if isinstance(profile.format, CsvFormat):
        yield (
            f"  format: {{kind: csv, delimiter: {json.dumps(profile.format.delimiter)}, "
            f"header: {str(profile.format.header).lower()}}}"
        )


def _time_and_user(profile: LogProfile) -> Iterator[str]:
    if profile.time is not None:
        yield _line(f"  time: {_quoted(profile.time)}", f"{profile.first} to {profile.last}")
        match profile.time_formats.get(profile.time, ()):
            case [only]:
                yield _line(f"  time_format: {_quoted(only)}", "a guess from the values: check the first and last time")
            case [first, second, *_]:
                reason = f"a guess: {_quoted(second)} fits as well, so check the order of day and month"
                yield _line(f"  time_format: {_quoted(first)}", reason)
    if profile.user is not None:
        yield _line(f"  user: {_quoted(profile.user)}", "of whom rows are: per-user metrics, histories")


def _task(profile: LogProfile) -> Iterator[str]:
    if profile.label is None:
        if profile.user is None or profile.item is None:
            raise UserError(
                f"{profile.location} shows no label (a column of 0 and 1, or of ratings), and no user and item to draw "
                "negatives for: name the label with --label."
            )
        yield "  # The log has no label, so its rows are taken for positives, and negatives are drawn for each."
        yield "  tasks: {chosen: {column: positive}}"
        yield f"  sampling: {{item: {_quoted(profile.item)}, negatives: 4, by: popularity, exponent: 0.75}}"
        return
    column = _column(profile, profile.label)
    task = _feature_name(profile.label)
    binary = column.alone_auc is None and column.distinct is not None and column.distinct <= 2
    if profile.label_at_least is not None:
        task, rule = "like", f"column: {_quoted(profile.label)}, at_least: {profile.label_at_least:g}"
    elif profile.label_positive:
        rule = f"column: {_quoted(profile.label)}, positive: {json.dumps(profile.label_positive, ensure_ascii=False)}"
    elif binary:
        rule = f"column: {_quoted(profile.label)}, kind: binary"
    else:
        rule = f"column: {_quoted(profile.label)}, kind: regression"
    rate = "" if profile.label_rate is None else f"{profile.label_rate:.2%} of the rows"
    yield "  tasks:"
    yield _line(f"    {task}: {{{rule}}}", rate)


def _split(profile: LogProfile) -> Iterator[str]:
    if profile.time is not None:
        yield _line("  split: {by: time, valid: 0.1, test: 0.1}", "the latest rows are the test")
    else:
        yield _line("  split: {by: random, valid: 0.1, test: 0.1}", "no time was found: add `time` if there is one")


def _keys(profile: LogProfile) -> Iterator[str]:
    keys = [name for name in (profile.user, profile.item) if name is not None]
    if keys:
        yield _line(f"  keys: [{', '.join(map(_quoted, keys))}]", "carried along to predictions and scores")


def _features(profile: LogProfile) -> Iterator[str]:
    sampled, used = profile.label is None, set[str]()
    for column in profile.columns:
        definition = _definition(column)
        if definition is None or (sampled and _varies_with_item(column)):
            continue
        body, reason = definition
        name = _feature_name(column.name)
        name = name if name not in used else f"{name}_{len(used)}"
        used.add(name)
        source = "" if name == column.name else f", column: {_quoted(column.name)}"
        yield _line(f"    {_quoted(name)}: {{{body}{source}}}", reason)
    if profile.time is not None:
        hours = {column.low[11:] for column in profile.of("time")} | {column.high[11:] for column in profile.of("time")}
        parts = "[weekday]" if hours <= {"00:00:00"} else "[hour, weekday]"
        when = "when" if "when" not in used else "when_parts"
        yield f"    {when}: {{kind: time, column: {_quoted(profile.time)}, parts: {parts}}}"


def _varies_with_item(column: Column) -> bool:
    """Negatives have another item, so other columns of the log do not describe them."""
    return column.role not in ("user", "item")


def _definition(column: Column) -> tuple[str, str] | None:
    """A feature of ``column`` and why it is so; ``None`` for columns that are no features."""
    if _spoilt(column):
        return None
    match column.role:
        case "user" | "item" | "id":
            return _id(column)
        case "bag":
            delimiter = f", delimiter: {json.dumps(column.delimiter)}" if column.delimiter else ""
            return f"kind: bag{delimiter}", f"{column.distinct:,} values, {column.mean_length:.1f} a row"
        case "number":
            return _number(column)
        case "vector" if column.mean_length:
            return f"kind: vector, width: {column.mean_length:.0f}", "as it is"
        case _:
            return None


def _id(column: Column) -> tuple[str, str]:
    reason = f"{column.distinct:,} values"
    if column.zipf is not None:
        reason += f", Zipf exponent {column.zipf:.1f}"
    if column.singletons is not None and column.singletons > _RARE:
        return "kind: id, min_count: 2", f"{reason}, {column.singletons:.0%} of them seen once"
    return "kind: id", reason


def _number(column: Column) -> tuple[str, str]:
    low, high = float(column.low or 0), float(column.high or 0)
    indicator = ", indicator: true" if column.nulls > 0.01 else ""
    nulls = f", {column.nulls:.0%} null" if indicator else ""
    if low >= 0 and column.mean and high > _SKEWED * column.mean:
        return f"kind: number, transform: log1p{indicator}", f"{column.low} to {column.high}, skewed{nulls}"
    return f"kind: number, transform: standardize{indicator}", f"{column.low} to {column.high}{nulls}"


def _spoilt(column: Column) -> bool:
    return column.role != "user" and bool(column.suspicions)


def _past(profile: LogProfile) -> Iterator[str]:
    """A history of positives and statistics, where a log has what they need and a binary label."""
    if profile.time is None or profile.user is None or profile.item is None or profile.label is None:
        return
    label_column = _column(profile, profile.label)
    numeric = profile.label_at_least is None and not profile.label_positive
    if (numeric and (label_column.distinct or 0) > 2) or _definition(_column(profile, profile.item)) is None:
        return
    item = _feature_name(profile.item)
    label = '"' + profile.label.replace('"', '""') + '"'
    if profile.label_positive:
        quoted = (value.replace("'", "''") for value in profile.label_positive)
        condition = " or ".join(f"{label} = '{value}'" for value in quoted)
    else:
        condition = f"{label} >= {profile.label_at_least if profile.label_at_least is not None else 1:g}"
    where = json.dumps(condition, ensure_ascii=False)
    task = "like" if profile.label_at_least is not None else _feature_name(profile.label)
    yield "    # What the past says, each strictly earlier than the row:"
    yield f"    recent: {{kind: history, of: [{_quoted(item)}], where: {where}, last: 30, age: true}}"
    yield f"    rate_of_user: {{kind: statistic, measure: rate, of: {_quoted(task)}, by: [{_quoted(profile.user)}]}}"
    yield f"    rate_of_item: {{kind: statistic, measure: rate, of: {_quoted(task)}, by: [{_quoted(profile.item)}]}}"
    yield f"    count_of_user: {{kind: statistic, measure: count, by: [{_quoted(profile.user)}]}}"
    yield f"    count_of_item: {{kind: statistic, measure: count, by: [{_quoted(profile.item)}]}}"


def _left_out(profile: LogProfile) -> Iterator[str]:
    for column in profile.columns:
        if column.role == "label" or column.name == profile.time or _definition(column) is not None:
            continue
        reason = "; ".join(column.suspicions) or f"looks like {column.role}"
        yield f"    # Left out: {_quoted(column.name)} {reason}."


def _column(profile: LogProfile, name: str) -> Column:
    return next(column for column in profile.columns if column.name == name)


def _feature_name(column: str) -> str:
    """A name for the feature of a column: words and ``-`` only, because a name may not hold ``.`` or ``:``."""
    return re.sub(r"[^\w-]+", "_", column).strip("_") or "unnamed"


def _quoted(text: str) -> str:
    """``text`` as a YAML scalar."""
    return text if _PLAIN.fullmatch(text) and text.lower() not in _YAML_WORDS else json.dumps(text, ensure_ascii=False)


def _line(text: str, comment: str) -> str:
    return f"{text:<58}  # {comment}" if comment else text
