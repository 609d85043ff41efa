"""Dense features on one scale."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.normalization import Standardize


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(0, 50), unit=st.sampled_from([1e-3, 1.0, 1e6]))
def test_training_rows_have_mean_0_and_deviation_1_however_they_are_cut(cut, unit):
    dense_BD = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * unit + unit
    standardize = Standardize(3)
    standardize.fit([dense_BD[:cut], dense_BD[cut:]])
    scaled_BD = standardize(dense_BD)
    torch.testing.assert_close(scaled_BD.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled_BD.std(0, correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_a_constant_and_an_empty_split_give_no_infinities():
    constant_B1 = torch.full((10, 1), 7.3)
    for parts in ([constant_B1], []):
        standardize = Standardize(1)
        standardize.fit(parts)
        assert standardize(constant_B1).isfinite().all()
