"""Figures of reports and studies: one restrained style, drawn once, readable on light and on dark ground."""
