"""A SQLite view of a run, for questions: `sqlite3 RUN/index.sqlite "select arm, avg(value) from scores where metric='exact' group by arm"`.

It is made from the record and the journals and holds nothing of its own, so it has no migrations: delete it and make it again.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luthier.core.errors import RunError
from luthier.store.files import TMP_PREFIX
from luthier.store.journal import read
from luthier.store.layout import RunFolder

SCHEMA = """
create table arms (name text primary key, family text, model text, description text, dev_score real, failed text);
create table items (arm text, item_id text, cluster text, input text, answer text, gold text, note text, latency_s real,
    num_prompt_tokens integer, num_cached_tokens integer, num_new_tokens integer, primary key (arm, item_id));
create table scores (arm text, item_id text, metric text, value real, primary key (arm, item_id, metric));
create table generations (key text primary key, item_id text, answer text, finish text, num_prompt_tokens integer, num_new_tokens integer,
    latency_s real);
create table steps (number integer primary key, record text);
create table events (number integer primary key, record text);
"""
ITEM_COLUMNS = ("cluster", "text", "gold", "note", "latency_s", "num_prompt_tokens", "num_cached_tokens", "num_new_tokens")
GENERATION_COLUMNS = ("key", "item_id", "text", "finish", "num_prompt_tokens", "num_new_tokens", "latency_s")


def rebuild_index(folder: RunFolder) -> Path:
    """Write the index anew, aside and then over the old one. A run without results yet gets its journals alone.

    Raises RunError if the record or a journal is damaged.
    """
    tmp = folder.root / f"{TMP_PREFIX}{folder.index.name}-{os.getpid()}"
    try:
        with contextlib.closing(sqlite3.connect(tmp)) as base:
            base.executescript(SCHEMA)
            with base:
                _fill(base, folder)
        os.replace(tmp, folder.index)  # noqa: PTH105
    except (KeyError, TypeError, AttributeError, ValueError, sqlite3.Error) as error:
        raise RunError(
            f"cannot be indexed: {error!r}", where=str(folder.results), fix="repeat `luthier run`; answers are cached"
        ) from error
    finally:
        tmp.unlink(missing_ok=True)
    return folder.index


def _fill(base: sqlite3.Connection, folder: RunFolder) -> None:
    record: dict[str, Any] = json.loads(folder.results.read_bytes()) if folder.results.is_file() else {"arms": [], "item_inputs": {}}
    inputs: dict[str, str] = record["item_inputs"]
    for arm in record["arms"]:
        name = arm["name"]
        base.execute(
            "insert into arms values (?, ?, ?, ?, ?, ?)",
            (name, arm["family"], arm["model"], arm["description"], arm["dev_score"], arm["failed"]),
        )
        base.executemany(
            "insert into items (arm, item_id, input, cluster, answer, gold, note, latency_s, num_prompt_tokens, num_cached_tokens,"
            " num_new_tokens) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            ((name, item["item_id"], inputs.get(item["item_id"]), *(item[column] for column in ITEM_COLUMNS)) for item in arm["items"]),
        )
        base.executemany("insert into scores values (?, ?, ?, ?)", _scores(name, arm["items"]))
    base.executemany(
        "insert or ignore into generations values (?, ?, ?, ?, ?, ?, ?)",
        (tuple(record[column] for column in GENERATION_COLUMNS) for record in read(folder.journal_generations)),
    )
    base.executemany("insert into steps values (?, ?)", ((i, json.dumps(r)) for i, r in enumerate(read(folder.journal_steps), start=1)))
    base.executemany("insert into events values (?, ?)", ((i, json.dumps(r)) for i, r in enumerate(read(folder.journal_events), start=1)))


def _scores(arm: str, items: list[dict[str, Any]]) -> Iterator[tuple[str, str, str, float | None]]:
    for item in items:
        for metric, value in item["values"].items():
            yield arm, item["item_id"], metric, value
