"""Levers of sparsity, one module each, behind the interface of :mod:`models.sparsity.lever`."""
