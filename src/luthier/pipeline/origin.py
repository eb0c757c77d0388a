"""Reading settings from YAML text, each value with the line it came from.

A cautious subset: one document of mappings, lists and scalars. Aliases, tags, duplicate keys and deep nesting are refused, and
plain scalars are read as YAML 1.2 does (`2e-4` is a number, `no` and `2024-01-01` are text).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import yaml

MAX_YAML_BYTES = 256 * 1024
MAX_DEPTH = 8

MAX_NUMBER_CHARS = 40

_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with the settings: where, what was found, what was expected, what to do."""

    where: str
    found: str
    expected: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: found {self.found}, expected {self.expected}"


@dataclass(slots=True)
class Tree:
    """Nested values, the line of each dotted key, and what was wrong with the text."""

    values: dict[str, object] = field(default_factory=dict[str, object])
    lines: dict[str, int] = field(default_factory=dict[str, int])
    problems: list[Problem] = field(default_factory=list[Problem])


def read_yaml(text: str, *, name: str) -> Tree:
    """Read settings from `text`; never raises. An empty text is an empty tree."""
    tree = Tree()
    try:
        refused = _refused(text, name)
        node = None if refused else yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark is not None else name
        problem = str(getattr(error, "problem", None) or type(error).__name__)
        tree.problems.append(
            Problem(where=where, found=f"text that is not YAML ({problem})", expected="lines such as `key: value`", fix=f"mend {where}")
        )
        return tree
    if refused:
        tree.problems.append(refused)
    elif node is not None and not _is_null(node):
        if isinstance(node, yaml.MappingNode):
            tree.values = _mapping(node, "", name, tree)
        else:
            tree.problems.append(
                Problem(where=name, found="a list or a single value", expected="settings by key", fix="begin with a line such as `data:`")
            )
    return tree


def read_value(text: str) -> object:
    """One value as it would be read after `key: `; text that is no number, truth value, null or bracketed list stays text."""
    stripped = text.strip()
    if stripped[:1] in ("[", "{", '"', "'"):
        tree = read_yaml(f"value: {stripped}", name="value")
        if not tree.problems and list(tree.values) == ["value"]:
            return tree.values["value"]
        return text
    return _plain(stripped) if "\n" not in text else text


def _refused(text: str, name: str) -> Problem | None:
    """What this subset leaves out, found from the event stream before anything is built."""
    num_bytes = len(text.encode("utf-8", "surrogatepass"))
    if num_bytes > MAX_YAML_BYTES:
        return Problem(
            where=name,
            found=f"{num_bytes:,} bytes",
            expected=f"at most {MAX_YAML_BYTES:,}",
            fix="settings only; data belongs into its own file",
        )
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"{name}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            return Problem(
                where=where, found="an anchor or alias (& or *)", expected="plain values", fix="write the value out, or quote the text"
            )
        if getattr(event, "tag", None) is not None:
            return Problem(where=where, found=f"the tag {event.tag}", expected="plain values", fix="remove the tag, or quote the text")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if depth > MAX_DEPTH:
            return Problem(where=where, found=f"more than {MAX_DEPTH} levels", expected="two or three", fix="compare with `luthier init`")
        if documents > 1:
            return Problem(where=where, found="a second document (---)", expected="one", fix="keep one document a file")
    return None


def _mapping(node: yaml.MappingNode, prefix: str, name: str, tree: Tree) -> dict[str, object]:
    out: dict[str, object] = {}
    for key_node, value_node in cast("Sequence[tuple[yaml.Node, yaml.Node]]", node.value):
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            tree.problems.append(
                Problem(where=f"{name}:{line}", found="a key that is a list or mapping", expected="a name", fix="name the key")
            )
            continue
        key = str(key_node.value)
        dotted = f"{prefix}{key}"
        if key in out:
            tree.problems.append(
                Problem(
                    where=f"{name}:{line}: {dotted}",
                    found="the key a second time",
                    expected="each key once",
                    fix=f"keep one (the first is on line {tree.lines[dotted]})",
                )
            )
            continue
        tree.lines[dotted] = line
        out[key] = _value(value_node, f"{dotted}.", name, tree)
    return out


def _value(node: yaml.Node, prefix: str, name: str, tree: Tree) -> object:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, prefix, name, tree)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, prefix, name, tree) for item in cast("Sequence[yaml.Node]", node.value)]
    assert isinstance(node, yaml.ScalarNode)
    return _plain(str(node.value)) if node.style is None else str(node.value)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NULL


def _plain(text: str) -> object:
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if len(text) > MAX_NUMBER_CHARS:
        return text
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return text


def flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested mappings as dotted keys; an empty mapping is a value of its own."""
    out: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            out.update(flatten(cast("Mapping[str, object]", value), f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out


def put(tree: dict[str, object], dotted: str, value: object) -> None:
    """Set a dotted key in nested mappings. A plain value in the way is replaced."""
    *groups, last = dotted.split(".")
    for group in groups:
        inner = tree.get(group)
        if not isinstance(inner, dict):
            inner = tree[group] = {}
        tree = cast("dict[str, object]", inner)
    tree[last] = value
