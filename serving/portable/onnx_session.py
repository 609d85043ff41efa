"""The graph of a portable artifact in ONNX Runtime, on one thread."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.portable.features import Bags
from serving.portable.files import GRAPH, IDS, LOGITS, NUMBERS, Floats, PortableError

_PADDING = -1


class OnnxSession:
    """Looks up and computes what :mod:`serving.portable.onnx_graph` wrote.

    Args:
        folder: A portable artifact with a graph.

    Raises:
        PortableError: There is no graph, ONNX Runtime refuses it, or ONNX Runtime is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise PortableError(
                "ONNX Runtime is not installed: pip install onnxruntime, or score with NumPy."
            ) from None
        path = folder / GRAPH
        if not path.is_file():
            raise PortableError(f"{path} is missing: export with --format onnx, or score with NumPy.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common base
            raise PortableError(f"{path} is damaged ({_first_line(error)}): export it again.") from None
        self._path, self._ranks = path, {entry.name: len(entry.shape) for entry in self._session.get_inputs()}

    def __call__(self, bags: Mapping[str, Bags], dense_BD: Floats) -> Floats:
        """(B, T) float32 logits."""
        inputs = {
            name: dense_BD if name == NUMBERS else self._ids(bags[name.removeprefix(IDS)], rank)
            for name, rank in self._ranks.items()
        }
        try:
            logits_BT: Floats = self._session.run([LOGITS], inputs)[0]
        except Exception as error:
            raise PortableError(f"{self._path} cannot be computed ({_first_line(error)}): export it again.") from None
        return logits_BT

    @staticmethod
    def _ids(bags: Bags, rank: int) -> NDArray[np.int64]:
        """(B,) ids of a feature with one value per row, or (B, M) with -1 after the last value of each bag."""
        ids, starts = bags
        if rank == 1:
            return ids
        lengths = np.diff(starts)
        is_value = np.arange(max(1, lengths.max(initial=0))) < lengths[:, None]
        padded = np.full(is_value.shape, _PADDING, np.int64)
        padded[is_value] = ids
        return padded


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
