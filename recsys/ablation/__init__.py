"""Ablation studies: which features, levers and model parts earn their keep, and how sure one can be of it."""
