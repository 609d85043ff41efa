"""The kind ``cross``: the combination of two or more categorical features."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
from pydantic import Field

from data_pipelines.config.base import register
from data_pipelines.features.kinds.categorical import (
    CategoricalConfig,
    CategoricalFeature,
    categorical_parts,
    part_problems,
)
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.names import SEPARATOR

if TYPE_CHECKING:
    from data_pipelines.features.config import DataConfig


@register
class CrossConfig(CategoricalConfig):
    """The combination of two or more id features. One of them may be a bag: then the cross is a bag of combinations."""

    kind: Literal["cross"] = "cross"
    of: list[str] = Field(min_length=2, description="Names of the features to combine.")

    def problems(self, name: str, data: "DataConfig") -> Iterator[str]:
        yield from part_problems(name, self.of, data)
        if len([part for part in self.of if part in data.features and data.features[part].bag_column]) > 1:
            yield f"feature `{name}`: at most one part of a cross may be a bag"

    def build(self, name: str, data: "DataConfig") -> "CrossFeature":
        return CrossFeature(name, self, categorical_parts(self.of, data))


class CrossFeature(CategoricalFeature[CrossConfig]):
    """Combinations of values, looked up in a vocabulary of their own.

    Attributes:
        parts: The features to combine.
    """

    def __init__(self, name: str, config: CrossConfig, parts: Sequence[CategoricalFeature[Any]]) -> None:
        super().__init__(name, config, is_bag=any(part.is_bag for part in parts))
        self.parts = parts

    def columns(self) -> frozenset[str]:
        return frozenset().union(*(part.columns() for part in self.parts))

    def values(self, raw: RawColumns) -> pl.Expr:
        single = pl.concat_str([part.values(raw) for part in self.parts if not part.is_bag], separator=SEPARATOR)
        bags = [part for part in self.parts if part.is_bag]
        if not bags:
            return single
        # The row's own value leads its bag, so that the elements can be combined with it inside the list.
        led = pl.concat_list(pl.concat_list(single), bags[0].values(raw))
        return led.list.eval(pl.concat_str(pl.element().first(), pl.element().slice(1), separator=SEPARATOR))
