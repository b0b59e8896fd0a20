"""The simulated WidowX cell."""
