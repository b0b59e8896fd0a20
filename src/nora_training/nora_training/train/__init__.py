"""Training code shared by all trainers."""
