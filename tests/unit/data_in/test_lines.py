"""Physical lines: the same as `bytes.splitlines`, however the bytes arrive, with a bound on what is held."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.lines import iter_lines


def _reader(data: bytes, sizes: list[int]):
    def chunks() -> Iterator[bytes]:
        at = 0
        for size in sizes:
            if at < len(data):
                yield data[at : at + size]
                at += size
        if at < len(data):
            yield data[at:]

    source = chunks()
    return lambda num_bytes: next(source, b"")


@settings(derandomize=True, max_examples=500)
@given(data=st.lists(st.sampled_from([b"\r", b"\n", b"a", b"bc", b"\xc3\xa9"])).map(b"".join), sizes=st.lists(st.integers(1, 4)))
def test_equal_to_splitlines_whatever_the_chunks(data: bytes, sizes: list[int]) -> None:
    lines = list(iter_lines(_reader(data, sizes), max_bytes=100))
    assert [line.data for line in lines] == data.splitlines()
    assert [line.number for line in lines] == list(range(1, len(lines) + 1))
    assert [line.ended for line in lines[:-1]] == [True] * len(lines[:-1])
    if lines:
        assert lines[-1].ended == data.endswith((b"\n", b"\r"))


@settings(derandomize=True, max_examples=300)
@given(
    data=st.lists(st.sampled_from([b"\r", b"\n", b"a" * 7, b"b"])).map(b"".join), sizes=st.lists(st.integers(1, 4)), bound=st.integers(1, 9)
)
def test_long_lines_are_cut_counted_and_do_not_shift_the_others(data: bytes, sizes: list[int], bound: int) -> None:
    lines = list(iter_lines(_reader(data, sizes), max_bytes=bound))
    whole = data.splitlines()
    assert [line.num_bytes for line in lines] == [len(line) for line in whole]
    for line, expected in zip(lines, whole, strict=True):
        assert line.is_cut == (len(expected) > bound)
        assert expected.startswith(line.data)
        assert len(line.data) <= bound
