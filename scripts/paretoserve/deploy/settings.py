"""What deployment files hold beside the answer (config/deploy.yaml)."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from paretoserve import paths


@dataclass(frozen=True)
class Settings:
    """All of config/deploy.yaml."""

    margin: dict[str, float]
    token_block: int
    graph_sizes: dict[int, int]
    ports: dict[str, int]
    start_timeout_s: int
    stop_timeout_s: int
    kubernetes: dict[str, Any]
    images: dict[str, str]
    releases: dict[str, dict[str, str]]
    benchmark: dict[str, Any]


@cache
def deploy_settings() -> Settings:
    """Read config/deploy.yaml."""
    return Settings(**yaml.load(paths.DEPLOY.read_bytes(), yaml.CSafeLoader))
