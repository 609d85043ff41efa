"""Interaction logs to sparse bags: sources, features, vocabularies, splits, the data set on disk, and its loader."""
