"""Experiments as data: configs, run records, tables of runs."""
