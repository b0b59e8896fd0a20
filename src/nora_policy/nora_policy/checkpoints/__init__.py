"""Checkpoint folders: layouts, weights, conversion, the `nora-checkpoint` command."""
