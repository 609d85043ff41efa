"""Cross layers, tower and head of a ranker in ONNX Runtime, fp32; runs in its environment, prints its seconds.

Arguments: an ``.npz`` of the dense weights by name, an ``.npy`` of rows (N, D), a file for the logits, and how many
threads there are. Each batch goes to one thread, as in our jobs, and, in turns, to all threads at once; the faster of
the two is printed.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

BATCH = 4096


def graph(weights):
    """The network as a graph from ``x`` (N, D) to ``logits`` (N, T)."""
    nodes = []

    def linear(source, name, out):
        nodes.append(helper.make_node("Gemm", [source, f"{name}.weight", f"{name}.bias"], [out], transB=1))

    crossed, layer = "x", 0
    while f"interaction.layers.{layer}.weight" in weights:
        linear(crossed, f"interaction.layers.{layer}", f"cross{layer}")
        nodes.append(helper.make_node("Mul", ["x", f"cross{layer}"], [f"product{layer}"]))
        nodes.append(helper.make_node("Add", [f"product{layer}", crossed], [f"crossed{layer}"]))
        crossed, layer = f"crossed{layer}", layer + 1
    hidden, layer = crossed, 0
    while f"tower.layers.{layer}.weight" in weights:
        linear(hidden, f"tower.layers.{layer}", f"hidden{layer}")
        nodes.append(helper.make_node("Relu", [f"hidden{layer}"], [f"active{layer}"]))
        hidden, layer = f"active{layer}", layer + 2
    nodes.append(helper.make_node("Concat", [crossed, hidden], ["enriched"], axis=1))
    linear("enriched", "heads.linear", "logits")
    widths = {"x": len(weights["interaction.layers.0.weight"]), "logits": len(weights["heads.linear.weight"])}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width]) for name, width in widths.items()]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    made = helper.make_graph(nodes, "ranker", ends[:1], ends[1:], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def seconds(model, batches, outer, inner):
    """Of all batches: ``outer`` of them at a time, each on ``inner`` threads; and their logits."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = inner
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    session.run(None, {"x": batches[0]})
    begin = time.perf_counter()
    with ThreadPoolExecutor(outer) as pool:
        logits = list(pool.map(lambda batch: session.run(None, {"x": batch})[0], batches))
    return time.perf_counter() - begin, np.concatenate(logits)


def run():
    weights, rows, out, threads = dict(np.load(sys.argv[1])), np.load(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    model = graph(weights)
    apart, logits = seconds(model, batches, threads, 1)
    together, _ = seconds(model, batches, 1, threads)
    np.save(out, logits)
    print(json.dumps({"seconds": min(apart, together), "rows": len(logits)}))


if __name__ == "__main__":
    run()
