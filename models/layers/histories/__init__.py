"""Poolings of histories other than sums: one file per pooling, which registers it, and the part that applies them."""

from models.layers.histories.attention import TargetAttention
from models.layers.histories.bst import Bst
from models.layers.histories.convolution import LocalConvolution
from models.layers.histories.histories import Histories
from models.layers.histories.hstu import Hstu

__all__ = ["Bst", "Histories", "Hstu", "LocalConvolution", "TargetAttention"]
