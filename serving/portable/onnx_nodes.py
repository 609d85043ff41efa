"""Nodes and tensors of an ONNX graph whose weights are in safetensors files."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from serving.portable.files import DENSE, TABLES, Place

_OPSET, _IR = 18, 8
_TYPES = {"F32": TensorProto.FLOAT, "U8": TensorProto.UINT8}


class Graph:
    """Nodes and tensors; calling it adds a node and gives the name of its output.

    Args:
        tensors: Where each file has its tensors.
    """

    def __init__(self, tensors: Mapping[str, Mapping[str, Place]]) -> None:
        self._places = tensors
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, TensorProto] = {}

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        output = f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def name(self, value: str, name: str) -> None:
        self._nodes.append(helper.make_node("Identity", [value], [name]))

    def constant(self, values: Any, dtype: Any) -> str:
        """A small tensor that is part of the graph."""
        array: NDArray[Any] = np.asarray(values, dtype)
        name = f"constant_{array.dtype}_{array.shape}_{array.tobytes().hex()}"
        if len(name) > 100:
            name = f"constant_{len(self._tensors)}"
        self._tensors.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def longs(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def floats(self, *values: float) -> str:
        return self.constant(values, np.float32)

    def has(self, name: str) -> bool:
        return name in self._places[DENSE]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[DENSE][name].shape

    def dense(self, name: str, at: int | None = None) -> str:
        """A tensor of ``dense.safetensors``, or its element ``at`` along the first dimension."""
        place = self._places[DENSE][name]
        if at is None:
            return self._outside(name, DENSE, _TYPES[place.dtype], place)
        size = place.size // place.shape[0]
        part = Place(place.dtype, place.shape[1:], place.offset + at * size, size)
        return self._outside(f"{name}.{at}", DENSE, _TYPES[place.dtype], part)

    def table(self, name: str, dtype: int, shape: tuple[int, int]) -> str:
        """The rows of a table as a tensor of this type and shape over the same bytes."""
        place = self._places[TABLES][name]
        return self._outside(f"tables.{name}", TABLES, dtype, Place(place.dtype, shape, place.offset, place.size))

    def _outside(self, name: str, file: str, dtype: int, place: Place) -> str:
        if name not in self._tensors:
            tensor = TensorProto(name=name, data_type=dtype, dims=place.shape, data_location=TensorProto.EXTERNAL)
            for key, value in (("location", file), ("offset", place.offset), ("length", place.size)):
                tensor.external_data.add(key=key, value=str(value))
            self._tensors[name] = tensor
        return name

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> onnx.ModelProto:
        graph = helper.make_graph(self._nodes, "ranker", inputs, outputs, list(self._tensors.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)

    def linear(self, name: str, x: str) -> str:
        """The product with a layer's matrix, plus its bias if it has one."""
        bias = [self.dense(f"{name}.bias")] if self.has(f"{name}.bias") else []
        return self("Gemm", x, self.dense(f"{name}.weight"), *bias, transB=1)

    def concat(self, values: Iterable[str]) -> str:
        found = list(values)
        return self("Concat", *found, axis=1) if len(found) > 1 else found[0]

    def columns(self, x: str, start: int, stop: int, axis: int = -1) -> str:
        return self("Slice", x, self.longs(start), self.longs(stop), self.longs(axis))

    def largest(self, x: str, count: int) -> str:
        """(B, count) where the largest elements of each row are; of equal ones, the first."""
        values, places = f"Values_{len(self._nodes)}", f"TopK_{len(self._nodes)}"
        self._nodes.append(helper.make_node("TopK", [x, self.longs(count)], [values, places], axis=1))
        return places

    def zeros_like(self, x: str) -> str:
        return self("ConstantOfShape", self("Shape", x), value=numpy_helper.from_array(np.zeros(1, np.float32)))
