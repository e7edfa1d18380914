"""Setting single keys of a configuration by their dotted names.

The command line's overrides, the tuner's trials and the values that it found all do it this way:
on plain data, before it is turned into typed sections and checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def set_value(tree: dict[str, Any], defaults: Mapping[str, Any], key: str, value: Any) -> None:
    """Sets one value; what the tree leaves out on the way there is taken from the defaults.

    Args:
        tree: sections and values, changed in place.
        defaults: the same with nothing left out.
        key: names from the outermost section inwards, joined by dots; of a list of sections the
            one that has the name, e.g. `phases.frozen.rate`.
        value: plain data.

    Raises:
        ValueError: the way leads through a value, or to a name that no section of a list has.
    """
    *sections, last = key.split(".")
    node: Any = tree
    default: Any = defaults
    for section in sections:
        default = default.get(section) if isinstance(default, Mapping) else None
        if isinstance(node, dict) and node.get(section) is None:
            node[section] = {} if default is None else default
        node = _inside(node, section)
    if isinstance(node, list):
        raise ValueError(f"{last} is a section, not a value")
    node[last] = value


def get_value(tree: Mapping[str, Any], key: str) -> Any:
    """The value of a key; None where there is none.

    Raises:
        ValueError: as `set_value`.
    """
    *sections, last = key.split(".")
    node: Any = tree
    for section in sections:
        if isinstance(node, Mapping) and section not in node:
            return None
        node = _inside(node, section)
    return node.get(last) if isinstance(node, Mapping) else None


def _inside(node: Any, key: str) -> Any:
    """The section of that name, also among those of a list."""
    if isinstance(node, list):
        names = [item.get("name") if isinstance(item, dict) else None for item in node]
        if key not in names:
            raise ValueError(
                f"there is no {key}; there are {', '.join(str(name) for name in names)}"
            )
        return node[names.index(key)]
    inner = node[key]
    if not isinstance(inner, dict | list):
        raise ValueError(f"{key} is a value, not a section")
    return inner
