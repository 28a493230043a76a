"""Settings that all tests share."""

from hypothesis import settings

# A loaded machine is no failure: what has to be fast is measured by benchmarks, never by a deadline in a test.
settings.register_profile("galvatron", deadline=None, derandomize=True)
settings.load_profile("galvatron")
