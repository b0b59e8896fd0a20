"""Settings for all tests."""

from hypothesis import settings

# A busy machine may stop for a quarter of a second in the middle of any example.
settings.register_profile("nora", deadline=None)
settings.load_profile("nora")
