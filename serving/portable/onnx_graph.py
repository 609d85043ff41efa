"""A portable artifact as an ONNX graph: ids and numbers in, logits and predictions out.

The graph computes what :mod:`serving.portable.network` and the lookups of :mod:`serving.portable.scorer` compute. It
holds no weights: its tensors are the bytes of ``tables.safetensors`` and ``dense.safetensors`` beside it, which
runtimes map. Tables stay quantized; a lookup dequantizes the rows that it reads.

Letters: B rows, M values of a bag, W bytes of a row of a table, d width of an embedding, D width of a row, E experts,
K chosen of them, T tasks.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from serving.columns import VALUES, chains_of
from serving.portable.files import DENSE, IDS, LOGITS, NUMBERS, TABLES, places
from serving.portable.onnx_nodes import Graph

PREDICTIONS = "predictions"
_EPSILON = 1e-5


def onnx_model(folder: Path, model: Mapping[str, Any]) -> onnx.ModelProto:
    """The graph of a portable artifact.

    Its inputs are ``ids.<feature>``, int64, (B,) or, of a bag, (B, M) with -1 after the last value; and ``dense``,
    (B, D) float32, if there are dense features. Its outputs are ``logits`` and ``predictions``, (B, T) float32, of the
    tasks only: a formula of them is not part of it.

    Args:
        folder: The artifact, with the files of its tensors.
        model: The content of ``model.json``.
    """
    graph = Graph({file: places(folder / file) for file in (TABLES, DENSE)})
    inputs: list[onnx.ValueInfoProto] = []
    pooled: dict[str, str] = {}
    wide: dict[str, str] = {}
    for feature in model["sparse"]:
        name, is_bag = feature["name"], feature["kind"] == "bag"
        axes = ["rows", f"values of {name}"] if is_bag else ["rows"]
        inputs.append(helper.make_tensor_value_info(f"{IDS}{name}", TensorProto.INT64, axes))
        for table, into in ((feature["table"], pooled), (feature["wide"], wide)):
            if table is not None:
                lookup = _Lookup(graph, table, model["tables"][table])
                into[name] = lookup.bag(f"{IDS}{name}", feature["pooling"]) if is_bag else lookup(f"{IDS}{name}", 1)
    width = sum(feature["pieces"] + bool(feature["indicator"]) for feature in model["dense"])
    if width:
        inputs.append(helper.make_tensor_value_info(NUMBERS, TensorProto.FLOAT, ["rows", width]))
    logits = _Network(graph, model["network"])(pooled, wide, NUMBERS if width else None)
    graph.name(logits, LOGITS)
    graph.name(_predictions(graph, model["tasks"]), PREDICTIONS)
    shape: list[str | int] = ["rows", len(model["tasks"])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (LOGITS, PREDICTIONS)]
    made = graph.model(inputs, outputs)
    made.producer_name = "sparse-recsys"
    helper.set_model_props(made, {"name": model["name"], "fingerprint": model["fingerprint"]})
    return made


class _Lookup:
    """Lookups in a table of quantized rows (see :mod:`models.codecs.quantization`)."""

    def __init__(self, graph: Graph, name: str, entry: Mapping[str, Any]) -> None:
        self._graph, self._name = graph, name
        self._rows, self._dim, self._bits = entry["rows"], entry["dim"], entry["bits"]
        self._factor = f"factors:{name}" if graph.has(f"factors:{name}") else None

    def bag(self, ids: str, pooling: str) -> str:
        """(B, d) the sum or the mean of the rows of each bag of ids (B, M)."""
        graph = self._graph
        is_value = graph("GreaterOrEqual", ids, graph.longs(0))
        rows = self(graph("Max", ids, graph.longs(0)), 2)
        one_BM1 = graph("Unsqueeze", graph("Cast", is_value, to=TensorProto.FLOAT), graph.longs(2))
        sums = graph("ReduceSum", graph("Mul", rows, one_BM1), graph.longs(1), keepdims=0)
        if pooling == "sum":
            return sums
        counts = graph("ReduceSum", one_BM1, graph.longs(1), keepdims=0)
        return graph("Div", sums, graph("Max", counts, graph.floats(1)))

    def __call__(self, ids: str, dimensions: int) -> str:
        """The float32 embeddings of ids that have this many dimensions."""
        graph, dim, bits = self._graph, self._dim, self._bits
        if bits >= 16:
            dtype = TensorProto.FLOAT if bits == 32 else TensorProto.FLOAT16
            rows = graph("Gather", graph.table(self._name, dtype, (self._rows, dim)), ids)
            rows = graph("Cast", rows, to=TensorProto.FLOAT) if bits == 16 else rows
        else:
            width = 4 + -(-dim * bits // 8)
            packed = graph("Gather", graph.table(self._name, TensorProto.UINT8, (self._rows, width)), ids)
            scale_bias = self._halves(graph.columns(packed, 0, 4))
            codes = self._codes(graph.columns(packed, 4, width), dimensions)
            rows = graph("Add", graph("Mul", codes, graph.columns(scale_bias, 0, 1)), graph.columns(scale_bias, 1, 2))
        return rows if self._factor is None else graph("MatMul", rows, graph.dense(self._factor))

    def _codes(self, packed: str, dimensions: int) -> str:
        """The codes as float32; of fewer than 8 bits there are several in a byte, the first in its low bits."""
        graph, bits = self._graph, self._bits
        if bits < 8:
            shifts = graph.constant(np.arange(0, 8, bits), np.uint8)
            apart = graph("BitShift", graph("Unsqueeze", packed, graph.longs(-1)), shifts, direction="RIGHT")
            apart = graph("BitwiseAnd", apart, graph.constant([2**bits - 1], np.uint8))
            packed = graph("Reshape", apart, graph.longs(*[0] * dimensions, -1))
            packed = graph.columns(packed, 0, self._dim)
        return graph("Cast", packed, to=TensorProto.FLOAT)

    def _halves(self, bytes_4: str) -> str:
        """Two float16 of four bytes, as float32: ONNX has no operator that reads bytes as numbers."""
        graph = self._graph
        whole = graph("Cast", bytes_4, to=TensorProto.INT32)
        low = graph("Gather", whole, graph.longs(0, 2), axis=-1)
        high = graph("Gather", whole, graph.longs(1, 3), axis=-1)
        exponent = graph("Mod", graph("Div", high, graph.constant([4], np.int32)), graph.constant([32], np.int32))
        high_fraction = graph("Mod", high, graph.constant([4], np.int32))
        fraction = graph("Add", low, graph("Mul", high_fraction, graph.constant([256], np.int32)))
        leading = graph("Gather", graph.constant([0] + [1024] * 31, np.int32), exponent)
        digits = graph("Cast", graph("Add", fraction, leading), to=TensorProto.FLOAT)
        units = graph("Gather", graph.floats(*(2.0 ** (max(e, 1) - 25) for e in range(32))), exponent)
        sign = graph("Gather", graph.floats(1, -1), graph("Div", high, graph.constant([128], np.int32)))
        return graph("Mul", graph("Mul", digits, units), sign)


class _Network:
    """The dense part, node by node as :class:`serving.portable.network.Network` computes it."""

    def __init__(self, graph: Graph, model: Mapping[str, Any]) -> None:
        self._graph, self._model = graph, model

    def __call__(self, pooled: Mapping[str, str], wide: Mapping[str, str], numbers: str | None) -> str:
        """The name of the logits (B, T)."""
        graph, model = self._graph, self._model
        dense = None if numbers is None else self._standardized(numbers)
        if (gates := model["gates"]) is not None:
            pooled, wide = (
                {name: graph("Mul", value, graph.floats(gates["sparse"][name])) for name, value in values.items()}
                for values in (pooled, wide)
            )
            dense = dense and graph("Mul", dense, graph.floats(*gates["dense"]))
        last = graph.linear("interaction.dense_field", dense) if dense and model["dense_field"] else dense
        x = graph.concat([*(pooled[name] for name in model["fields"]), *([last] if last else [])])
        if model["norm"]:
            parts = [graph.dense(f"norm.{name}") for name in ("weight", "bias", "running_mean", "running_var")]
            x = graph("BatchNormalization", x, *parts, epsilon=_EPSILON)
        x = self._interaction(x)
        logits = graph.linear("heads.linear", graph.concat([x, self._tower(x, self._context(pooled, dense))]))
        for name in model["additive"]:
            logits = graph("Add", logits, graph.linear(f"additive.terms.{name}", pooled[name]))
        if model["wide"]:
            for term in (graph.dense("wide.bias"), *wide.values()):
                logits = graph("Add", logits, term)
            if dense and graph.has("wide.linear.weight"):
                logits = graph("Add", logits, graph.linear("wide.linear", dense))
        return self._by_task(logits)

    def _by_task(self, logits: str) -> str:
        """(B, T) with the products of tasks that come after each other, and the expected levels of ordinal ones."""
        graph = self._graph
        columns = [graph.columns(logits, at, at + 1) for at in range(graph.shape("heads.linear.weight")[0])]
        for task, first in self._model["chains"]:
            a, b = graph("Neg", columns[task]), graph("Neg", columns[first])
            columns[task] = graph(
                "Neg", graph("ReduceLogSumExp", graph.concat([a, b, graph("Add", a, b)]), graph.longs(1), keepdims=1)
            )
        for part in self._model["ordinal"]:
            above = graph("Sigmoid", graph("Sub", columns[part["task"]], graph.floats(*part["thresholds"])))
            steps = np.diff(np.array(part["levels"], np.float32))
            columns[part["task"]] = graph(
                "Add",
                graph("MatMul", above, graph.constant(steps[:, None], np.float32)),
                graph.floats(part["levels"][0]),
            )
        return graph.concat(columns) if self._model["chains"] or self._model["ordinal"] else logits

    def _standardized(self, numbers: str) -> str:
        graph = self._graph
        # ONNX has no log1p; in float64, log is exact enough.
        size = graph("Abs", graph("Cast", numbers, to=TensorProto.DOUBLE))
        log = graph("Cast", graph("Log", graph("Add", size, graph.constant([1], np.float64))), to=TensorProto.FLOAT)
        centred = graph("Sub", graph("Mul", graph("Sign", numbers), log), graph.dense("standardize.mean_D"))
        return graph("Div", centred, graph.dense("standardize.deviation_D"))

    def _interaction(self, x: str) -> str:
        graph, model = self._graph, self._model["interaction"]
        if model["kind"] == "cross":
            crossed = x
            for names in model["layers"]:
                product = crossed
                for name in names:
                    product = graph.linear(name, product)
                crossed = graph("Add", crossed, graph("Mul", x, product))
            return crossed
        if model["kind"] == "multiplicative":
            for [name] in model["layers"]:
                both = graph.linear(name, x)
                half = graph.shape(f"{name}.weight")[0] // 2
                linear, factor = graph.columns(both, 0, half), graph.columns(both, half, 2 * half)
                x = graph("Add", linear, graph("Mul", linear, factor))
            return x
        if model["kind"] == "none":
            return x
        fields = graph("Reshape", x, graph.longs(0, model["fields"], -1))
        if model["kind"] == "fm":
            sums = graph("ReduceSum", fields, graph.longs(1), keepdims=0)
            squares = graph("ReduceSum", graph("Mul", fields, fields), graph.longs(1), keepdims=0)
            products = graph("Mul", graph("Sub", graph("Mul", sums, sums), squares), graph.floats(0.5))
        else:
            first, second = np.triu_indices(model["fields"], 1)
            every = graph("MatMul", fields, graph("Transpose", fields, perm=[0, 2, 1]))
            flat = graph("Reshape", every, graph.longs(0, -1))
            products = graph("Gather", flat, graph.longs(*(first * model["fields"] + second)), axis=1)
        return graph.concat([x, products])

    def _context(self, pooled: Mapping[str, str], dense: str | None) -> str | None:
        if not self._model["context"]:
            return None
        places = {name: (start, stop) for name, start, stop in self._model["dense_columns"]}
        return self._graph.concat(
            pooled[name] if name in pooled else self._graph.columns(str(dense), *places[name])
            for name in self._model["context"]
        )

    def _tower(self, x: str, context: str | None) -> str:
        graph, tower = self._graph, self._model["tower"]
        if tower["kind"] == "mlp":
            for name, winners in tower["layers"]:
                x = self._activated(graph.linear(name, x), winners, graph.shape(f"{name}.weight")[0])
            return x
        for block in tower["blocks"]:
            normed = x
            if block["norm"]:
                parts = [graph.dense(f"{block['norm']}.{part}") for part in ("weight", "bias")]
                normed = graph("LayerNormalization", x, *parts, epsilon=_EPSILON)
            x = graph("Add", x, self._mixture(block, normed, normed if context is None else context))
        return x

    def _mixture(self, block: Mapping[str, Any], x: str, context: str) -> str:
        """The sum of the chosen experts; each computes only the rows that chose it."""
        graph, name = self._graph, block["name"]
        experts, _, hidden = graph.shape(f"{name}.experts.w1_EDH")
        gates_BE, y = self._gates(block, context), graph.zeros_like(x)
        for expert in range(experts):
            gate_B = graph("Gather", gates_BE, graph.constant(expert, np.int64), axis=1)
            rows_N1 = graph("Transpose", graph("NonZero", gate_B), perm=[1, 0])
            rows_N = graph("Squeeze", rows_N1, graph.longs(1))
            first, second = (graph.dense(f"{name}.experts.{part}", expert) for part in ("w1_EDH", "w2_EHD"))
            units = self._activated(graph("MatMul", graph("Gather", x, rows_N), first), block["winners"], hidden)
            gate_N1 = graph("Gather", gate_B, rows_N1)
            y_ND = graph("MatMul", graph("Mul", units, gate_N1), second)
            y = graph("ScatterND", y, rows_N1, y_ND, reduction="add")
        if block["shared"]:
            first, second = (graph.dense(f"{name}.shared.{part}", 0) for part in ("w1_EDH", "w2_EHD"))
            units = self._activated(graph("MatMul", x, first), block["winners"], hidden)
            y = graph("Add", y, graph("MatMul", units, second))
        return y

    def _gates(self, block: Mapping[str, Any], context: str) -> str:
        """(B, E) the gate of each expert, 0 of those that were not chosen."""
        graph, name, top_k = self._graph, f"{block['name']}.router", block["top_k"]
        mask = graph.dense(f"{name}.mask_E")
        logits = graph("Add", graph("Gemm", context, graph.dense(f"{name}.weight"), transB=1), mask)
        scores = graph("Softmax", logits, axis=1) if block["gate"] == "softmax" else graph("Sigmoid", logits)
        ranked = logits
        if graph.has(f"{name}.bias_E"):
            ranked = graph("Add", scores, graph("Add", graph.dense(f"{name}.bias_E"), mask))
        chosen = graph.largest(ranked, top_k)
        gates = graph("GatherElements", scores, chosen, axis=1)
        if top_k > 1:
            total = graph("ReduceSum", gates, graph.longs(1), keepdims=1)
            gates = graph("Div", gates, graph("Max", total, graph.floats(1e-9)))
        return graph("ScatterElements", graph.zeros_like(scores), chosen, gates, axis=1)

    def _activated(self, x: str, winners: int | None, width: int) -> str:
        graph = self._graph
        x = graph("Relu", x)
        if winners is None or winners >= width:
            return x
        kept = graph.largest(x, winners)
        values = graph("GatherElements", x, kept, axis=1)
        return graph("ScatterElements", graph.zeros_like(x), kept, values, axis=1)


def _predictions(graph: Graph, tasks: Sequence[Mapping[str, Any]]) -> str:
    """(B, T) probabilities, expected counts or values, calibrated as the artifact is."""
    columns = []
    for at, task in enumerate(tasks):
        x = graph("Cast", graph.columns(LOGITS, at, at + 1), to=TensorProto.DOUBLE)
        calibration = task["calibration"]
        if calibration is not None and calibration["kind"] == "isotonic":
            x = interpolated(graph, x, calibration["logits"], calibration["probabilities"])
        else:
            if calibration is not None:
                x = graph("Mul", x, graph.constant([calibration["slope"]], np.float64))
                x = graph("Add", x, graph.constant([calibration["intercept"]], np.float64))
            if task["kind"] not in VALUES:
                x = graph("Sigmoid" if task["kind"] == "binary" else "Exp", x)
        columns.append(graph("Cast", x, to=TensorProto.FLOAT))
    places = {task["name"]: at for at, task in enumerate(tasks)}
    chains = chains_of({task["name"]: task["after"] for task in tasks}).values()
    return graph.concat(graph("Min", *(columns[places[name]] for name in chain)) for chain in chains)


def interpolated(graph: Graph, x_B1: str, knots: Sequence[float], values: Sequence[float]) -> str:
    """(B, 1) the values at ``x_B1`` of the line through the knots, which is constant beyond its ends."""
    first, last = knots[0] - max(1.0, abs(knots[0])), knots[-1] + max(1.0, abs(knots[-1]))
    x_K = graph.constant([first, *knots, last], np.float64)
    y_K = graph.constant([values[0], *values, values[-1]], np.float64)
    x_B1 = graph("Max", x_B1, graph.constant([first], np.float64))
    x_B1 = graph("Min", x_B1, graph.constant([knots[-1]], np.float64))
    passed = graph("Cast", graph("GreaterOrEqual", x_B1, x_K), to=TensorProto.INT64)
    low = graph("Sub", graph("ReduceSum", passed, graph.longs(1), keepdims=1), graph.longs(1))
    high = graph("Add", low, graph.longs(1))
    (x_low, x_high), (y_low, y_high) = ([graph("Gather", line, at) for at in (low, high)] for line in (x_K, y_K))
    share = graph("Div", graph("Sub", x_B1, x_low), graph("Sub", x_high, x_low))
    return graph("Add", y_low, graph("Mul", share, graph("Sub", y_high, y_low)))
