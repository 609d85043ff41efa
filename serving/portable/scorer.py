"""Scores raw rows with a portable artifact; needs Python and NumPy, and ONNX Runtime if that is to compute.

As a program it scores a file of CSV, or of one JSON object per line, and prints one JSON object per row::

    python -m serving.portable.scorer portable rows.csv
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from serving.portable.answers import Answers
from serving.portable.features import Bags, Dense, Row, Sparse, pool
from serving.portable.files import DENSE, FORMAT, MODEL, TABLES, Floats, PortableError, Table, read_tensors, row_bytes
from serving.portable.network import Network

BATCH = 4096
_LARGEST_MODEL = 1 << 31
_INVALID = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError)


class PortableScorer:
    """A portable artifact, its tables mapped and not read.

    Args:
        folder: What ``recsys export --format portable`` or ``onnx`` wrote.
        runtime: What looks up and computes: NumPy, or ONNX Runtime on one thread, with the graph that
            ``--format onnx`` wrote.

    Attributes:
        keys: Columns that scores carry over from the rows that have them.
        tasks: Names of the tasks.

    Raises:
        PortableError: The folder is no portable artifact, it is damaged, or ONNX Runtime is not installed.

    Example:
        >>> PortableScorer(Path("portable")).score([{"reader": "r1", "article": "a7"}])  # doctest: +SKIP
        [{'reader': 'r1', 'clicked': 0.31}]
    """

    def __init__(self, folder: Path, runtime: Literal["numpy", "onnx"] = "numpy") -> None:
        path = Path(folder) / MODEL
        try:
            if path.stat().st_size > _LARGEST_MODEL:
                raise PortableError(f"{path} is larger than {_LARGEST_MODEL} bytes: it is not a portable artifact.")
            model = json.loads(path.read_bytes())
        except OSError as error:
            raise PortableError(f"{path} cannot be read ({error.strerror}): name a portable artifact.") from None
        except PortableError:
            raise
        except ValueError:
            raise PortableError(f"{path} is damaged: it is not JSON.") from None
        if not isinstance(model, dict) or model.get("portable") != FORMAT:
            raise PortableError(f"{path} is not of a portable artifact of format {FORMAT}: export it again.")
        dense, stored = read_tensors(Path(folder) / DENSE), read_tensors(Path(folder) / TABLES)
        try:
            self._build(model, stored, dense)
            self._compute: Callable[[Mapping[str, Bags], Floats], Floats] = self._with_numpy
            if runtime == "onnx":
                from serving.portable.onnx_session import OnnxSession

                self._compute = OnnxSession(Path(folder))
            self.logits([dict.fromkeys(self._columns)])  # a shape that does not fit is found here
        except PortableError:
            raise
        except _INVALID as error:
            raise PortableError(f"{path} does not fit the tensors beside it ({error}): export it again.") from None

    def _build(self, model: Mapping[str, Any], stored: Mapping[str, Any], dense: Mapping[str, Floats]) -> None:
        vocabularies = model["vocabularies"]
        self.keys, self.tasks = list(model["keys"]), [task["name"] for task in model["tasks"]]
        self._answers = Answers(model)
        self._sparse = [Sparse(spec, vocabularies.get(spec["table"])) for spec in model["sparse"]]
        self._dense = [Dense(spec) for spec in model["dense"]]
        self._columns = {spec["column"] for spec in (*model["sparse"], *model["dense"])}
        self._tables = {name: _table(name, entry, stored, dense) for name, entry in model["tables"].items()}
        for feature in self._sparse:
            for table in (feature.spec["table"], feature.spec["wide"]):
                if table is not None and self._tables[table].rows <= feature.largest_id:
                    raise PortableError(f"table {table!r} has fewer rows than feature {feature.name!r} has ids.")
        self._network = Network(model["network"], dense)

    def score(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Keys and one prediction per task of each row: a probability, an expected count, or a value.

        As the artifact was exported, ``<task>:conditional`` and ``score`` follow.

        Args:
            rows: Raw rows, with the columns that the features read; ``None`` is a missing value.

        Raises:
            PortableError: A column is missing, or holds something that its feature cannot read; or the formula of the
                score is NaN or infinite for a row.
        """
        found = self._answers(self.logits(rows))
        names = [f"key:{key}" if key in found else key for key in self.keys]
        return [
            {name: row[key] for name, key in zip(names, self.keys, strict=True) if key in row}
            | dict(zip(found, values, strict=True))
            for row, *values in zip(rows, *(values_B.tolist() for values_B in found.values()), strict=True)
        ]

    def logits(self, rows: Sequence[Row]) -> Floats:
        """(B, T) float32 logits of raw rows."""
        parts = [self._logits(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]
        return np.concatenate(parts) if parts else np.empty((0, len(self.tasks)), np.float32)

    def _logits(self, rows: Sequence[Row]) -> Floats:
        bags = {feature.name: feature.encode(rows) for feature in self._sparse}
        numbers = [feature.encode(rows) for feature in self._dense]
        dense_BD = np.concatenate(numbers, 1) if numbers else np.empty((len(rows), 0), np.float32)
        return self._compute(bags, dense_BD)

    def _with_numpy(self, bags: Mapping[str, Bags], dense_BD: Floats) -> Floats:
        pooled: dict[str, Floats] = {}
        wide: dict[str, Floats] = {}
        for feature in self._sparse:
            ids, starts = bags[feature.name]
            for name, into in ((feature.spec["table"], pooled), (feature.spec["wide"], wide)):
                if name is not None:
                    into[feature.name] = pool(self._tables[name](ids), starts, feature.spec["pooling"])
        return self._network(pooled, wide, dense_BD)


def _table(name: str, entry: Mapping[str, Any], stored: Mapping[str, Any], dense: Mapping[str, Floats]) -> Table:
    rows, dim, bits = entry["rows"], entry["dim"], entry["bits"]
    if bits not in (32, 16, 8, 4, 2) or stored[name].shape != (rows, row_bytes(dim, bits)):
        raise PortableError(f"table {name!r} is not stored as {MODEL} says it is.")
    return Table(stored[name], dim, bits, dense.get(f"factors:{name}"))


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a CSV file (``.csv``), or of a file of one JSON object per line.

    Raises:
        PortableError: The file cannot be read, or a line holds something else.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                yield from csv.DictReader(file)
                return
            for number, line in enumerate(file, 1):
                row = json.loads(line) if line.strip() else {}
                if not isinstance(row, dict):
                    raise PortableError(f"{path}: line {number} is not a JSON object.")
                if line.strip():
                    yield row
    except OSError as error:
        raise PortableError(f"{path} cannot be read ({error.strerror}).") from None
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise PortableError(f"{path} is neither CSV nor one JSON object per line ({error}).") from None


def main(arguments: Sequence[str]) -> int:
    """Score a file; the exit code: 0 done, 2 the artifact or the file is at fault."""
    if len(arguments) != 2:
        print("usage: python -m serving.portable.scorer PORTABLE ROWS", file=sys.stderr)
        return 2
    try:
        scorer, rows = PortableScorer(Path(arguments[0])), read_rows(Path(arguments[1]))
        while batch := list(islice(rows, BATCH)):
            for scores in scorer.score(batch):
                print(json.dumps(scores))
    except PortableError as error:
        print(f"recsys: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
