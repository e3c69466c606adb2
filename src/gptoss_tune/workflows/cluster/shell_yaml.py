"""YAML in which shell scripts stand as blocks, line by line, to be read and changed."""

from __future__ import annotations

from typing import Any

import yaml


class Block(str):
    """A text that is written as a YAML block."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    """Writes blocks as they are, and what stands twice twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    Block,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="|"),
)


def shell_yaml(*documents: dict[str, Any]) -> str:
    """Return documents as YAML, their keys in the order given."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=1000)
