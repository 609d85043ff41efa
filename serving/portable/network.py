"""The dense part of a ranker in NumPy: everything after the lookup of embeddings.

Letters: B rows, F fields, d width of a field, D width of a row, T tasks, H hidden units, E experts, K chosen of them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.portable.files import Floats


class Network:
    """The dense part: everything after the lookup of embeddings.

    Args:
        model: The block ``network`` of ``model.json``: which parts there are, and the names of their tensors.
        tensors: Of ``dense.safetensors``.
    """

    def __init__(self, model: Mapping[str, Any], tensors: Mapping[str, Floats]) -> None:
        self.model, self._tensors = model, tensors

    def __call__(self, pooled: Mapping[str, Floats], wide: Mapping[str, Floats], dense_BD: Floats) -> Floats:
        """(B, T) logits of rows whose features are looked up and pooled."""
        model = self.model
        dense_BD = np.sign(dense_BD) * np.log1p(np.abs(dense_BD))
        dense_BD = (dense_BD - self._tensors["standardize.mean_D"]) / self._tensors["standardize.deviation_D"]
        gates = model["gates"]
        if gates is not None:
            pooled = {name: value * np.float32(gates["sparse"][name]) for name, value in pooled.items()}
            wide = {name: value * np.float32(gates["sparse"][name]) for name, value in wide.items()}
            dense_BD = dense_BD * np.array(gates["dense"], np.float32)
        fields, last_BD = [pooled[name] for name in model["fields"]], dense_BD
        if model["dense_field"]:
            last_BD = self.linear("interaction.dense_field", dense_BD)
        x_BD = np.concatenate([*fields, last_BD], 1)
        if model["norm"]:
            x_BD = self._batch_norm(x_BD)
        x_BD = self._interaction(x_BD)
        logits_BT = self.linear("heads.linear", np.concatenate([x_BD, self._tower(x_BD, pooled, dense_BD)], 1))
        for name in model["additive"]:
            logits_BT = logits_BT + self.linear(f"additive.terms.{name}", pooled[name])
        if model["wide"]:
            logits_BT = logits_BT + self._tensors["wide.bias"]
            for value_B1 in wide.values():
                logits_BT = logits_BT + value_B1
            if "wide.linear.weight" in self._tensors:
                logits_BT = logits_BT + self.linear("wide.linear", dense_BD)
        for task, first in model["chains"]:
            a_B, b_B = -logits_BT[:, task], -logits_BT[:, first]
            logits_BT[:, task] = -np.logaddexp(np.logaddexp(a_B, b_B), a_B + b_B)
        for part in model.get("ordinal", []):
            levels, thresholds = (np.array(part[key], np.float32) for key in ("levels", "thresholds"))
            above_BK = sigmoid(logits_BT[:, part["task"], None] - thresholds)
            logits_BT[:, part["task"]] = levels[0] + above_BK @ np.diff(levels)
        return np.asarray(logits_BT, np.float32)

    def linear(self, name: str, x_BD: Floats) -> Floats:
        """The product with a layer's matrix, plus its bias if it has one."""
        y: Floats = x_BD @ self._tensors[f"{name}.weight"].T
        bias = self._tensors.get(f"{name}.bias")
        return y if bias is None else y + bias

    def _batch_norm(self, x_BD: Floats) -> Floats:
        mean, variance, weight, bias = (
            self._tensors[f"norm.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return np.asarray((x_BD - mean) / np.sqrt(variance + np.float32(1e-5)) * weight + bias, np.float32)

    def _interaction(self, x_BD: Floats) -> Floats:
        kind, layers = self.model["interaction"]["kind"], self.model["interaction"]["layers"]
        if kind == "cross":
            crossed = x_BD
            for names in layers:
                product = crossed
                for name in names:
                    product = self.linear(name, product)
                crossed = crossed + x_BD * product
            return crossed
        if kind == "multiplicative":
            for [name] in layers:
                linear, factor = np.split(self.linear(name, x_BD), 2, axis=1)
                x_BD = linear + linear * factor
            return x_BD
        if kind == "none":
            return x_BD
        fields_BFd = x_BD.reshape(len(x_BD), self.model["interaction"]["fields"], -1)
        if kind == "fm":
            products = np.float32(0.5) * (np.square(fields_BFd.sum(1)) - np.square(fields_BFd).sum(1))
        else:
            first, second = np.triu_indices(fields_BFd.shape[1], 1)
            products = (fields_BFd @ fields_BFd.transpose(0, 2, 1))[:, first, second]
        return np.concatenate([x_BD, products], 1)

    def _tower(self, x_BD: Floats, pooled: Mapping[str, Floats], dense_BD: Floats) -> Floats:
        tower = self.model["tower"]
        if tower["kind"] == "mlp":
            for name, winners in tower["layers"]:
                x_BD = activate(self.linear(name, x_BD), winners)
            return x_BD
        context = None
        if self.model["context"]:
            columns = {name: dense_BD[:, start:stop] for name, start, stop in self.model["dense_columns"]}
            context = np.concatenate([{**pooled, **columns}[name] for name in self.model["context"]], 1)
        for block in tower["blocks"]:
            normed = self._layer_norm(block["norm"], x_BD) if block["norm"] else x_BD
            x_BD = x_BD + self._mixture(block, normed, normed if context is None else context)
        return x_BD

    def _layer_norm(self, name: str, x_BD: Floats) -> Floats:
        mean, variance = x_BD.mean(1, keepdims=True), x_BD.var(1, keepdims=True)
        normed = (x_BD - mean) / np.sqrt(variance + np.float32(1e-5))
        return np.asarray(normed * self._tensors[f"{name}.weight"] + self._tensors[f"{name}.bias"], np.float32)

    def _mixture(self, block: Mapping[str, Any], x_BD: Floats, context_BC: Floats) -> Floats:
        name, top_k, winners = block["name"], block["top_k"], block["winners"]
        mask_E = self._tensors[f"{name}.router.mask_E"]
        logits_BE = context_BC @ self._tensors[f"{name}.router.weight"].T + mask_E
        scores_BE = _softmax(logits_BE) if block["gate"] == "softmax" else sigmoid(logits_BE)
        bias_E = self._tensors.get(f"{name}.router.bias_E")
        ranked_BE = logits_BE if bias_E is None else scores_BE + (bias_E + mask_E)
        chosen_BK = np.argsort(-ranked_BE, axis=1, kind="stable")[:, :top_k]
        gates_BK = np.take_along_axis(scores_BE, chosen_BK, 1)
        if top_k > 1:
            gates_BK = gates_BK / np.maximum(gates_BK.sum(1, keepdims=True), 1e-9)
        first_EDH, second_EHD = (self._tensors[f"{name}.experts.{part}"] for part in ("w1_EDH", "w2_EHD"))
        y_BD = np.zeros_like(x_BD)
        for expert in np.unique(chosen_BK):
            rows, place = np.nonzero(chosen_BK == expert)
            hidden = activate(x_BD[rows] @ first_EDH[expert], winners)
            y_BD[rows] += (hidden * gates_BK[rows, place][:, None].astype(np.float32)) @ second_EHD[expert]
        if block["shared"]:
            first, second = (self._tensors[f"{name}.shared.{part}"][0] for part in ("w1_EDH", "w2_EHD"))
            y_BD = y_BD + activate(x_BD @ first, winners) @ second
        return y_BD


def activate(x_BH: Floats, winners: int | None) -> Floats:
    """ReLU, or only the largest ``winners`` units of each row after it."""
    x_BH = np.maximum(x_BH, np.float32(0))
    if winners is None or winners >= x_BH.shape[1]:
        return x_BH
    kept = np.argpartition(-x_BH, winners - 1, axis=1)[:, :winners]
    out = np.zeros_like(x_BH)
    np.put_along_axis(out, kept, np.take_along_axis(x_BH, kept, 1), 1)
    return out


def sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    """The logistic function without overflow."""
    decay = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, decay) / (1.0 + decay))


def _softmax(x_BE: NDArray[Any]) -> NDArray[Any]:
    exponent = np.exp(x_BE - x_BE.max(1, keepdims=True))
    return np.asarray(exponent / exponent.sum(1, keepdims=True))
