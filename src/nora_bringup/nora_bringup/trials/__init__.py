"""Trials: how good is a policy? Fixed scenes, several checkpoints, controls, a sheet."""
