"""Sparse codes of embeddings: autoencoders and dictionaries."""
