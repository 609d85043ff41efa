"""Readers of foreign bytes refuse what a fuzzer found interesting, and what is cut out of or written into valid inputs.

The inputs below ``fuzz_corpus`` were kept by ``benchmarks/fuzz.py``.
"""

from pathlib import Path

import pytest
from benchmark_modules import benchmark_module
from hypothesis import given, settings
from hypothesis import strategies as st

CORPUS = Path(__file__).with_name("fuzz_corpus")
NAMES = ("manifest", "model", "encoder", "tables", "dense", "packed", "arrow", "json", "config")


@pytest.fixture(scope="module")
def targets(exported, tmp_path_factory):
    return benchmark_module("fuzz_targets").targets(exported, tmp_path_factory.mktemp("fuzz"))


def test_every_reader_has_a_corpus(targets):
    assert set(targets) == set(NAMES) == {folder.name for folder in CORPUS.iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_is_read_or_refused(name, targets):
    for file in (CORPUS / name).iterdir():
        targets[name].run(file.read_bytes())
    for seed in targets[name].seeds:
        targets[name].run(seed)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(start=st.floats(0, 1), cut=st.integers(0, 9), written=st.binary(max_size=9), seed=st.integers(0, 2))
def test_changed_bytes_are_read_or_refused(name, start, cut, written, seed, targets):
    content = targets[name].seeds[seed % len(targets[name].seeds)]
    at = int(start * len(content))
    targets[name].run(content[:at] + written + content[at + cut :])
