"""The cost of an attack, beside its bound."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One measured attack."""

    attack: str
    figure: float
    unit: str
    bound: float

    @property
    def is_met(self) -> bool:
        """Return whether the figure is within its bound."""
        return self.figure <= self.bound
