"""Levers of sparsity: each a small module behind :class:`models.sparsity.lever.Lever`."""
