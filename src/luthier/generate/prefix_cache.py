"""Keys and values of what was read before, as a tree of tokens: what many prompts begin with is held once.

Each voice has a tree of its own, since adapters change keys and values. Memory is bounded; what was not used for longest goes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True, eq=False)
class _Node:
    """A stretch of tokens behind its parent's, `kv` [L, 2, n, K, D]."""

    tokens: tuple[int, ...]
    kv: Tensor
    parent: _Node | None
    used: int = 0
    children: dict[int, _Node] = field(default_factory=dict[int, "_Node"])


class PrefixCache:
    """The trees of all voices."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._roots: dict[str, dict[int, _Node]] = {}
        self._clock = 0

    def match(self, voice: str, ids: Sequence[int]) -> int:
        """How many leading tokens are held."""
        return sum(n for _, n in self._path(voice, ids))

    def read(self, voice: str, ids: Sequence[int]) -> Tensor | None:
        """Keys and values of the longest beginning that is held, [L, 2, n, K, D] (a copy); None where there is none."""
        self._clock += 1
        parts: list[Tensor] = []
        for node, n in self._path(voice, ids):
            node.used = self._clock
            parts.append(node.kv[:, :, :n])
        return torch.cat(parts, dim=2) if parts else None

    def add(self, voice: str, ids: Sequence[int], kv: Tensor, *, start: int = 0) -> None:
        """Keep `kv` of `ids[start:]`, as far as it is new. Nothing happens where what stands before `start` is not held any more."""
        self._clock += 1
        path = list(self._path(voice, ids))
        held = sum(n for _, n in path)
        for node, _ in path:
            node.used = self._clock
        if held < start or held >= len(ids):
            return
        parent, n = path[-1] if path else (None, 0)
        if parent is not None and n < len(parent.tokens):
            self._split(parent, n)
        tail = kv[:, :, held - start :].clone()
        leaf = _Node(tuple(ids[held:]), tail, parent, self._clock)
        (self._roots.setdefault(voice, {}) if parent is None else parent.children)[ids[held]] = leaf
        self.num_bytes += _bytes(tail)
        self._evict()

    def _path(self, voice: str, ids: Sequence[int]) -> Iterator[tuple[_Node, int]]:
        """Nodes along `ids`, and how many tokens of each fit; only the last may fit in part."""
        children, at = self._roots.get(voice, {}), 0
        while at < len(ids) and (node := children.get(ids[at])) is not None:
            n, limit = 1, min(len(node.tokens), len(ids) - at)
            while n < limit and node.tokens[n] == ids[at + n]:
                n += 1
            yield node, n
            if n < len(node.tokens):
                return
            children, at = node.children, at + n

    def _split(self, node: _Node, n: int) -> None:
        """Cut a node behind its first n tokens; the first part keeps its place."""
        rest = _Node(node.tokens[n:], node.kv[:, :, n:].clone(), node, node.used, node.children)
        for child in rest.children.values():
            child.parent = rest
        node.tokens, node.kv, node.children = node.tokens[:n], node.kv[:, :, :n].clone(), {rest.tokens[0]: rest}

    def _evict(self) -> None:
        while self.num_bytes > self.max_bytes:
            leaves = [(node.used, siblings, node) for siblings, node in self._leaves()]
            _, siblings, oldest = min(leaves, key=lambda leaf: leaf[0])
            del siblings[oldest.tokens[0]]
            self.num_bytes -= _bytes(oldest.kv)

    def _leaves(self) -> Iterator[tuple[dict[int, _Node], _Node]]:
        stack = list(self._roots.values())
        while stack:
            siblings = stack.pop()
            for node in siblings.values():
                if node.children:
                    stack.append(node.children)
                else:
                    yield siblings, node


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
