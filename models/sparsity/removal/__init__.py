"""Removing dead experts, features and units from a trained ranker, without changing its logits."""
