"""Networks and action tokens."""
