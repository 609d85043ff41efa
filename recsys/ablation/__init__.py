"""Ablation studies: which features, levers and model parts matter, with confidence intervals."""
