from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core.errors import ConfigError
from luthier.pipeline.origin import MAX_YAML_BYTES, read_value, read_yaml
from luthier.pipeline.refusal import nearest
from luthier.pipeline.settings import BENIGN, Settings, all_keys, json_schema, load_settings, origins, parse_set
from luthier.pipeline.template import settings_template
from luthier.store.layout import RunSettings

KEYS = sorted(all_keys())


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "luthier.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(load: Callable[[], object]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load()
    return caught.value


def test_defaults_are_valid_and_frozen() -> None:
    loaded = load_settings(None, {})
    assert loaded.model_dump() == Settings.model_validate({}).model_dump()
    with pytest.raises(ValueError, match="frozen"):
        loaded.train.batch = 3  # type: ignore[misc]
    _: RunSettings = loaded


def test_flags_before_set_before_yaml_before_default(tmp_path: Path) -> None:
    path = write(tmp_path, "train:\n  batch: 2\n  lora_r: 2\n  epochs: 2\n")
    loaded = load_settings(path, {"train.batch": 4}, set_items=["train.batch=3", "train.lora_r=3"])
    assert (loaded.train.batch, loaded.train.lora_r, loaded.train.epochs, loaded.train.patience) == (4, 3, 2.0, 3)
    found = origins(loaded)
    assert found["train.batch"] == ("4", "command line")
    assert found["train.lora_r"] == ("3", "command line")
    assert found["train.epochs"] == ("2", "luthier.yaml:4")
    assert found["train.patience"] == ("3", "default")
    assert set(found) == set(KEYS)


def test_every_setting_says_what_it_is() -> None:
    for key, info in all_keys().items():
        assert info.description and len(info.description) > 10, key


def slips(key: str) -> list[str]:
    """A letter lost, doubled, swapped with the next, a dash for an underline."""
    group, dot, name = key.rpartition(".")
    middle = len(name) // 2
    out = [name + name[-1], name[:middle] + name[middle] + name[middle:], name.replace("_", "-")]
    if len(name) > 3:
        out += [name[:middle] + name[middle + 1 :], name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :]]
    return [f"{group}{dot}{slip}" for slip in out if slip != name]


@pytest.mark.parametrize("key", KEYS)
def test_unknown_key_is_refused_with_the_nearest_name(key: str) -> None:
    for slip in slips(key):
        if slip in KEYS:
            continue
        error = refused(lambda slip=slip: load_settings(None, {slip: 1}))
        assert slip in error.where and f"did you mean {key}?" in error.message and key in error.fix, slip


def test_a_known_name_in_the_wrong_group_is_found() -> None:
    assert nearest("lora_r", KEYS) == "train.lora_r"
    assert nearest("train.max_length", KEYS) == "model.max_length"
    assert nearest("trian.batch", KEYS) == "train.batch"


def test_unknown_group(tmp_path: Path) -> None:
    error = refused(lambda: load_settings(write(tmp_path, "modle:\n  name: x\n"), {}))
    assert error.where == "modle (luthier.yaml:1)" and "did you mean model?" in error.message


def test_all_errors_at_once_with_key_place_found_expected_and_remedy(tmp_path: Path) -> None:
    text = "train:\n  batch: eight\n  schedule: linaer\n  lora_r: 0\ndecide: 4\ndata:\n  train_row: 5\n"
    error = refused(lambda: load_settings(write(tmp_path, text), {"seed": -1}, set_items=["nonsense", "train.lorar=3"]))
    message = error.message
    assert message.startswith("8 settings cannot be used")
    for part in (
        'train.batch (luthier.yaml:2): found "eight", expected a whole number\n     fix: leave train.batch out to get the default (16)',
        "train.schedule (luthier.yaml:3): found \"linaer\", expected 'linear', 'cosine', 'constant' or 'wsd'",
        "fix: set train.schedule to linear",
        "train.lora_r (luthier.yaml:4): found 0, expected 1 or more\n     fix: set train.lora_r to 1 or more",
        "decide (luthier.yaml:5): found 4, expected a group of settings (metric, margin,",
        "data.train_row (luthier.yaml:7): found a key that does not exist, expected a setting; did you mean data.train_rows?",
        "seed (command line): found -1, expected 0 or more",
        "--set: found 'nonsense', expected key=value",
        "--set: found the unknown key 'train.lorar', expected key=value\n     fix: --set train.lora_r=3",
    ):
        assert part in message


BAD_VALUES = {
    "train.lr": [0, -1, 2, True, "fast", float("nan"), float("inf")],
    "train.batch": [0, 1.5, True, None, "8", [8]],
    "train.epochs": [0, -1, 1e9],
    "train.lr_candidates": [[], [0], ["x"], 3],
    "arms.shots": [[], [0], [2.5]],
    "train.micro_batch": [17],
    "train.method": ["qlora", "ptuning"],
    "train.optimiser": ["sgd"],
    "data.paths": [[3], {"a": 1}],
    "data.format": ["excel"],
    "decide.margin": [0, 100, -5],
    "model.name": ["", 3],
    "threads": [0],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD_VALUES.items() for value in values])
