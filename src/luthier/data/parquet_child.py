"""Reads one Parquet file in a process of its own and writes its rows to stdout as JSON lines.

Run as a script by `parquet_file`: decoders of untrusted binary files can end the process or use up the memory, and then
it should not be ours. Exit codes: 0 done, 2 with one line on stderr, 3 pyarrow is not installed. Imports nothing of ours.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
import sys
from typing import BinaryIO

_BATCH_ROWS = 256


def main(path: str, memory_bytes: int, max_columns: int, out: BinaryIO) -> str | None:
    """Write the rows to `out`; returns what is wrong with the file, or None."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pa.set_memory_pool(pa.system_memory_pool())  # the others reserve address space in bulk
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    _limit_memory(memory_bytes)
    try:
        file = pq.ParquetFile(path, memory_map=False, pre_buffer=False)
        names = file.schema_arrow.names
        if len(names) > max_columns:
            return f"the table has {len(names):,} columns; at most {max_columns:,} are read"
        if len(set(names)) != len(names):
            return "two columns have the same name"
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
            for row in batch.to_pylist():
                fields = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
                # Tables made by pandas write NaN where a number is missing: that is null here.
                out.write(json.dumps(fields, ensure_ascii=True, default=_as_text).encode("ascii") + b"\n")
    except (MemoryError, pa.ArrowMemoryError):
        return f"reading it needs more than {memory_bytes / 2**30:.1f} GiB of memory"
    except BrokenPipeError:
        return None
    except Exception as error:  # whatever the decoder meets in a hostile file is one kind of answer here
        return f"{type(error).__name__}: {error}"
    return None


def _limit_memory(num_bytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _as_text(value: object) -> str:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    raise TypeError(f"a column holds values of type {type(value).__name__}, which are neither text nor numbers")


if __name__ == "__main__":
    try:
        problem = main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.stdout.buffer)
    except ImportError:
        sys.exit(3)
    if problem is not None:
        sys.stderr.write(" ".join(problem.split())[:500].encode("ascii", "backslashreplace").decode("ascii"))
        sys.exit(2)
