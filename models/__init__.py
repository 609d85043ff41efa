"""The ranker and its parts: sharded embedding tables, interactions, sparse experts, levers of sparsity."""
