"""Trials in simulation, in process."""
