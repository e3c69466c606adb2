"""YAML as bundles hold it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


def yaml_text(*values: Mapping[str, Any]) -> str:
    """Return values as YAML, keys in their order, several as documents of one stream."""
    return "---\n".join(
        yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=1000)
        for value in values
    )
