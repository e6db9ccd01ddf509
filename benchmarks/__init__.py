"""Measurements, each a command that writes a JSON under `results/`."""
