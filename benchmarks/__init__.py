"""Benchmarks of the product, each a process of its own that is tuned as the command is."""

from data_pipelines.runtime import tune_process

tune_process()
