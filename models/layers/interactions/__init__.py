"""Feature interactions between embeddings and tower: one file per kind, which registers its config.

A new kind is one module with a config that is decorated with :func:`~data_pipelines.config.base.register`, and an
import here.
"""

from models.layers.interactions.base import AnyInteraction, Fields, Interaction, InteractionConfig
from models.layers.interactions.cross import CrossConfig, CrossNet
from models.layers.interactions.multiplicative import MultiplicativeBlocks, MultiplicativeConfig
from models.layers.interactions.none import NoInteraction, NoInteractionConfig
from models.layers.interactions.pairs import (
    DotConfig,
    DotInteraction,
    FactorizationMachine,
    FactorizationMachineConfig,
)

__all__ = [
    "AnyInteraction",
    "CrossConfig",
    "CrossNet",
    "DotConfig",
    "DotInteraction",
    "FactorizationMachine",
    "FactorizationMachineConfig",
    "Fields",
    "Interaction",
    "InteractionConfig",
    "MultiplicativeBlocks",
    "MultiplicativeConfig",
    "NoInteraction",
    "NoInteractionConfig",
]
