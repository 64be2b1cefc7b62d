"""The number of Hypothesis's examples: all of them with the profile ``full``, a tenth with ``fast``."""

from hypothesis import settings

FULL, FAST = 100, 10
"""Examples of a test that does not say how many it needs."""


def examples(count: int) -> settings:
    """Return the settings of a test that needs ``count`` examples."""
    return settings(max_examples=max(1, count * settings().max_examples // FULL))