def test_unfit_values_are_refused_by_name(key: str, value: object) -> None:
    error = refused(lambda: load_settings(None, {key: value}))
    assert error.fix and "expected" in error.message
    assert key.partition(".")[0] in error.where


def test_one_value_is_a_list_of_one(tmp_path: Path) -> None:
    loaded = load_settings(write(tmp_path, "data:\n  paths: a.jsonl\narms:\n  shots: 4\n"), {})
    assert loaded.data.paths == ("a.jsonl",) and loaded.arms.shots == (4,)


def test_an_empty_group_or_file_is_fine(tmp_path: Path) -> None:
    for text in ("", "# nothing\n", "train:\n  # nothing\n", "---\n"):
        assert load_settings(write(tmp_path, text), {}).train.batch == 16


def test_run_dir_follows_the_first_file_so_that_the_same_command_finds_it() -> None:
    assert load_settings(None, {"data.paths": ["in/tickets.jsonl", "b.csv"]}).run_dir == "runs/tickets"
    assert load_settings(None, {"data.paths": ["a.csv"], "run_dir": "elsewhere"}).run_dir == "elsewhere"
    assert load_settings(None, {}).run_dir == "runs/luthier"


# ---------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("007", 7),
        ("no", "no"),
        ("on", "on"),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("0x10", "0x10"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("'5'", "5"),
        ("[1, 'a', null]", [1, "a", None]),
        (".nan", ".nan"),
        ("1e999", "1e999"),
        ("9" * 5000, "9" * 5000),
        ("Classify: this [or that]", "Classify: this [or that]"),
        ("[open", "[open"),
    ],
)
def test_scalars_are_read_as_yaml_1_2_does(text: str, value: object) -> None:
    found = read_value(text)
    assert found == value and type(found) is type(value)


LAUGHS = "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n"


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        (LAUGHS, "luthier.yaml:1", "anchor"),
        ("seed: !!python/object/apply:os.system [id]\n", "luthier.yaml:1", "tag"),
        ("seed: 1\nseed: 2\n", "luthier.yaml:2", "second time"),
        ("train:\n  lr: 1\n  lr: 2\n", "luthier.yaml:3", "second time"),
        ("seed: [1\n", "luthier.yaml:2", "not YAML"),
        ("seed: 1\n---\nseed: 2\n", "luthier.yaml:2", "second document"),
        ("- a\n- b\n", "luthier.yaml", "a list"),
        ("just text\n", "luthier.yaml", "single value"),
        ("? [a, b]\n: 1\n", "luthier.yaml:1", "a key that is"),
        ("seed: " + "[" * 100 + "]" * 100 + "\n", "luthier.yaml:1", "levels"),
        ("a: \x00\n", "luthier.yaml", "not YAML"),
        ("\ttrain: 1\n", "luthier.yaml:1", "not YAML"),
    ],
)
def test_yaml_that_is_not_settings(tmp_path: Path, text: str, where: str, found: str) -> None:
    error = refused(lambda: load_settings(write(tmp_path, text), {}))
    assert where in str(error) and found in str(error)


def test_yaml_file_errors(tmp_path: Path) -> None:
    assert "luthier init" in refused(lambda: load_settings(tmp_path / "none.yaml", {})).fix
    (tmp_path / "latin.yaml").write_bytes("seed: 1 # Grüße".encode("latin-1"))
    assert "not UTF-8" in refused(lambda: load_settings(tmp_path / "latin.yaml", {})).message
    (tmp_path / "big.yaml").write_bytes(b"# " + b"x" * MAX_YAML_BYTES + b"\n")
    assert "at most 262,144" in refused(lambda: load_settings(tmp_path / "big.yaml", {})).message
    assert refused(lambda: load_settings(tmp_path, {})).where == os.fspath(tmp_path)
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfseed: 5\r\n")
    assert load_settings(tmp_path / "bom.yaml", {}).seed == 5


def test_deep_nesting_is_refused_quickly(tmp_path: Path) -> None:
    start = time.monotonic()
    refused(lambda: load_settings(write(tmp_path, "a: " + "[" * 100_000), {}))
    assert time.monotonic() - start < 5


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("ab:-[]{}&*!|>'\"#,?%@ \n\t01.\\~")), max_size=60) | st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    tree = read_yaml(text, name="x")
    assert tree.problems or isinstance(tree.values, dict)
    read_value(text)


@settings(derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "data.instruction": st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30),
            "data.paths": st.lists(st.sampled_from(["a.jsonl", "no", "5", "null", "x: y", "- z"]), max_size=3),
            "train.lr": st.none() | st.floats(1e-9, 1.0),
            "decide.margin": st.floats(0.001, 99),
            "model.allow_truncation": st.booleans(),
            "seed": st.integers(0, 2**40),
        },
    )
)
def test_written_settings_read_back(tmp_path: Path, overrides: dict[str, object]) -> None:
    loaded = load_settings(None, overrides)
    path = tmp_path / "config.yaml"
    path.write_text(loaded.to_yaml(), encoding="utf-8")
    assert load_settings(path, {}).model_dump() == loaded.model_dump()


