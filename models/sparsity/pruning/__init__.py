"""Levers that prune rows, units and weights, and masks over weights."""
