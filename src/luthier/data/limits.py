"""How much of an untrusted file is taken in before a row, or the file, is refused."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds that keep a hostile or broken file from using up memory, time or the stack."""

    max_record_bytes: int = 4 * MIB  # one line, CSV record, array element or paragraph
    max_depth: int = 64  # brackets inside brackets, counted before parsing
    max_number_digits: int = 4300  # characters of one number; int() is quadratic in them
    max_keys: int = 512  # keys of one object, columns of one table
    max_json_file_bytes: int = 256 * MIB  # a .json file is held in memory; .jsonl is streamed and has no such bound
    parquet_memory_bytes: int = 4096 * MIB  # address space of the process that reads Parquet
    parquet_idle_s: float = 60.0  # it is ended when it writes nothing for so long


DEFAULT_LIMITS = Limits()
