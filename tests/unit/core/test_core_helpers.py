from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core import environment
from luthier.core.hashing import canonical_json, digest, sha256_file, sha256_text
from luthier.core.seeds import rng, seed_for
from luthier.core.stop import StopFlag, Stopped, stop_on_signals

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    names: tuple[str, ...]


def test_sha256_of_text_and_file_agree(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes("Grüße\n".encode())
    assert sha256_text("Grüße\n") == sha256_file(path) == hashlib.sha256("Grüße\n".encode()).hexdigest()
    assert sha256_text("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_lone_surrogates_are_hashed_and_told_apart() -> None:
    assert sha256_text("\ud800") != sha256_text("\ud801")
    assert digest(["\ud800"]) != digest(["\ud801"])


def test_canonical_json_takes_our_nouns() -> None:
    assert (
        canonical_json({"b": Point(1, ("é",)), "a": Path("x") / "y", "c": {"z", "y"}})
        == r'{"a":"x/y","b":{"names":["\u00e9"],"x":1},"c":["y","z"]}'
    )


@settings(derandomize=True, max_examples=100)
@given(VALUES)
def test_canonical_json_is_json_and_ignores_key_order(value: object) -> None:
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text

    def reversed_keys(v: object) -> object:
        if isinstance(v, dict):
            return {k: reversed_keys(v[k]) for k in reversed(list(v))}
        return [reversed_keys(i) for i in v] if isinstance(v, list) else v

    assert digest(reversed_keys(value)) == digest(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")]])
def test_not_finite_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest(value)


@pytest.mark.parametrize("value", [object(), b"x", {1: 2}, {1, 2}, Point])
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        digest(value)


def test_streams_are_named_and_the_same_in_every_process() -> None:
    assert rng(0, "split").random() == rng(0, "split").random()
    assert rng(0, "split").random() != rng(0, "order").random() != rng(1, "order").random()
    code = "from luthier.core.seeds import *; print(rng(7, 'a').random(), seed_for(7, 'a'))"
    outs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": s}, capture_output=True, text=True, check=True
        ).stdout
        for s in ("1", "2")
    }
    assert outs == {f"{rng(7, 'a').random()} {seed_for(7, 'a')}\n"}
    assert 0 <= seed_for(7, "a") < 2**63


def test_environment_says_what_matters_and_nothing_private(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "sk-very-secret-0123")
    monkeypatch.setenv("USER", "ada-lovelace")
    found = environment.describe_environment()
    assert {"python", "platform", "cpu", "cores", "torch", "luthier"} <= set(found)
    assert int(found["cores"]) >= 1 and float(found["memory_gib"]) > 0
    text = json.dumps(found)
    assert "sk-very-secret" not in text and "ada-lovelace" not in text
    assert os.uname().nodename not in text.split() and str(Path.home()) not in text


@pytest.mark.parametrize(
    ("name", "found"),
    [("AMD EPYC", "AMD EPYC, family 26, model 2"), ("AMD EPYC 9654", "AMD EPYC 9654")],
)
def test_processors_that_share_a_name_are_told_apart(name: str, found: str) -> None:
    text = f"processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: {name}\nflags\t\t: fpu avx2\n"
    assert environment.read_cpuinfo(text) == (found, frozenset({"fpu", "avx2"}))
    assert environment.read_cpuinfo("Features\t: asimd\n")[1] == {"asimd"}


def test_environment_does_not_import_torch() -> None:
    code = "from luthier.core.environment import describe_environment as d; d(); import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_raises_the_flag(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as caught, stop_on_signals() as flag:
        assert not flag()
        os.kill(os.getpid(), number)
        assert flag()
        raise KeyboardInterrupt  # what a loop does when it sees the flag
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is before


def test_the_first_signal_is_acknowledged(capfd: pytest.CaptureFixture[str]) -> None:
    with stop_on_signals():
        os.kill(os.getpid(), signal.SIGINT)
    assert "stopping after this step" in capfd.readouterr().err


def test_work_that_ends_before_it_looks_is_not_stopped() -> None:
    with stop_on_signals() as flag:
        os.kill(os.getpid(), signal.SIGTERM)
    assert flag.signal_number == signal.SIGTERM


def test_keyboard_interrupt_without_a_signal_stays_what_it_is() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, stop_on_signals():
        raise KeyboardInterrupt
    assert not isinstance(caught.value, Stopped)


def test_second_signal_ends_at_once() -> None:
    code = (
        "import os, signal\nfrom luthier.core.stop import stop_on_signals\n"
        "with stop_on_signals() as flag:\n"
        "    os.kill(os.getpid(), signal.SIGINT); assert flag()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    raise SystemExit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 143


def test_flag_outside_the_main_thread_never_rises() -> None:
    import threading

    seen: list[StopFlag] = []

    def work() -> None:
        with stop_on_signals() as flag:
            seen.append(flag)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not seen[0]()
