"""Embeddings from a scripted server: what is sent, what is believed, what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.fixtures.fake_embeddings import embedded, letters
from tests.fixtures.fake_server import Answer, FakeServer, fake_server

from luthier.core.errors import EndpointError, RunError
from luthier.generate.embed import BATCH_TEXTS, embed, read_vectors
from luthier.generate.endpoint import Endpoint, Garbage
from luthier.store.vectors import VectorCache

SECRET = "sk-not-a-real-key-0123456789"


def _endpoint(url: str, **changes: object) -> Endpoint:
    values = {"url": url, "model": "m", "name": "m at fake", "retries": 1, "backoff_s": 0.01, "role": "embeddings", **changes}
    return Endpoint(**values)  # type: ignore[arg-type]


def _embed(server: FakeServer, texts: list[str], path: Path, **changes: object) -> tuple[np.ndarray, ...]:
    return embed(_endpoint(server.url, **changes), texts, store=VectorCache(path), on_progress=lambda done, total: None)


def test_vectors_come_in_order_at_length_one_and_are_paid_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    texts = [f"{'card' * (n % 5)} {chr(97 + n % 26)} {n}" for n in range(40)] + ["again", "again"]
    with fake_server(embedded) as server:
        found = _embed(server, texts, tmp_path / "v.jsonl", key_env="MY_KEY")
        assert len(server.seen) == -(-41 // BATCH_TEXTS)
        one = server.seen[0]
        assert (
            one.path == "/v1/embeddings" and one.headers["Authorization"] == f"Bearer {SECRET}" and one.body["encoding_format"] == "float"
        )
        monkeypatch.delenv("MY_KEY")
        again = _embed(server, texts[::-1], tmp_path / "v.jsonl", key_env="MY_KEY")  # not even a key is needed
        assert len(server.seen) == -(-41 // BATCH_TEXTS)
    for text, vector, other in zip(texts, found, again[::-1], strict=True):
        wanted = np.array(letters(text))
        np.testing.assert_allclose(vector, wanted / np.linalg.norm(wanted), rtol=1e-6)
        np.testing.assert_array_equal(vector, other)
    assert SECRET not in (tmp_path / "v.jsonl").read_text(encoding="utf-8")


def test_another_model_or_address_is_asked_anew(tmp_path: Path) -> None:
    with fake_server(embedded) as server:
        _embed(server, ["a"], tmp_path / "v")
        _embed(server, ["a"], tmp_path / "v", model="other")
        assert len(server.seen) == 2


def test_what_came_before_a_failure_is_kept(tmp_path: Path) -> None:
    def fails_later(request: dict, number: int) -> Answer:
        return embedded(request, number) if number == 0 else Answer(status=400, body=b"no more")

    texts = [f"{n}" for n in range(2 * BATCH_TEXTS)]
    with fake_server(fails_later) as server, pytest.raises(EndpointError, match="no more") as caught:
        _embed(server, texts, tmp_path / "v", concurrency=1)
    assert "--embeddings-endpoint" in caught.value.fix
    assert len(VectorCache(tmp_path / "v")) == BATCH_TEXTS


def test_a_busy_server_is_asked_again_and_a_missing_key_is_named(tmp_path: Path) -> None:
    def busy(request: dict, number: int) -> Answer:
        return Answer(status=503, body=b"busy") if number == 0 else embedded(request, number)

    with fake_server(busy) as server:
        assert len(_embed(server, ["a"], tmp_path / "v")) == 1 and len(server.seen) == 2
        with pytest.raises(EndpointError, match="NO_SUCH_KEY is not set"):
            _embed(server, ["b"], tmp_path / "v", key_env="NO_SUCH_KEY")


def test_vectors_of_several_lengths_are_refused(tmp_path: Path) -> None:
    def growing(request: dict, number: int) -> Answer:
        rows = [{"index": i, "embedding": [1.0] * (number + 1)} for i in range(len(request["input"]))]
        return Answer(body=json.dumps({"data": rows}).encode())

    with fake_server(growing) as server, pytest.raises(EndpointError, match="1 and 2 numbers"):
        _embed(server, [f"{n}" for n in range(BATCH_TEXTS + 1)], tmp_path / "v", concurrency=1)


@pytest.mark.parametrize(
    "body",
    [
        b"no json",
        b"[]",
        b'{"data": []}',
        b'{"data": [{"embedding": [1]}]}',
        b'{"data": [{"embedding": [1], "index": 0}, {"embedding": [1], "index": 0}]}',
        b'{"data": [{"embedding": [1], "index": 0}, {"embedding": [1], "index": 7}]}',
        b'{"data": [{"embedding": [1], "index": true}, {"embedding": [1], "index": 0}]}',
        b'{"data": [{"embedding": [], "index": 0}, {"embedding": [1], "index": 1}]}',
        b'{"data": [{"embedding": [0, 0], "index": 0}, {"embedding": [1, 1], "index": 1}]}',
        b'{"data": [{"embedding": ["x"], "index": 0}, {"embedding": [1], "index": 1}]}',
        b'{"data": [{"embedding": [NaN], "index": 0}, {"embedding": [1], "index": 1}]}',
        b'{"data": [{"embedding": [1e999], "index": 0}, {"embedding": [1], "index": 1}]}',
        b'{"data": [{"embedding": [1' + b"0" * 400 + b'], "index": 0}, {"embedding": [1], "index": 1}]}',
        b'{"data": ["x", "y"]}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_embedding(body: bytes) -> None:
    with pytest.raises(Garbage):
        read_vectors(_endpoint("http://127.0.0.1:1/v1"), body, 2)


def test_another_model_answered() -> None:
    body = b'{"model": "other", "data": [{"embedding": [1]}]}'
    with pytest.raises(EndpointError, match="'other' answered") as caught:
        read_vectors(_endpoint("http://127.0.0.1:1/v1"), body, 1)
    assert "--embeddings-model" in caught.value.fix


@pytest.mark.parametrize(
    "line",
    [
        '{"key": "a", "vector": "%%%"}',
        '{"key": "a", "vector": "AAA="}',
        '{"key": 1, "vector": "AACAPw=="}',
        '{"vector": "AADAfw==", "key": "a"}',
    ],
)
def test_a_damaged_journal_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "v").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(RunError, match="not an embedding"):
        VectorCache(tmp_path / "v")
