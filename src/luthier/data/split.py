"""Train, dev and the locked test set, cut along clusters so that no item is tested on something nearly seen in training."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from luthier.core.errors import InputError
from luthier.core.hashing import digest, sha256_text
from luthier.core.types import Example, Split, TaskProfile
from luthier.data.duplicates import find_duplicates
from luthier.data.leakage import find_leaks
from luthier.data.profile import profile_task, stratum_of
from luthier.data.references import merge_references

MAX_DEV_ROWS, MIN_DEV_ROWS, DEV_SHARE = 300, 10, 0.1
MAX_TEST_ROWS, MIN_TEST_ROWS, TEST_SHARE = 500, 30, 0.2
MORE_ROWS = "give more examples that differ from each other; below about 200 no split supports a verdict"
_SHOWN = 5


@dataclass(slots=True)
class _Parts:
    """The rows as they are sorted out. `pool` is what is not test or dev yet."""

    pool: list[Example]
    dev: list[Example]
    test: list[Example]
    notes: list[str] = field(default_factory=list[str])


def split_examples(
    examples: Sequence[Example],
    *,
    seed: int,
    dev_rows: int | None = None,
    test_rows: int | None = None,
    train_rows: int | None = None,
    test: Sequence[Example] | None = None,
    dev: Sequence[Example] | None = None,
    clusters: Mapping[str, str] | None = None,
) -> Split:
    """Cut along clusters, by sha256 of seed and cluster: the order of the rows does not matter, the same rows give the same split.

    `test` and `dev`, and rows whose `given_split` says so, are official: kept as they are, test in its order (at most
    `test_rows` / `dev_rows` of them), and whatever in the other rows is nearly the same is left out of training. Otherwise test takes 20 %
    (30 to 500 rows) and dev 10 % (10 to 300), both with the label shares of the whole. `clusters` (example id to cluster) replaces the
    near-duplicate search. Dev and test rows that ask the same and answer in their own words are one item with several references
    (`merge_references`). train + dev + test + what `notes` counts as left out is everything that came in.

    Raises InputError where no three parts can be made.
    """
    parts = _Parts(
        pool=[e for e in examples if e.given_split not in {"dev", "test"}],
        dev=[*(dev or ()), *(e for e in examples if e.given_split == "dev")],
        test=[*(test or ()), *(e for e in examples if e.given_split == "test")],
    )
    everything = [*parts.pool, *parts.dev, *parts.test]
    if clusters is None:
        clusters = find_duplicates(everything).clusters
    cluster_of = {e.id: clusters.get(e.id, e.id) for e in everything}
    official_test, official_dev = bool(parts.test), bool(parts.dev)
    _refuse_too_few(parts, cluster_of)
    profile = profile_task(parts.pool or everything)
    stratum = _strata(profile)
    _take_out_known(parts, cluster_of)
    _merge(parts, profile)
    num_pool = len(parts.pool)
    if official_test:
        parts.test = _cap(parts.test, test_rows, "test", seed, stratum, parts.notes)
    else:
        wanted = test_rows or default_test_rows(num_pool)
        parts.test = _carve(parts, wanted, "test", seed, cluster_of, stratum, keep=1 if official_dev else 2)
    if official_dev:
        parts.dev = _cap(parts.dev, dev_rows, "dev", seed, stratum, parts.notes)
    else:
        parts.dev = _carve(parts, dev_rows or default_dev_rows(num_pool), "dev", seed, cluster_of, stratum, keep=1)
    _merge(parts, profile)
    train = _cap(parts.pool, train_rows, "train", seed, stratum, parts.notes)
    return Split(
        train=tuple(_shuffled(train, seed)),
        dev=tuple(_shuffled(parts.dev, seed)),  # official or not: choices are made on the first so many, and files come sorted
        test=tuple(parts.test if official_test else _shuffled(parts.test, seed)),
        clusters=cluster_of,
        seed=seed,
        official_test=official_test,
        test_sha256=content_sha256(parts.test if official_test else _shuffled(parts.test, seed)),
        notes=tuple(parts.notes),
    )


def default_test_rows(num_rows: int) -> int:
    """20 %, at least 30 where that leaves two thirds of the rows, at most 500."""
    return min(MAX_TEST_ROWS, max(1, round(TEST_SHARE * num_rows), min(MIN_TEST_ROWS, num_rows // 3)))


def default_dev_rows(num_rows: int) -> int:
    """10 %, at least 10 where that is at most a fifth of the rows, at most 300."""
    return min(MAX_DEV_ROWS, max(1, round(DEV_SHARE * num_rows), min(MIN_DEV_ROWS, num_rows // 5)))


def content_sha256(rows: Sequence[Example]) -> str:
    """Hex sha256 over ids and contents in order; file names, line numbers, groups and marks do not count."""
    return digest([replace(row, path="", line=0, group=None, given_split=None) for row in rows])


def _refuse_too_few(parts: _Parts, cluster_of: Mapping[str, str]) -> None:
    wanted = [name for name, given in (("test", parts.test), ("dev", parts.dev)) if not given]
    needed = 1 + len(wanted)
    names = " and ".join(["training", *wanted])
    found = len(parts.pool)
    if found < needed:
        raise InputError(f"{found} rows to make {names} rows of; at least {needed} are needed", fix=MORE_ROWS)
    num_clusters = len({cluster_of[e.id] for e in parts.pool})
    if num_clusters < needed:
        first = parts.pool[0]
        raise InputError(
            f"the {found} rows are {num_clusters} group(s) of near-duplicates, and a group stays on one side of the split; {names} rows "
            f"need at least {needed} groups",
            where=f"{first.path}:{first.line}",
            fix="remove the repeats and " + MORE_ROWS,
        )


def _take_out_known(parts: _Parts, cluster_of: Mapping[str, str]) -> None:
    """Leave out of dev what is nearly in test, and out of the pool what is nearly in either."""
    for name, source in (("dev", parts.dev), ("train", parts.pool)):
        known = [*parts.test, *(parts.dev if name == "train" else ())]
        if not known or not source:
            continue
        taken = {cluster_of[e.id] for e in known}
        leaking = {(leak.train.id, leak.train.path, leak.train.line) for leak in find_leaks(source, known).prompts}
        kept = [e for e in source if cluster_of[e.id] not in taken and (e.id, e.path, e.line) not in leaking]
        out = [e for e in source if cluster_of[e.id] in taken or (e.id, e.path, e.line) in leaking]
        if not out:
            continue
        where = "test" if name == "dev" else "test or dev"
        parts.notes.append(
            f"{len(out)} {name} rows left out: the same or nearly the same as {where} rows, or of one group with them ({_at(out)})"
        )
        if not kept:
            raise InputError(
                f"all {len(out)} {name} rows are the same or nearly the same as {where} rows, or of one group with them",
                where=f"{out[0].path}:{out[0].line}",
                fix=f"give {name} rows that are not in the official test or dev rows, or leave those away and let the split be made",
            )
        source[:] = kept


def _carve(
    parts: _Parts, wanted: int, name: str, seed: int, cluster_of: Mapping[str, str], stratum: Callable[[Example], str], *, keep: int
) -> list[Example]:
    """Move about `wanted` rows, in whole clusters, from the pool; at least `keep` clusters stay."""
    members: dict[str, list[Example]] = defaultdict(list)
    for example in parts.pool:
        members[cluster_of[example.id]].append(example)
    free = {c: rows for c, rows in members.items() if all(e.given_split is None for e in rows)} or members
    if len(members) <= keep:
        raise InputError(f"no rows are left for {name}: all are near-duplicates of each other", fix="remove the repeats and " + MORE_ROWS)
    if wanted > len(parts.pool) - keep:
        raise InputError(
            f"{wanted} {name} rows are asked for, and {len(parts.pool)} rows are left to make training rows of as well",
            where=f"data.{name}_rows",
            fix=f"--set data.{name}_rows={max(1, len(parts.pool) // 5)}",
        )
    order = sorted(free, key=lambda cluster: (sha256_text(f"{seed}/split/{cluster}"), cluster))
    strata = {c: stratum(min(free[c], key=lambda e: e.id)) for c in order}
    quota = _quotas(Counter(strata[c] for c in order for _ in free[c]), wanted)
    chosen: dict[str, None] = {}
    num_rows = 0
    for by_stratum in (True, False):  # first each label its share, then whatever fits
        for cluster in order:
            size = len(free[cluster])
            room = min(quota[strata[cluster]], wanted - num_rows) if by_stratum else wanted - num_rows
            if cluster not in chosen and size <= room and len(members) - len(chosen) > keep:
                chosen[cluster] = None
                quota[strata[cluster]] -= size
                num_rows += size
    if not chosen:
        smallest = min(order, key=lambda c: (len(free[c]), order.index(c)))
        chosen[smallest] = None
        num_rows = len(free[smallest])
    if num_rows != wanted:
        parts.notes.append(f"{num_rows} {name} rows instead of {wanted}: groups of near-duplicates are not cut apart")
    parts.pool[:] = [e for e in parts.pool if cluster_of[e.id] not in chosen]
    return [e for cluster in chosen for e in free[cluster]]


def _cap(
    rows: list[Example], limit: int | None, name: str, seed: int, stratum: Callable[[Example], str], notes: list[str]
) -> list[Example]:
    """At most `limit` rows, chosen by seed with the label shares of the whole, in their order."""
    if limit is None or len(rows) <= limit:
        return rows
    quota = _quotas(Counter(map(stratum, rows)), limit)
    kept: set[int] = set()
    for i in sorted(range(len(rows)), key=lambda i: (sha256_text(f"{seed}/{name}/{rows[i].id}"), rows[i].path, rows[i].line)):
        label = stratum(rows[i])
        if quota[label] > 0:
            quota[label] -= 1
            kept.add(i)
    notes.append(f"{len(rows) - limit} {name} rows left out: data.{name}_rows is {limit}")
    return [row for i, row in enumerate(rows) if i in kept]


def _quotas(sizes: Mapping[str, int], wanted: int) -> dict[str, int]:
    """`wanted` shared out in proportion to `sizes`, by largest remainder; never more than a stratum has."""
    total = sum(sizes.values())
    exact = {name: wanted * size / total for name, size in sizes.items()}
    quota = {name: min(sizes[name], int(share)) for name, share in exact.items()}
    missing = min(wanted, total) - sum(quota.values())
    for name in sorted(exact, key=lambda n: (int(exact[n]) - exact[n], sha256_text(n))):
        if missing > 0 and quota[name] < sizes[name]:
            quota[name] += 1
            missing -= 1
    return quota


def _merge(parts: _Parts, profile: TaskProfile) -> None:
    """Dev and test rows of one prompt become one item with several references."""
    for name, rows in (("dev", parts.dev), ("test", parts.test)):
        merged = merge_references(rows, profile)
        if len(merged) < len(rows):
            num_items = sum(bool(item.references) for item in merged)
            parts.notes.append(
                f"{len(rows) - len(merged)} {name} rows left out as items: they are further right answers to the prompts of {num_items} "
                f"{name} items, and the answer that fits best counts"
            )
            rows[:] = merged


def _strata(profile: TaskProfile) -> Callable[[Example], str]:
    known: dict[str, str] = {}

    def stratum(example: Example) -> str:
        if example.response not in known:
            known[example.response] = stratum_of(example.response, profile)
        return known[example.response]

    return stratum


def _shuffled(rows: Sequence[Example], seed: int) -> list[Example]:
    """An order that depends on the seed and the ids alone."""
    return sorted(rows, key=lambda e: (sha256_text(f"{seed}/order/{e.id}"), e.id, e.path, e.line))


def _at(rows: Sequence[Example]) -> str:
    shown = ", ".join(f"{e.path}:{e.line}" for e in rows[:_SHOWN])
    return shown + (f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else "")
