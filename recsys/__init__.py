"""The experiment: configuration, training, evaluation, studies, reports, and the ``recsys`` command."""

__version__ = "0.1.0"
