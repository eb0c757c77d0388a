from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from luthier.cli import options
from luthier.cli.main import build_app, main
from luthier.core.errors import InputError
from luthier.core.stop import Stopped
from luthier.pipeline.settings import Settings, all_keys

HEAVY = ("torch", "transformers", "peft", "pydantic", "scipy", "numpy", "yaml", "rich", "luthier.pipeline")
FROZEN = Path(__file__).with_name("options.txt")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def luthier(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command line in this process, in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["luthier", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        code = caught.value.code
        return (0 if code is None else int(code)), out, err

    return run


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Stand-ins for the pipeline: what each was called with."""
    calls: dict[str, list[Any]] = {}

    def stand_in(module: str, name: str) -> None:
        def function(*arguments: object, **named: object) -> dict[str, object]:
            calls.setdefault(name, []).append((arguments, named))
            return {"lines": [f"{name} done"], "json": {"what": name}}

        fake = types.ModuleType(module)
        setattr(fake, name, function)
        monkeypatch.setitem(sys.modules, module, fake)

    for module, name in (("run", "run"), ("check", "check"), ("train", "train"), ("decide", "redecide")):
        stand_in(f"luthier.pipeline.{module}", name)
    return calls


def commands() -> Iterator[tuple[str, Any]]:
    top = typer.main.get_command(build_app())
    for name, command in top.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        if inner:
            yield from ((f"{name} {sub}", found) for sub, found in inner.items())
        else:
            yield name, command


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, time\nstart = time.perf_counter()\nsys.argv = ['luthier', '--help']\n"
        "from luthier.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as error:\n    assert not error.code\n"
        "seconds = time.perf_counter() - start\n"
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules]\nassert not heavy, heavy\nprint('seconds', seconds, file=sys.stderr)\n"
    )
    walls: list[float] = []
    while len(walls) < 6 and (not walls or min(walls) > 0.5):  # other processes share this machine
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        walls.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert "Exit codes: 0 done" in done.stdout
    assert min(walls) <= 0.5, walls


def test_the_reference_line_parses(luthier: Run, pipeline: dict[str, list[Any]]) -> None:
    line = [
        "run", "../shared/data/banking77/train.csv", "--test", "../shared/data/banking77/test.csv",
        "--instruction", "Classify …", "--input", "text", "--output", "category",
        "--train-rows", "4000", "--test-rows", "300", "--seed", "0", "--run-dir", "DIR", "--json",
    ]  # fmt: skip
    code, out, _ = luthier(*line)
    assert code == 0 and json.loads(out.splitlines()[-1]) == {"what": "run"}
    [((settings, progress), _)] = pipeline["run"]
    assert isinstance(settings, Settings) and callable(progress)
    data = settings.data
    assert (data.paths, data.test) == (("../shared/data/banking77/train.csv",), "../shared/data/banking77/test.csv")
    assert (data.instruction, data.input, data.output, data.train_rows, data.test_rows) == ("Classify …", "text", "category", 4000, 300)
    assert (settings.seed, settings.run_dir) == (0, "DIR")
    assert settings.origin_of("seed") == "command line" and settings.origin_of("train.lr") == "default"


def test_the_training_line_parses(luthier: Run, pipeline: dict[str, list[Any]]) -> None:
    line = "train F --model DIR --rows 96 --batch 8 --epochs 1 --lora-r 16 --lr 2e-4 --max-length 512 --allow-truncation --save-every 50"
    code, out, _ = luthier(*line.split(), "--seed", "0", "--run-dir", "RUN", "--json")
    assert code == 0 and json.loads(out) == {"what": "train"}
    [((settings, _), _)] = pipeline["train"]
    train, model = settings.train, settings.model
    assert (train.batch, train.epochs, train.lora_r, train.lr, train.save_every) == (8, 1.0, 16, 2e-4, 50)
    assert (model.name, model.max_length, model.allow_truncation) == ("DIR", 512, True)
    assert (settings.data.train_rows, settings.run_dir) == (96, "RUN")


def test_both_spellings_and_equals_signs(luthier: Run, pipeline: dict[str, list[Any]]) -> None:
    for flag in (["--test-rows", "7"], ["--test_rows", "7"], ["--test_rows=7"], ["--set", "data.test_rows=7"], ["--set=data.test_rows=7"]):
        assert luthier("run", "a_b.jsonl", *flag, "--instruction", "--keep_this_as_it_is")[0] == 0
    for (settings, _), _ in pipeline["run"]:
        assert settings.data.test_rows == 7
        assert settings.data.paths == ("a_b.jsonl",) and settings.data.instruction == "--keep_this_as_it_is"
    assert luthier("models", "list", "--he_lp")[0] == 2


def test_flags_go_before_set_before_file(luthier: Run, pipeline: dict[str, list[Any]]) -> None:
    Path("my.yaml").write_text("train: {batch: 2, lora_r: 2, lora_alpha: 2}\n", encoding="utf-8")
    assert luthier("run", "f", "--config", "my.yaml", "--set", "train.batch=3", "--set", "train.lora_r=3", "--batch", "4")[0] == 0
    [((settings, _), _)] = pipeline["run"]
    assert (settings.train.batch, settings.train.lora_r, settings.train.lora_alpha) == (4, 3, 2)


def test_luthier_yaml_is_used_when_no_file_is_named(luthier: Run, pipeline: dict[str, list[Any]]) -> None:
    Path("luthier.yaml").write_text("data: {paths: from_yaml.jsonl}\n", encoding="utf-8")
    code, _, err = luthier("check")
    assert code == 0 and "settings from luthier.yaml" in err
    assert luthier("check", "named.jsonl")[0] == 0
    assert [settings.data.paths for (settings, _), _ in pipeline["check"]] == [("from_yaml.jsonl",), ("named.jsonl",)]


def test_several_files_and_repeated_flags(luthier: Run, pipeline: dict[str, list[Any]]) -> None:
    assert luthier("run", "a", "b", "--larger-model", "x", "--larger-model", "y", "--min-effect", "2")[0] == 0
    [((settings, _), _)] = pipeline["run"]
    assert settings.data.paths == ("a", "b") and settings.model.larger == ("x", "y") and settings.decide.margin == 2.0


def test_people_get_lines_and_programs_one_object(luthier: Run, pipeline: dict[str, list[Any]]) -> None:
    assert luthier("run", "f") == (0, "run done\n", "")
    assert luthier("run", "f", "--json") == (0, '{"what": "run"}\n', "")


def test_decide_takes_decision_settings_only(luthier: Run, pipeline: dict[str, list[Any]]) -> None:
    assert luthier("decide", "RUN", "--min-effect", "2", "--set", "decide.hosting=5")[0] == 0
    [((run_dir, overrides), _)] = pipeline["redecide"]
    assert run_dir == Path("RUN") and overrides == {"decide.margin": 2.0, "decide.hosting": 5}
    for key in ("train.lr=1", "decide.metric=exact"):
        code, _, err = luthier("decide", "RUN", "--set", key)
        assert code == 2 and key.partition("=")[0] in err
    assert len(pipeline["redecide"]) == 1


def test_report_takes_a_run(luthier: Run, pipeline: dict[str, list[Any]]) -> None:
    assert luthier("report", "RUN")[0] == 0
    assert pipeline["redecide"] == [((Path("RUN"), {}), {})]


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(settings: object, progress: object) -> None:
        secret_local = "do not show this"  # noqa: F841
        raise error

    fake = types.ModuleType("luthier.pipeline.run")
    fake.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "luthier.pipeline.run", fake)


def test_an_error_of_the_user_says_where_what_and_how(luthier: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, InputError("found \x1b[2J, expected text", where="a.jsonl:3", fix="delete line 3"))
    code, out, err = luthier("run", "f")
    assert (code, out) == (2, "") and err == "error: a.jsonl:3: found ⟨U+001B⟩[2J, expected text\n  fix: delete line 3\n"
    code, out, err = luthier("run", "f", "--json")
    assert code == 2 and json.loads(out)["error"] == {
        "where": "a.jsonl:3",
        "message": "found \x1b[2J, expected text",
        "fix": "delete line 3",
    }
    code, _, err = luthier("run", "f", "--debug")
    assert code == 2 and "Traceback" in err


def test_an_error_of_ours_is_one_line_and_debug_shows_no_locals(luthier: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, ZeroDivisionError("by zero\nsecond line"))
    code, out, err = luthier("run", "f")
    assert (
        (code, out) == (1, "")
        and err.count("\n") == 1
        and "--debug" in err
        and "ZeroDivisionError: by zero" in err
        and "Traceback" not in err
    )
    code, out, err = luthier("run", "f", "--debug", "--json")
    assert code == 1 and "Traceback" in err and "do not show this" not in err
    assert json.loads(out)["exit_code"] == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [(Stopped(signal.SIGINT), 130), (Stopped(signal.SIGTERM), 143), (KeyboardInterrupt(), 130)],
    ids=["INT", "TERM", "plain"],
)
def test_stopping_names_the_command_that_goes_on(luthier: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    raising(monkeypatch, error)
    found, _, err = luthier("run", "my file.jsonl", "--seed", "3")
    assert found == code and "luthier run 'my file.jsonl' --seed 3" in err


def test_wrong_settings_are_listed_together(luthier: Run, pipeline: dict[str, list[Any]]) -> None:
    code, _, err = luthier("run", "f", "--batch", "0", "--set", "train.lorar=3", "--set", "seed=-1")
    assert code == 2 and "3 settings cannot be used" in err and "train.lora_r" in err and not pipeline


@pytest.mark.parametrize("line", ["run f --tset x", "run f --batch eight", "decide", "models pull", "nonsense"])
def test_usage_errors_exit_with_2(luthier: Run, line: str) -> None:
    code, out, err = luthier(*line.split())
    assert (code, out) == (2, "") and err


def test_version(luthier: Run) -> None:
    code, out, _ = luthier("--version")
    assert code == 0 and out.startswith("luthier 0.")


def test_every_command_has_json_debug_help_and_exit_codes() -> None:
    names: list[str] = []
    for name, command in commands():
        names.append(name)
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert {"--json", "--debug"} <= flags, name
        assert command.help and command.epilog == options.EXIT_CODES, name
        assert command.help.isascii() and all(p.help.isascii() for p in command.params if getattr(p, "help", None)), name
    expected = {
        "run",
        "check",
        "train",
        "estimate",
        "decide",
        "report",
        "judge",
        "chat",
        "feedback",
        "serve",
        "export",
        "models list",
        "models pull",
        "init",
        "schema",
        "demo",
        "doctor",
    }
    assert set(names) == expected


def test_the_command_line_does_not_grow_by_accident() -> None:
    """A new flag is a promise: write it into options.txt on purpose."""
    found = [
        f"{name} {' '.join(parameter.opts) if parameter.opts[0].startswith('-') else parameter.name.upper()}"
        for name, command in commands()
        for parameter in command.params
        if parameter.name != "help"
    ]
    frozen = FROZEN.read_text(encoding="utf-8").splitlines()
    assert sorted(found) == frozen, "\n".join(sorted(found))


def test_every_flag_sets_a_setting_that_exists() -> None:
    for flag in (*options.DATA, *options.TRAIN, *options.MEASURE, *options.DECIDE):
        assert flag.key in all_keys(), flag
        assert flag.help.endswith(".")


def test_init_writes_a_file_that_is_understood(luthier: Run, pipeline: dict[str, list[Any]]) -> None:
    code, out, _ = luthier("init", "a.jsonl", "--json")
    assert code == 0 and json.loads(out) == {"config": "luthier.yaml", "schema": "luthier.schema.json"}
    assert Path("luthier.yaml").read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=luthier.schema.json\n")
    assert json.loads(Path("luthier.schema.json").read_text(encoding="utf-8"))["title"] == "luthier.yaml"
    assert luthier("check")[0] == 0
    [((settings, _), _)] = pipeline["check"]
    assert settings.data.paths == ("a.jsonl",)


def test_init_replaces_nothing_unasked(luthier: Run) -> None:
    Path("luthier.yaml").write_text("mine", encoding="utf-8")
    code, _, err = luthier("init")
    assert code == 2 and "already there" in err and Path("luthier.yaml").read_text(encoding="utf-8") == "mine"
    assert not Path("luthier.schema.json").exists()
    assert luthier("init", "--force")[0] == 0 and Path("luthier.yaml").read_text(encoding="utf-8") != "mine"


def test_schema_is_json(luthier: Run) -> None:
    assert json.loads(luthier("schema")[1]) == json.loads(luthier("schema", "--json")[1])


def test_doctor_and_models_list_need_no_model(luthier: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(Path("empty").absolute()))
    code, out, _ = luthier("doctor", "--json")
    found = json.loads(out)
    assert (
        code == 0
        and found["models"] == []
        and {"problem": "no model is here yet", "fix": "luthier models pull smollm2-135m"} in found["problems"]
    )
    code, out, _ = luthier("models", "list", "--json")
    assert code == 0 and not any(row["here"] for row in json.loads(out)["models"])


def test_demo_runs_the_example_data(luthier: Run, pipeline: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("luthier.models.pull")
    fake.pull = lambda name, progress: progress(f"{name} is here")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "luthier.models.pull", fake)
    code, out, err = luthier("demo", "--run-dir", "there")
    assert (code, out) == (0, "demo done\n".replace("demo", "run")) and "smollm2-135m is here" in err
    [((settings, _), _)] = pipeline["run"]
    assert settings.run_dir == "there" and Path(settings.data.paths[0]).is_file()


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("--max-new-tokens", "0"), "--max-new-tokens"),
        (("--temperature", "-1"), "--temperature"),
        (("--temperature", "nan"), "--temperature"),
        (("--top-p", "0", "--temperature", "1"), "--top-p"),
        (("--top-k", "3"), "--top-k"),
        (("--seed", "1"), "--seed"),
    ],
)
def test_chat_refuses_numbers_that_mean_nothing(luthier: Run, words: tuple[str, ...], where: str) -> None:
    code, out, err = luthier("chat", "RUN", "-p", "hi", "--json", *words)
    found = json.loads(out)["error"]
    assert code == 2 and found["where"] == where and found["fix"] and where in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "found none"),
        (("--list", "--out", "x"), "found --out and --list"),
        (("--out", "x", "--kind", "dpo"), "expected one of training, preference, kto"),
        (("--mark", "a-1", "great"), "expected good, bad or none"),
    ],
)
def test_feedback_says_what_it_expects(luthier: Run, words: tuple[str, ...], message: str) -> None:
    code, out, _ = luthier("feedback", "RUN", "--json", *words)
    assert code == 2 and message in json.loads(out)["error"]["message"]


def test_check_shows_the_token_view(luthier: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("luthier.pipeline.check")
    fake.check = lambda settings, progress: {"lines": ["ok"], "json": {"n": 1}, "pieces": ((("Hi ", False), ("yes", True)),)}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "luthier.pipeline.check", fake)
    assert luthier("check", "f")[1] == "ok\n\nHi [yes]\n"
    assert luthier("check", "f", "--json")[1] == '{"n": 1}\n'


def test_console_script_exists_and_answers() -> None:
    script = Path(sys.executable).with_name("luthier")
    done = subprocess.run(
        [script, "schema", "--json"], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONIOENCODING": "cp1252"}
    )
    assert json.loads(done.stdout)["title"] == "luthier.yaml"


def test_a_reader_that_leaves_is_not_an_error_of_ours() -> None:
    script = Path(sys.executable).with_name("luthier")
    done = subprocess.run(f"{script} schema | head -1", shell=True, capture_output=True, text=True, check=False)
    assert done.stdout == "{\n" and "Traceback" not in done.stderr
