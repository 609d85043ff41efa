"""Levers of export: fewer bits per value, and low-rank factors."""
