"""Verbs of training: plan, train, evaluate, tune."""