def test_set_takes_text_as_it_is_and_reads_the_rest() -> None:
    found = parse_set(
        [
            "data.instruction=a: [b",
            "data.input=5",
            "data.test=null",
            "train.lr=2e-4",
            "arms.shots=[1, 2]",
            "arms.skip=zero-shot",
            "train.epochs=null",
        ]
    )
    assert found == {
        "data.instruction": "a: [b", "data.input": "5", "data.test": None, "train.lr": 2e-4, "arms.shots": [1, 2], "arms.skip": "zero-shot",
        "train.epochs": None,
    }  # fmt: skip
    load_settings(None, found)


# ---------------------------------------------------------------- identity


def test_benign_settings_exist_and_are_no_part_of_the_identity() -> None:
    assert set(KEYS) >= BENIGN
    loaded = load_settings(None, {})
    assert not BENIGN & set(loaded.identity())
    assert set(loaded.identity()) | set(loaded.benign()) | {"fresh", "data.paths"} >= set(KEYS)


SEMANTIC = {
    "train.lora_r": 8,
    "train.lr": 1e-4,
    "seed": 1,
    "model.max_length": 512,
    "model.dtype": "float32",
    "model.name": "m",
    "train.batch": 8,
    "decide.metric": "exact",
}
HARMLESS = {
    "threads": 2,
    "train.save_every": 5,
    "train.micro_batch": 4,
    "run_dir": "x",
    "fresh": True,
    "decide.margin": 2.0,
    "decide.usd_per_m_input": 1.0,
    "decide.prices": "prices.yaml",
    "judge.model": "wise",
}


@pytest.mark.parametrize("key", SEMANTIC)
def test_semantic_changes_change_the_identity(key: str) -> None:
    assert load_settings(None, {key: SEMANTIC[key]}).identity() != load_settings(None, {}).identity()


@pytest.mark.parametrize("key", HARMLESS)
def test_harmless_changes_do_not(key: str) -> None:
    assert load_settings(None, {key: HARMLESS[key]}).identity() == load_settings(None, {}).identity()


def test_data_is_known_by_its_content_not_its_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"x": 1}\n', encoding="utf-8")
    (tmp_path / "b").write_text('{"x": 1}\n', encoding="utf-8")
    (tmp_path / "c").write_text('{"x": 2}\n', encoding="utf-8")
    a, b, c = (load_settings(None, {"data.paths": [str(tmp_path / name)]}).identity() for name in "abc")
    assert a == b != c
    assert load_settings(None, {"data.paths": [str(tmp_path / "a"), str(tmp_path / "c")]}).identity() != a


# ---------------------------------------------------------------- schema, template, documentation


def test_schema_is_draft_7_and_complete() -> None:
    schema = json_schema()
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert "$defs" not in str(schema) and schema["additionalProperties"] is False
    described = {
        f"{group}.{name}": info["description"]
        for group, ref in schema["properties"].items()
        if "$ref" in ref
        for name, info in schema["definitions"][ref["$ref"].removeprefix("#/definitions/")]["properties"].items()
    }
    assert set(described) == {key for key in KEYS if "." in key}


def test_template_begins_with_the_schema_and_means_the_defaults(tmp_path: Path) -> None:
    text = settings_template(["my data.jsonl"], schema="luthier.schema.json")
    assert text.startswith("# yaml-language-server: $schema=luthier.schema.json\n")
    loaded = load_settings(write(tmp_path, text), {})
    assert loaded.model_dump() == load_settings(None, {"data.paths": ["my data.jsonl"]}).model_dump()
    uncommented = "\n".join(
        line.replace("# ", "", 1)
        if line.strip().startswith("# ") and line.strip()[2:].partition(":")[0] in {k.rpartition(".")[2] for k in KEYS}
        else line
        for line in text.splitlines()
    )
    everything = load_settings(write(tmp_path, uncommented), {})
    assert everything.model_dump() == loaded.model_dump()
    assert {key for key, (_, origin) in origins(everything).items() if origin == "default"} == set()


def test_documentation_has_every_setting_with_its_default() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "configuration.md").read_text(encoding="utf-8")
    found = origins(load_settings(None, {}))
    rows = [f"| `{key}` | `{found[key][0]}` | {info.description} |" for key, info in all_keys().items() if key != "run_dir"]
    missing = [row for row in rows if row not in text]
    assert not missing, "write into docs/configuration.md:\n" + "\n".join(missing)
    documented = [line for line in text.splitlines() if line.startswith("| `") and line.count("|") == 4 and "." in line.split("`")[1]]
    assert len(documented) == sum("." in key for key in KEYS), "a setting is documented that does not exist"


def test_settings_do_not_import_torch() -> None:
    import subprocess

    code = "import luthier.pipeline.settings, luthier.pipeline.template, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_yaml_library_agrees_on_plain_files(tmp_path: Path) -> None:
    text = Settings.model_validate({}).to_yaml()
    assert read_yaml(text, name="x").values == yaml.safe_load(text)
