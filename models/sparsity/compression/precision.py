"""How many bits per value the artifact uses for tables and the dense part, and quantization-aware training."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator
from torch import Tensor

from data_pipelines.batch import Batch
from data_pipelines.errors import UserError
from models.codecs.compact import Precision, compress, decompress
from models.codecs.quantization import Bits, choose_bits, common_step, fake_quantize, narrowest
from models.int8 import observe
from models.layers.heads import TaskKind
from models.sparsity.lever import Count, Lever, LeverConfig, Step, dense_weights
from models.sparsity.shadow import transform_weight
from models.sparsity.tables import check_names, chosen_tables, kept_tables, lookup_counts, transform_rows

if TYPE_CHECKING:
    from models.ranker import Ranker
    from models.weights import Weights


class QuantizationConfig(LeverConfig):
    """Bits of the artifact.

    Attributes:
        table_bits: 32, 16, 8, 4 or 2 for all tables, or by table name (32 if absent). Rows so narrow that 16 bits take
            no more bytes use 16.
        byte_budget: Instead of ``table_bits``: bits are chosen for each table so that all rows fit into so many bytes.
            The rounding error of a row is weighted by how often the valid split looks it up.
        table_step: Instead of ``table_bits``: 8 bits, with the same distance between neighbouring codes in all rows of
            a table, as a multiple of the root mean square of its values. A packed artifact (``export.packed``) then
            takes about log2(4.1 / step) bits per value, and fewer for rows of small norm.
        clip: Search a range for each row of 8, 4 and 2 bits that lowers its squared error.
        dense: How matrices of the dense part are stored.
        dense_step: Instead of ``dense``: int8 with one such grid per matrix.
        activations: With ``int8``, dense layers (of cross and multiplicative interactions, of a tower of kind ``mlp``
            and of its head) are computed as integer GEMMs: their inputs are rounded to grids, which are fixed at export
            from rows of the valid split. Everything else, such as experts, is then computed in bfloat16.
        aware: Quantization-aware training: rows and matrices are rounded in the forward pass, with straight-through
            gradients.
    """

    table_bits: Bits | dict[str, Bits] = 32
    byte_budget: Count | None = None
    table_step: Step | None = None
    clip: bool = True
    dense: Precision = "fp32"
    dense_step: Step | None = None
    activations: Literal["int8"] | None = None
    aware: bool = False

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        if self.byte_budget is not None and self.table_bits != 32:
            raise ValueError("byte_budget chooses the bits itself: leave out table_bits, or byte_budget")
        if self.table_step is not None and (self.byte_budget is not None or self.table_bits != 32):
            raise ValueError("table_step implies 8 bits: leave out table_bits and byte_budget, or table_step")
        if self.dense_step is not None and self.dense != "fp32":
            raise ValueError("dense_step implies int8: leave out dense, or dense_step")
        if self.activations is not None and self.dense in ("fp32", "bf16") and self.dense_step is None:
            raise ValueError("activations in int8 need matrices in int8: set dense to int8 or int4, or set dense_step")
        if self.aware and (self.table_step is not None or self.dense_step is not None):
            raise ValueError("aware training rounds row by row: leave out table_step and dense_step, or aware")
        if self.byte_budget is not None and self.aware:
            raise ValueError("aware training must know the bits beforehand: set table_bits instead of byte_budget")
        return self

    def bits(self, table: str) -> Bits:
        """Bits of a table, where no budget chooses them."""
        return self.table_bits.get(table, 32) if isinstance(self.table_bits, dict) else self.table_bits


class Quantization(Lever):
    """Sets the bits at export; with ``aware`` also rounds in training."""

    name: ClassVar[str] = "quantization"
    _KEY = "sparsity.quantization"

    def __init__(self, config: QuantizationConfig) -> None:
        self.config = config
        self._lookups: dict[str, Tensor] = {}
        self._grids: dict[str, Tensor] = {}

    def build(self, ranker: "Ranker") -> None:
        layouts = chosen_tables(ranker.tables, (), self._KEY)
        if isinstance(self.config.table_bits, dict):
            check_names(self.config.table_bits, {t.name for t in layouts}, f"{self._KEY}.table_bits", "table")
        if self.config.activations is not None:
            self._check_dense_layers(ranker)
        if self.config.aware:
            bits = {layout.name: self.config.bits(layout.name) for layout in layouts if not layout.wide}
            transform_rows(ranker, {name: partial(_rounded_rows, n) for name, n in bits.items() if n < 32})

    def start(self, ranker: "Ranker", total_steps: int) -> None:
        if self.config.aware and self.config.dense != "fp32":
            for module, attribute, _, _ in list(dense_weights(ranker)):
                transform_weight(module, attribute, partial(_rounded_matrix, self.config.dense))

    def calibrate(self, weights: "Weights", batches: Iterable[Batch], kinds: Sequence[TaskKind]) -> None:
        if self.config.byte_budget is not None:
            self._lookups = lookup_counts(weights, batches)
        if self.config.activations is not None:
            ranker = weights.to_ranker()
            self._check_dense_layers(ranker)
            self._grids = observe(ranker, batches)

    def _check_dense_layers(self, ranker: "Ranker") -> None:
        if not ranker.int8_inputs():
            raise UserError(
                f"{self._KEY}.activations: this model has no dense layers, neither in model.interaction nor in "
                "model.tower: leave the key out."
            )

    def shrink(self, weights: "Weights") -> None:
        budget, step = self.config.byte_budget, self.config.table_step
        weights.precision = "int8" if self.config.dense_step else self.config.dense
        weights.dense_step = self.config.dense_step
        weights.grids = self._grids
        if step is not None:
            weights.bits = dict.fromkeys(weights.tables, 8)
            weights.steps = {name: common_step(kept_Rd, step) for name, kept_Rd in kept_tables(weights).items()}
            return
        if budget is None:
            bits = {name: self.config.bits(name) for name in weights.tables}
        else:
            bits = choose_bits(kept_tables(weights), budget, importance=self._lookups)
        weights.bits = {name: narrowest(weights.tables[name].shape[1], n) for name, n in bits.items()}
        weights.clip = self.config.clip and not self.config.aware


def _rounded_rows(bits: Bits, rows_Ld: Tensor, ids_L: Tensor) -> Tensor:
    return fake_quantize(rows_Ld, bits)


def _rounded_matrix(precision: Precision, weight: Tensor) -> Tensor:
    rounded = decompress(compress({"weight": weight.detach()}, precision))["weight"]
    return weight + (rounded - weight).detach()
