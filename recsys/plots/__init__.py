"""Figures of reports and studies, in one style for light and dark pages."""
