"""The schema of a data set that is not there yet, from sizes that the user states."""

import math
from collections.abc import Iterable, Mapping

from pydantic import ValidationError

from data_pipelines.batch import MOST_ROWS, Schema, TableSpec
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.features.plan import Plan


def stated_numbers(option: str, stated: Iterable[str]) -> dict[str, float]:
    """Options such as ``user=500000000`` as numbers by name.

    Raises:
        UserError: One is not a name and a positive number.
    """
    numbers: dict[str, float] = {}
    for text in stated:
        name, _, number = text.partition("=")
        try:
            numbers[name] = float(number)
        except ValueError:
            numbers[name] = math.nan
        if not 0 < numbers[name] < math.inf:
            raise UserError(f"{option} {text}: write a name and a positive number, such as user=5e8.")
    return numbers


def stated_schema(config: DataConfig, values: Mapping[str, float]) -> Schema:
    """The schema that a data set of ``config`` would have.

    Args:
        values: Distinct values of each table with a vocabulary. One that is not named has the ``max_size`` of its
            features. Hashed features and slots need none.

    Raises:
        UserError: A table has no stated size, has too many rows for one table, or does not exist.
    """
    plan = Plan.of(config)
    sizes = {table: (1, slots) for table, slots in plan.specs.slots.items()}
    for feature in plan.categorical.values():
        rule = feature.config
        stated = values.get(rule.table, rule.max_size)
        if stated is None:
            raise UserError(
                f"without a data set the size of the table {rule.table!r} is not known: give its distinct values, such "
                f"as --values {rule.table}=1e6, or set data.features.{feature.name}.max_size."
            )
        sizes[rule.table] = (rule.oov_buckets, min(int(stated), rule.max_size or int(stated)))
    unknown = sorted(set(values) - set(sizes))
    if unknown:
        raise UserError(f"--values {unknown[0]}: there is no such table; the tables are {', '.join(sorted(sizes))}.")
    tables = []
    for name in dict.fromkeys(spec.table for spec in plan.specs.sparse):
        oov, count = sizes[name]
        try:
            tables.append(TableSpec(name=name, rows=1 + oov + count, oov_buckets=oov))
        except ValidationError:
            raise UserError(
                f"the table {name!r} would have {count:,} values, and ids are numbers up to {MOST_ROWS:,}: give its "
                "feature the kind hash with fewer rows."
            ) from None
    specs = plan.specs
    return Schema(tables=tuple(tables), sparse=tuple(specs.sparse), dense=tuple(specs.dense), tasks=tuple(plan.tasks))


def stated_lengths(config: DataConfig, lengths: Mapping[str, float]) -> dict[str, float]:
    """Mean ids per row of each sparse feature: 1 of an id, the longest of a history, of a bag what ``lengths`` says.

    Raises:
        UserError: A bag has no stated length, or a feature that is named does not exist.
    """
    found: dict[str, float] = {}
    for spec in Plan.of(config).specs.sparse:
        name = spec.name.partition(".")[0]
        known = {"id": 1.0, "history": float(spec.max_length or 0)}.get(spec.kind)
        length = lengths.get(spec.name, lengths.get(name, known))
        if length is None:
            raise UserError(
                f"without a data set the length of the bag {spec.name!r} is not known: give it, "
                f"such as --length {name}=3."
            )
        found[spec.name] = length
    unknown = sorted(set(lengths) - set(found) - {name.partition(".")[0] for name in found})
    if unknown:
        raise UserError(f"--length {unknown[0]}: there is no such sparse feature; there are {', '.join(found)}.")
    return found
