"""All pairs of similar texts: an exact set-similarity join, no sampling.

Texts are sets of character 5-grams, similarity is Jaccard. Prefix filtering (Chaudhuri, Ganti, Kaushik, ICDE 2006; Xiao et al.,
PPJoin, WWW 2008): two sets at least `threshold` similar share one of their few rarest members, so only rows that meet in the
inverted index of rare 5-grams are compared. Longer prefixes of which several members must be shared leave far fewer rows to compare
(Wang, Li, Feng, SIGMOD 2012): with `EXTRA` = 2 the join of 60,000 rows took a third of the time.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

SHINGLE_CHARS = 5
MIN_WORDS = 4  # below: 5-grams say too little
MIN_SHINGLES = 5
EXTRA = 2
MAX_CHARS = 100_000  # of a longer text, only so much is compared
BOILERPLATE_SHARE = 0.5  # 5-grams in more than this share of the texts belong to a template
BOILERPLATE_MIN_TEXTS = 20

# Scripts without spaces: two characters are about one word.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")

Shingles = NDArray[np.uint32]


def is_short(text: str) -> bool:
    """Whether a text has too few words to be similar to another in any way but being equal."""
    if text.count(" ") + 1 >= MIN_WORDS:
        return False
    return len(text.split()) + len(_UNSPACED.findall(text)) // 2 < MIN_WORDS


def shingle(text: str) -> Shingles:
    """The hashed character 5-grams of a text, sorted, each once; empty for a text shorter than that."""
    codes = np.frombuffer(text[:MAX_CHARS].encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    if len(codes) < SHINGLE_CHARS:
        return np.empty(0, dtype=np.uint32)
    windows = np.zeros(len(codes) - SHINGLE_CHARS + 1, dtype=np.uint64)
    for k in range(SHINGLE_CHARS):
        windows = windows * np.uint64(0x9E3779B97F4A7C15) + codes[k : len(codes) - SHINGLE_CHARS + 1 + k]
    windows ^= windows >> np.uint64(29)
    windows *= np.uint64(0xBF58476D1CE4E5B9)
    return np.unique((windows >> np.uint64(32)).astype(np.uint32))


def jaccard(a: Shingles, b: Shingles) -> float:
    """Size of the intersection over size of the union; 0 where both are empty."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - common
    return common / union if union else 0.0


def similar_pairs(texts: Sequence[str], *, threshold: float) -> Iterator[tuple[int, int, float]]:
    """Every pair (i, j, Jaccard >= threshold) of texts that are not short, in no particular order but always the same.

    5-grams that more than half of the texts share are a template around the text (an instruction written into each message) and
    are left out of the comparison, from `BOILERPLATE_MIN_TEXTS` texts on. Give each text once: equal texts are quadratic.
    """
    rows = [i for i, text in enumerate(texts) if not is_short(text)]
    sets = _without_boilerplate([shingle(texts[i]) for i in rows])
    rarity = _rarity(sets)
    index: dict[int, list[int]] = defaultdict(list)
    # Rows by size: each meets only rows that are not larger, for which a shorter prefix has to be indexed.
    for at in sorted(range(len(rows)), key=lambda k: (len(sets[k]), k)):
        mine = sets[at]
        size = len(mine)
        if size < MIN_SHINGLES:
            continue
        least_common = math.ceil(threshold * size - 1e-9)
        extra = min(EXTRA, least_common - 1)
        num_indexed = size - math.ceil(2 * threshold / (1 + threshold) * size - 1e-9) + 1 + EXTRA
        counts = rarity[mine & _BUCKET_MASK]
        rarest: list[int] = mine[np.lexsort((mine, counts))].tolist()
        shared: Counter[int] = Counter()
        for gram in rarest[: size - least_common + 1 + extra]:
            shared.update(index.get(gram, ()))
        for other in sorted(row for row, count in shared.items() if count > extra):
            if len(sets[other]) >= threshold * size - 1e-9:
                similarity = jaccard(mine, sets[other])
                if similarity >= threshold:
                    yield rows[min(other, at)], rows[max(other, at)], similarity
        for gram in rarest[:num_indexed]:
            index[gram].append(at)


_NUM_BUCKETS = 1 << 20
_BUCKET_MASK = np.uint32(_NUM_BUCKETS - 1)


def _rarity(sets: Sequence[Shingles]) -> NDArray[np.int64]:
    """In how many texts a 5-gram occurs, by its low bits. Collisions only cost time: the order must be the same for all rows."""
    counts = np.zeros(_NUM_BUCKETS, dtype=np.int64)
    for members in sets:
        np.add.at(counts, members & _BUCKET_MASK, 1)
    return counts


def _without_boilerplate(sets: list[Shingles]) -> list[Shingles]:
    if len(sets) < BOILERPLATE_MIN_TEXTS:
        return sets
    counts = _rarity(sets)
    frequent = counts > BOILERPLATE_SHARE * len(sets)
    if not frequent.any():
        return sets
    return [members[~frequent[members & _BUCKET_MASK]] for members in sets]
