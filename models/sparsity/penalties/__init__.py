"""Levers that shrink weights while training, until some are exactly zero."""
