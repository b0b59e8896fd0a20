"""Model definitions and checkpoint layouts."""
