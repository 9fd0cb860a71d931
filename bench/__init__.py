"""Measurements: ratios within one run, next to a floor, with machine and versions."""
