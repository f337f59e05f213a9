"""What GPUs cost (config/prices.yaml)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from paretoserve import paths
from paretoserve.errors import InputError

FIELDS = ("usd_per_gpu_hour", "date", "source")


@dataclass(frozen=True)
class Price:
    """Price of one GPU for one hour, in US dollars, and when and where it was read."""

    usd_per_gpu_hour: float
    date: str
    source: str


def load_prices(file: Path = paths.PRICES) -> dict[str, Price]:
    """Return the known prices by system; a system without one is absent.

    Raises
    ------
    InputError
        A price is no positive number, or lacks its date or source.
    """
    try:
        content = yaml.load(file.read_bytes(), yaml.CSafeLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    systems = content.get("systems") if isinstance(content, dict) else None
    if not isinstance(systems, dict):
        raise InputError(f"{file}: 'systems' must map each system to its price")
    known = {system: _price(file, system, entry) for system, entry in systems.items()}
    return {system: price for system, price in known.items() if price is not None}


def _price(file: Path, system: str, entry: Any) -> Price | None:
    if not isinstance(entry, dict) or set(entry) - set(FIELDS) or FIELDS[0] not in entry:
        raise InputError(f"{file}: {system} must have usd_per_gpu_hour, date and source")
    price = entry["usd_per_gpu_hour"]
    if price is None:
        return None
    if isinstance(price, bool) or not isinstance(price, int | float) or not 0 < price < 1e6:
        raise InputError(
            f"{file}: {system}: usd_per_gpu_hour is {price!r}, it must be dollars above 0, or null"
        )
    date, source = (str(entry.get(name) or "") for name in FIELDS[1:])
    if not date or not source:
        raise InputError(f"{file}: {system}: a price needs its date and its source")
    return Price(float(price), date, source)


def usd_per_million_tokens(usd_per_gpu_hour: Any, tokens_per_s_per_gpu: Any) -> Any:
    """Dollars per million output tokens; numbers or arrays of one shape."""
    return usd_per_gpu_hour / 3600 / tokens_per_s_per_gpu * 1e6
