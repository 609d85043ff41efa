"""What tests of strangers' logs share."""

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    """Draws of one test, whatever tests ran before it."""
    return np.random.default_rng(1)
