"""A score of the user's own: what is imported, what is refused, and that a module's own file is what is recorded."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from luthier.core.errors import ConfigError
from luthier.core.types import Example, TaskProfile
from luthier.metrics.catalogue import score_answer
from luthier.metrics.closed_world import ClosedWorld
from luthier.metrics.own import is_own, open_own_metric, try_own_metric

Writer = Callable[[str, str], None]
ITEM = Example(id="i7", path="rows.jsonl", line=7, kind="instruct", input="q", response="blue", references=("navy",))


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Writer]:
    """Writes a module to the folder that is made the current one; imports are undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write_module(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")

    yield write_module
    for name in set(sys.modules) - before:
        del sys.modules[name]
    open_own_metric.cache_clear()


def test_a_function_scores_every_right_answer_and_its_file_is_recorded(write: Writer, tmp_path: Path) -> None:
    text = "def share(answer, references):\n    return max(float(answer == right) for right in references)\n"
    write("own_a", text)
    own = open_own_metric("own_a:share")
    assert own.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert (own.score(ITEM, "navy"), own.score(ITEM, "red")) == (1.0, 0.0)
    profile = TaskProfile(kind="text", evidence="")
    scored = score_answer(ITEM, "blue", profile=profile, world=ClosedWorld(known=frozenset()), markers=frozenset(), own=own)
    assert scored.values["own_a:share"] == 1.0 and list(scored.values)[-1] == "own_a:share"
    assert is_own("own_a:share") and not is_own("exact")
    assert try_own_metric(own, [ITEM] * 30) == (1.0, 20)
    assert sys.path[0] != str(tmp_path), "a file there must not stand in for a module of ours later"


def test_none_is_not_scored_and_never_zero(write: Writer) -> None:
    write("own_b", "def f(answer, references):\n    return None\n")
    own = open_own_metric("own_b:f")
    assert own.score(ITEM, "x") is None
    assert try_own_metric(own, [ITEM]) is None


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("return 1.5", "returned 1.5 (float)"),
        ("return -0.1", "returned -0.1 (float)"),
        ("return float('nan')", "returned nan (float)"),
        ("return '1'", "returned '1' (str)"),
        ("return [1.0]", "returned [1.0] (list)"),
        ("return 1j", "returned 1j (complex)"),
        ("return {}['gone']", "raised KeyError: 'gone' (line 2 of"),
        ("raise SystemExit(3)", "raised SystemExit: 3"),
    ],
)
def test_what_breaks_the_contract_is_refused_with_the_item_and_one_remedy(write: Writer, body: str, problem: str) -> None:
    write("own_c", f"def f(answer, references):\n    {body}\n")
    with pytest.raises(ConfigError) as caught:
        open_own_metric("own_c:f").score(ITEM, "x")
    assert problem in caught.value.message
    assert caught.value.where == "decide.metric own_c:f, item i7 (rows.jsonl:7)"
    assert "own_c.py" in caught.value.fix and "0 to 1" in caught.value.fix


def test_numbers_of_other_kinds_are_numbers(write: Writer) -> None:
    write("own_d", "import numpy as np\ndef f(answer, references): return np.float32(0.5)\ndef g(answer, references): return True\n")
    assert open_own_metric("own_d:f").score(ITEM, "x") == 0.5
    assert open_own_metric("own_d:g").score(ITEM, "x") == 1.0


def test_a_score_that_changes_is_refused_before_anything_computes(write: Writer) -> None:
    write("own_e", "N = [0]\n\ndef f(answer, references):\n    N[0] += 1\n    return 1 / N[0]\n")
    with pytest.raises(ConfigError, match="the same score each time"):
        try_own_metric(open_own_metric("own_e:f"), [ITEM])


@pytest.mark.parametrize(
    ("text", "name", "problem", "fix"),
    [
        ("def points(a, r): return 1.0\n", "own_f:point", "has no function 'point'; there are points", "--metric own_f:points"),
        ("X = 1\n", "own_f:f", "has no function 'f'", "def f(answer, references)"),
        ("import nowhere_at_all\n", "own_f:f", "importing own_f failed: ModuleNotFoundError", "own_f.py"),
        ("1 / 0\n", "own_f:f", "importing own_f failed: ZeroDivisionError", "own_f.py"),
        ("", "own_missing:f", "importing own_missing failed", "own_missing.py"),
        ("", "os.path:", "expected module:function", "--metric score:points"),
        ("", "a b:f", "expected module:function", "--metric score:points"),
        ("", "../x:f", "expected module:function", "--metric score:points"),
        ("", "math:sqrt", "is no Python file", "wrap it"),
    ],
)
def test_names_that_lead_nowhere(write: Writer, text: str, name: str, problem: str, fix: str) -> None:
    write("own_f", text)
    with pytest.raises(ConfigError) as caught:
        open_own_metric(name)
    assert problem in caught.value.message and fix in caught.value.fix
