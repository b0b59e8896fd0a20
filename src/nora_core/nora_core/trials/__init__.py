"""Trials: protocol, records, log, sheet."""
