"""A trained model as plain tensors: it is read from a checkpoint, shrunk by levers, and written to an artifact.

Letters: R rows of a table, d its stored width, D its width as the ranker sees it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from data_pipelines.batch import Schema
from data_pipelines.errors import UserError
from models.codecs.compact import Precision
from models.codecs.quantization import Bits, quantize_rows
from models.ranker import Ranker, RankerConfig
from models.tables.plain import PlainTables


@dataclass
class Weights:
    """Tables and dense parameters of one ranker, on the CPU, without a process group or a sharding plan.

    Attributes:
        config: The ranker's shape. A lever that removes units changes it together with ``dense``.
        schema: The encoded features the ranker reads. A lever that removes a feature removes it here too.
        tables: (R, d) float32 by table name (see ``models.tables.plan.LookupPlan``); row i is id i.
        dense: Everything else of the ranker's state, by parameter name (see ``Ranker.dense_state``).
        keep: (R,) bool by vocabulary (a table of the schema; its wide table shares it); ids of rows that are False mean
            OOV from now on. Absent if nothing is pruned. Export drops these rows from tables and vocabulary; scores
            stay the same.
        factors: (d, D) float32 by table name: the ranker uses ``tables[t] @ factors[t]``. Absent if d equals D. With
            factors, tables with removed dimensions and low-rank tables stay narrow on disk and in memory.
        bits: 32, 16, 8, 4 or 2 bits per value by table name, used by the artifact; 32 if absent.
        clip: Search a range for each row of 8, 4 and 2 bits that lowers its squared error.
        steps: Distance of neighbouring codes, by name of a table of 8 bits whose rows share one grid.
        precision: How the artifact stores the matrices of ``dense``. With bf16 it also computes in bfloat16.
        dense_step: The step of int8 matrices with one grid each, as a multiple of the matrix's root mean square.
        grids: (2, D) by name of a dense layer that is computed in int8 (see :mod:`models.int8`).
    """

    config: RankerConfig
    schema: Schema
    tables: dict[str, Tensor]
    dense: dict[str, Tensor]
    keep: dict[str, Tensor] = field(default_factory=dict)
    factors: dict[str, Tensor] = field(default_factory=dict)
    bits: dict[str, Bits] = field(default_factory=dict)
    clip: bool = False
    steps: dict[str, float] = field(default_factory=dict)
    precision: Precision = "fp32"
    dense_step: float | None = None
    grids: dict[str, Tensor] = field(default_factory=dict)

    def packed_rows(self, name: str) -> Tensor:
        """(R, W) uint8: the rows of a table as an artifact keeps them (see :mod:`models.codecs.quantization`)."""
        return quantize_rows(self.tables[name], self.bits.get(name, 32), clip=self.clip, step=self.steps.get(name))

    def to_ranker(self) -> Ranker:
        """A ranker over plain float32 tables with these weights, in evaluation mode.

        Without ``grids`` it gives the same logits as the sharded ranker the weights come from, and is differentiable:
        the tables are ordinary parameters (copies; changing them leaves these weights as they are).
        """
        tables = PlainTables(self.schema, self.config, self.tables, self.keep, self.factors)
        ranker = Ranker(self.config, self.schema, tables)
        load_dense(ranker, self.dense, self.grids)
        return ranker.eval()

    def dense_ranker(self) -> Ranker:
        """The dense part, as trained, as a ranker without tables: its parts can be asked, and narrowed."""
        with torch.random.fork_rng(devices=[]):
            ranker = Ranker(self.config, self.schema, nn.Module())
        load_dense(ranker, self.dense, {})
        return ranker.eval()

    @contextmanager
    def narrowing(self) -> Iterator[Ranker]:
        """:meth:`dense_ranker`, whose parts the block makes narrower; ``dense`` and ``config`` follow."""
        ranker = self.dense_ranker()
        yield ranker
        state = ranker.dense_state()
        order = [name for name in self.dense if name in state]
        self.dense = {name: state[name] for name in (*order, *(name for name in state if name not in self.dense))}
        self.config = ranker.narrowed_config()


def load_dense(ranker: Ranker, dense: Mapping[str, Tensor], grids: Mapping[str, Tensor]) -> None:
    """Copy ``dense`` into the parameters and buffers of ``ranker`` that are outside its tables.

    Where there are ``grids``, dense layers compute in int8 from then on.

    Raises:
        UserError: They are not those of such a ranker: another version of the product made them.
    """
    missing, unexpected = ranker.load_state_dict(dense, strict=False)
    lost = [name for name in missing if not name.startswith("tables.")]
    if lost or unexpected:
        raise UserError(
            f"these weights are not those of this version's ranker (missing: {', '.join(lost) or 'none'}; unknown: "
            f"{', '.join(unexpected) or 'none'}): use the version that made them, or train and export again."
        )
    if grids:
        ranker.to_int8(dict(grids))
