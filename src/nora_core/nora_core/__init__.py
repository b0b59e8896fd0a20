"""Shared by every machine: embodiments, control, simulator, bags, trial records; no torch."""
