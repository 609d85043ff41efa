"""The features of a starter config: what each column becomes, what the past adds, and what is left out and why."""

import json
from collections.abc import Iterator
from datetime import datetime

from data_pipelines.profile.columns import Column
from data_pipelines.profile.inspection import LogProfile
from data_pipelines.profile.wording import feature_name, line, percent, scalar

_RARE = 0.5
_OFTEN_UNSEEN = 0.05
_MOSTLY_SEEN = 0.2
"""Share of unseen values up to which a table needs no rows trained as unknown."""
_SKEWED = 20.0
_MANY_ATOMS = 0.3
_ROWS_PER_VALUE = 5
_FEW_IDS = 2
_DAY = 86_400
_WINDOWS = ((60, "30d", 30 * _DAY), (14, "7d", 7 * _DAY), (3, "1d", _DAY), (1, "6h", _DAY // 4))
"""A log of at least so many days has statistics of such a window: its name and its seconds."""
_BAG_VALUES = 10_000
_MOST_BAGS = 2
_MOST_IDS = 3
_MANY_VALUES = 10
_EVENTS_PER_VALUE = 5
"""Rows of the rarer class per distinct value from which a log shows how values act together."""
_PIECES = 16
"""Buckets of a number whose effect may bend."""
_EVENTS_PER_PIECE = 50
"""Rows of the rarer class per bucket from which a log shows how effects of numbers bend."""


def feature_names(profile: LogProfile) -> dict[str, str]:
    """The name of the feature of each column."""
    names: dict[str, str] = {}
    for column in profile.columns:
        name = feature_name(column.name)
        names[column.name] = name if name not in names.values() else f"{name}_{len(names)}"
    return names


def features(profile: LogProfile) -> Iterator[str]:
    """Lines of the block ``features``, of columns alone."""
    names = feature_names(profile)
    for column in profile.columns:
        if not column.suspicions and _describes_candidates(profile, column):
            for suffix, body, reason in _definitions(profile, column):
                yield _feature(column.name, names[column.name] + suffix, body, reason)
    parts = _time_parts(profile)
    if profile.time is not None and parts:
        yield f"    {_free('when', names)}: {{kind: time, column: {scalar(profile.time)}, parts: [{', '.join(parts)}]}}"


def unknown_shares(profile: LogProfile) -> dict[str, float]:
    """By feature, the share of ids that training should read as unknown, because new rows have many new values.

    Where most values are seen once, ``min_count`` trains the rows of unknown values already.
    """
    names = feature_names(profile)
    return {
        names[column.name]: round(min(column.unseen, 0.5), 1)
        for column in profile.of("user", "item", "id", "bag")
        if column.unseen is not None
        and column.unseen > _MOSTLY_SEEN
        and (column.singletons or 0) <= _RARE
        and not column.suspicions
        and _describes_candidates(profile, column)
    }


def left_out(profile: LogProfile) -> Iterator[str]:
    """Comments on the columns that are no features, each with the reason."""
    names = feature_names(profile)
    for column in profile.columns:
        if column.role == "label" or column.name in (profile.time, profile.split):
            continue
        reason = "; ".join(column.suspicions)
        described = _describes_candidates(profile, column)
        definitions = list(_definitions(profile, column))
        if reason and definitions:
            _, body, _ = definitions[0]
            yield _feature(column.name, names[column.name], body, reason).replace("    ", "    # ", 1)
        elif reason or not definitions:
            yield f"    # Left out: {scalar(column.name)} {reason or f'looks like {column.role}'}."
        elif not described:
            yield f"    # Left out: {scalar(column.name)}: the negatives, which have other items, would share it."


def past(profile: LogProfile) -> Iterator[str]:
    """A history of positives, statistics of users, items and their crosses with bags, and repeats of positives."""
    if profile.time is None:
        return
    names = feature_names(profile)
    lines = [*_history(profile, names), *_statistics(profile, names), *_repeats(profile, names)]
    if lines:
        yield "    # What the past says, each strictly earlier than the row:"
        yield from lines


def in_lists(profile: LogProfile) -> Iterator[str]:
    """Numbers, and the past of the item, beside those of the rows that were shown in the same list."""
    if profile.lists is None:
        return
    names = feature_names(profile)
    sources = {
        names[column.name]: f"column: {scalar(column.name)}"
        for column in profile.of("number")
        if column.name in profile.lists.varying and not column.suspicions
    }
    if profile.time is not None and _is_feature(profile, profile.item):
        past_of_item = (_free(name, names) for name in ("rate_of_item", "count_of_item"))
        sources |= {name: f"of: {scalar(name)}" for name in past_of_item}
    if sources:
        yield "    # How a row compares with the others of its list, in measures that do not depend on the unit:"
    for name, source in sources.items():
        yield f"    {scalar(_free(f'{name}_in_list', names))}: {{kind: relative, {source}, measures: [rank, zscore]}}"


def distinct_values(profile: LogProfile) -> int:
    """Distinct values of all columns that have tables."""
    return sum(column.distinct or 0 for column in profile.of("user", "item", "id", "bag") if not column.suspicions)


def is_binary(profile: LogProfile) -> bool:
    """Whether the task of a log is to predict a probability."""
    return profile.label is None or profile.label_kind == "binary"


def shows_interactions(profile: LogProfile) -> bool:
    """Whether a log has enough events per value to learn how values act together, beyond what each does alone."""
    return _events(profile) >= _EVENTS_PER_VALUE * distinct_values(profile)


def _shows_bends(profile: LogProfile) -> bool:
    """Whether a log has enough events to learn how the effects of its numbers bend."""
    pieces = _PIECES * len(profile.of("number"))
    return shows_interactions(profile) and _events(profile) >= _EVENTS_PER_PIECE * pieces


def _events(profile: LogProfile) -> float:
    """Rows of the rarer class."""
    rate = profile.label_rate if is_binary(profile) and profile.label_rate is not None else 0.5
    return profile.rows * min(rate, 1 - rate)


def task_name(profile: LogProfile) -> str:
    """The name of the task of a log's label."""
    assert profile.label is not None
    graded = profile.label_at_least is not None and "scale" in profile.label_note
    return "like" if graded else feature_name(profile.label)


def _feature(column: str, name: str, body: str, reason: str) -> str:
    source = "" if name == column else f", column: {scalar(column)}"
    return line(f"    {scalar(name)}: {{{body}{source}}}", reason)


def _describes_candidates(profile: LogProfile, column: Column) -> bool:
    """Whether a column describes the drawn negatives, too: in a log of positives, only user, item and side tables."""
    return profile.label is not None or column.role in ("user", "item") or column.side is not None


def _definitions(profile: LogProfile, column: Column) -> Iterator[tuple[str, str, str]]:
    """Features of a column: a suffix of the name, the keys, and why."""
    match column.role:
        case "user" | "item" | "id" if column.distinct:
            yield "", *_id(column)
        case "bag" if column.distinct:
            delimiter = f", delimiter: {json.dumps(column.delimiter)}" if column.delimiter else ""
            rare = ", min_count: 2" if _has_rare_values(column) else ""
            yield "", f"kind: bag{delimiter}{rare}", f"{_values(column)}, {column.mean_length:.1f} per row"
        case "number":
            yield "", *_number(profile, column)
            yield from _beside(profile, column)
        case "vector" if column.mean_length:
            yield "", f"kind: vector, width: {column.mean_length:.0f}", "as it is"
        case "time" if column.name != profile.time and profile.time is not None:
            formats = profile.time_formats.get(column.name, ())
            written = f", time_format: {scalar(formats[0])}" if formats else ""
            yield "_age", f"kind: time, parts: [age]{written}", f"{column.low} to {column.high}: days before the row"


def _id(column: Column) -> tuple[str, str]:
    reason = _values(column)
    if column.zipf is not None:
        reason += f", Zipf exponent {column.zipf:.1f}"
    if column.singletons is not None and column.singletons > _RARE:
        reason += f", {percent(column.singletons)} of them seen once"
    return "kind: id, min_count: 2" if _has_rare_values(column) else "kind: id", reason


def _has_rare_values(column: Column) -> bool:
    """Whether values that are seen once should stand for those that are never seen."""
    rare = column.singletons or 0
    return rare > _RARE or ((column.unseen or 0) > _OFTEN_UNSEEN and rare > _OFTEN_UNSEEN)


def _values(column: Column) -> str:
    new = f", {percent(column.unseen)} new at the end" if column.unseen and column.unseen > 0.01 else ""
    return f"{column.distinct or 0:,} values{new}"


def _number(profile: LogProfile, column: Column) -> tuple[str, str]:
    low, high = float(column.low or 0), float(column.high or 0)
    indicator = ", indicator: true" if column.nulls > 0.01 else ""
    nulls = f", {percent(column.nulls)} null" if indicator else ""
    if (column.distinct or 0) > _PIECES and _shows_bends(profile):  # fewer values are ids beside the number
        pieces = f"transform: piecewise, buckets: {_PIECES}"
        return f"kind: number, {pieces}{indicator}", f"{column.low} to {column.high}, its effect may bend{nulls}"
    if low >= 0 and column.mean and high > _SKEWED * column.mean:
        return f"kind: number, transform: log1p{indicator}", f"{column.low} to {column.high}, skewed{nulls}"
    return f"kind: number, transform: standardize{indicator}", f"{column.low} to {column.high}{nulls}"


def _beside(profile: LogProfile, column: Column) -> Iterator[tuple[str, str, str]]:
    """The values of a number as ids, too: of codes, of few values, and of amounts that are mostly 0."""
    distinct, whole = column.distinct or 0, "Int" in column.type
    atoms = column.atoms or 0
    if distinct <= _FEW_IDS:
        return
    if atoms >= _MANY_ATOMS:
        least = max(2, min(10, profile.rows // 10_000))
        reason = f"{percent(atoms)} of the rows have a frequent value: as ids, too"
        yield "_value", f"kind: id, min_count: {least}", reason
    elif whole and distinct * _ROWS_PER_VALUE <= profile.rows:
        yield "_value", "kind: id, min_count: 2", f"{distinct:,} whole numbers: if they are codes, keep this one only"


def _time_parts(profile: LogProfile) -> list[str]:
    """Parts of the time that come again within the training rows."""
    days = _span(profile) * 0.8
    return [
        *(["hour"] if profile.hours > 1 and days > 1 else []),
        *(["weekday"] if days >= 8 and len(profile.days) > 1 else []),
    ]


def _span(profile: LogProfile) -> float:
    """Days from the first to the last row."""
    if not profile.first or not profile.last:
        return 0.0
    first, last = (datetime.fromisoformat(when) for when in (profile.first, profile.last))
    return (last - first).total_seconds() / _DAY


def _is_feature(profile: LogProfile, name: str | None) -> bool:
    return name is not None and not profile.column(name).suspicions


def _history(profile: LogProfile, names: dict[str, str]) -> Iterator[str]:
    if profile.user is None or profile.item is None or not _is_feature(profile, profile.item):
        return
    where = _condition(profile)
    only = "" if where is None else f", where: {json.dumps(where, ensure_ascii=False)}"
    recent = _free("recent", names)
    yield f"    {recent}: {{kind: history, of: [{scalar(names[profile.item])}]{only}, last: 30, age: true}}"


def _condition(profile: LogProfile) -> str | None:
    """What makes a row a positive, in SQL; ``None`` where every row counts."""
    if profile.label is None or profile.label_kind != "binary":
        return None
    label = '"' + profile.label.replace('"', '""') + '"'
    if profile.label_positive:
        quoted = (value.replace("'", "''") for value in profile.label_positive)
        return " or ".join(f"{label} = '{value}'" for value in quoted)
    return f"{label} >= {profile.label_at_least if profile.label_at_least is not None else 1:g}"


def _statistics(profile: LogProfile, names: dict[str, str]) -> Iterator[str]:
    """Counts and mean labels of users, items and pairs; of other ids where there is neither."""
    # The past of a user is of use even where the user is new at the end: it keeps growing after training.
    main = [name for name in (profile.user, profile.item) if name is not None]
    main = [name for name in main if name == profile.user or _is_feature(profile, name)]
    bags = [
        column.name
        for column in profile.of("bag")
        if not column.suspicions and (column.distinct or 0) <= _BAG_VALUES and _describes_candidates(profile, column)
    ]
    if not main:
        ids = [c for c in profile.of("id") if not c.suspicions and (c.distinct or 0) > _MANY_VALUES]
        main = [column.name for column in sorted(ids, key=lambda column: -(column.distinct or 0))[:_MOST_IDS]]
    window = next(((name, seconds) for days, name, seconds in _WINDOWS if _span(profile) >= days), None)
    for name in main:
        yield from _measures(profile, names, [name])
        if window is not None:
            yield from _measures(profile, names, [name], suffix=f"_{window[0]}", keys=f", window: {window[1]}")
    pairs = [[profile.user, bag] for bag in bags[:_MOST_BAGS] if profile.user is not None]
    if profile.user is not None and profile.item is not None and profile.item in main:
        pairs.append([profile.user, profile.item])
    for pair in pairs:
        yield from _measures(profile, names, pair)


def _repeats(profile: LogProfile, names: dict[str, str]) -> Iterator[str]:
    """When a user last took this very item, in a log where taking is all that happens."""
    if profile.label is None and profile.user is not None and profile.item is not None:
        pair = f"{scalar(profile.user)}, {scalar(profile.item)}"
        yield f"    {_free('last_of_user_and_item', names)}: {{kind: recency, by: [{pair}]}}"


def _measures(
    profile: LogProfile, names: dict[str, str], by: list[str], *, suffix: str = "", keys: str = ""
) -> Iterator[str]:
    of = "_and_".join({profile.user: "user", profile.item: "item"}.get(name, names[name]) for name in by) + suffix
    columns = ", ".join(map(scalar, by))
    if profile.label is not None:
        measure = "rate" if profile.label_kind == "binary" else "mean"
        task = scalar(task_name(profile))
        mean = scalar(_free(f"{measure}_of_{of}", names))
        yield f"    {mean}: {{kind: statistic, measure: {measure}, of: {task}, by: [{columns}]{keys}}}"
    if profile.label is not None and suffix:
        return  # a recent count follows the traffic of the whole log: where that falls, a model extrapolates
    count = scalar(_free(f"count_of_{of}", names))
    yield f"    {count}: {{kind: statistic, measure: count, by: [{columns}]{keys}}}"


def _free(name: str, names: dict[str, str]) -> str:
    """``name``, or another where a column's feature has it."""
    return name if name not in names.values() else f"{name}_past"
