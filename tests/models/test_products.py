"""Products by oneDNN against Torch's own, with their gradients; and which of the two is chosen."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import UserError
from models import products
from models.layers.towers import DenseTower, DenseTowerConfig
from models.products import Linear, library, linear, product_into

onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this Torch has no oneDNN")


@contextmanager
def by(name: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "library", lambda: name)
        yield


def strided(rows: int, columns: int, layout: str) -> torch.Tensor:
    """(rows, columns) of the values that any layout has after the same seed."""
    if layout == "transposed":
        return torch.randn(columns, rows).t()
    if layout == "columns of a wider one":
        return torch.randn(rows, columns + 5)[:, 3 : 3 + columns]
    return torch.randn(rows, columns)


layouts = st.sampled_from(["plain", "transposed", "columns of a wider one"])
sides = st.integers(1, 70)


@onednn
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(0, 90), inputs=sides, outputs=sides, of_x=layouts, of_weight=layouts, bias=st.booleans(),
    deep=st.booleans(), needs_input=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_a_product_and_its_gradients_are_torchs_own(
    rows: int,
    inputs: int,
    outputs: int,
    of_x: str,
    of_weight: str,
    bias: bool,
    deep: bool,
    needs_input: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x, weight = strided(rows, inputs, of_x), strided(outputs, inputs, of_weight)
    x = x.unsqueeze(0).expand(2, rows, inputs) if deep else x
    bias_O = torch.randn(outputs) if bias else None
    grad = torch.randn(*x.shape[:-1], outputs)

    def results(product) -> list[torch.Tensor]:
        leaves = [x.detach().requires_grad_(needs_input), weight.detach().requires_grad_()]
        leaves += [] if bias_O is None else [bias_O.detach().requires_grad_()]
        y = product(*leaves)
        y.backward(grad)
        return [y.detach(), *(leaf.grad for leaf in leaves if leaf.requires_grad)]

    with by("onednn"):
        found = results(linear)
    for ours, theirs in zip(found, results(F.linear), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@onednn
def test_the_gradient_of_a_sum_has_no_strides() -> None:
    x, layer = torch.randn(40, 30), Linear(30, 20)
    layer(x).sum().backward()
    expected = layer.weight.grad
    layer.weight.grad = None
    with by("onednn"):
        layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, expected)


@onednn
@settings(max_examples=20, deadline=None)
@given(
    batch=st.sampled_from([None, 1, 2]), rows=st.integers(0, 60), inputs=sides, outputs=sides,
    transposed=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_a_product_is_written_to_where_it_is_asked_to(
    batch: int | None, rows: int, inputs: int, outputs: int, transposed: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    shape = () if batch is None else (batch,)
    left = torch.randn(*shape, rows, inputs)
    right = torch.randn(*shape, outputs, inputs).mT if transposed else torch.randn(*shape, inputs, outputs)
    out = torch.full((*shape, rows, outputs), torch.nan)
    with by("onednn"):
        product_into(left, right, out)
    torch.testing.assert_close(out, left @ right, rtol=1e-5, atol=1e-4)


@onednn
def test_equal_inputs_give_equal_bytes() -> None:
    x, layer = torch.randn(300, 64), Linear(64, 48)

    def step() -> list[torch.Tensor]:
        layer.zero_grad()
        y = layer(x)
        y.square().sum().backward()
        return [y.detach(), layer.weight.grad.clone(), layer.bias.grad.clone()]

    with by("onednn"):
        assert all(torch.equal(first, second) for first, second in zip(step(), step(), strict=True))


@onednn
def test_autocast_other_types_and_tensors_without_memory_are_left_to_torch() -> None:
    x, layer = torch.randn(40, 30), Linear(30, 20)
    with by("onednn"), torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            reduced = layer(x)
        assert reduced.dtype == torch.bfloat16
        assert torch.equal(reduced, F.linear(x.bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16()))
        assert layer.double()(x.double()).dtype == torch.float64
        assert linear(x.to("meta"), torch.randn(20, 30, device="meta")).shape == (40, 20)


@onednn
def test_an_exported_tower_holds_torchs_own_products() -> None:
    tower = DenseTower(32, DenseTowerConfig(hidden=(24, 16))).eval()
    x = torch.randn(40, 32)
    with by("onednn"):
        program = torch.export.export(tower, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    assert "mkldnn" not in program.graph_module.code
    torch.testing.assert_close(program.module()(x[:17]), tower(x[:17]))


@pytest.mark.parametrize(
    ("vendor", "capability", "chosen"),
    [
        ("GenuineIntel", "AVX512", "mkl"),
        ("AuthenticAMD", "AVX512", "onednn"),
        ("HygonGenuine", "AVX512_AMX", "onednn"),
        ("AuthenticAMD", "AVX2", "mkl"),
        ("", "AVX512", "mkl"),
    ],
)
def test_the_processor_chooses(vendor: str, capability: str, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert products._fastest(vendor, capability) == chosen
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert products._fastest(vendor, capability) == "mkl"


def test_the_environment_chooses_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = library.__wrapped__
    monkeypatch.setenv("RECSYS_MATMUL", "mkl")
    assert choose() == "mkl"
    monkeypatch.setenv("RECSYS_MATMUL", "blas")
    with pytest.raises(UserError, match=r"RECSYS_MATMUL is 'blas': set it to 'mkl' or 'onednn'"):
        choose()
    monkeypatch.setenv("RECSYS_MATMUL", "onednn")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(UserError, match="this Torch has no oneDNN: unset it"):
        choose()


def test_both_libraries_are_measured() -> None:
    rates = products.measure(rows=64, width=32, rounds=1)
    assert set(rates) == ({"mkl", "onednn"} if torch.backends.mkldnn.is_available() else {"mkl"})
    assert min(rates.values()) > 0
