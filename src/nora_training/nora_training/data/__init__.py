"""Bags to data sets."""
