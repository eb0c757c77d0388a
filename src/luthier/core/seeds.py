"""Private, named streams of random numbers, so that adding one consumer changes no other."""

from __future__ import annotations

import hashlib
import random


def seed_for(seed: int, name: str) -> int:
    """A seed in [0, 2**63) for the stream `name`, for generators that take a number (numpy, torch)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def rng(seed: int, name: str) -> random.Random:
    """The stream `name` of this seed. Python hashes text seeds with sha512, so it does not depend on PYTHONHASHSEED."""
    return random.Random(f"{seed}/{name}")  # noqa: S311  not for secrets
