"""Policies compared on recorded data."""
