"""A table of token prices: which of them holds, what is wrong with a table, and when that is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures.hostile import HOSTILE

from luthier.core.errors import ConfigError
from luthier.pipeline.prices import FIELDS, read_prices, token_prices
from luthier.pipeline.settings import Settings, load_settings

TABLE = """\
# what we pay, by contract
gpt-4o-mini: {input: 0.15, output: 0.60, cached_input: 0.075}
claude-haiku-4.5:
  input: 1
  output: 5
"meta-llama/Llama-3.3-70B:free": {input: 0, output: 0}
"""


def _settings(path: Path | None, model: str | None = "gpt-4o-mini", **more: object) -> Settings:
    where = {"endpoint.url": "https://example.invalid/v1", "endpoint.model": model} if model else {}
    return load_settings(None, {**where, **({"decide.prices": str(path)} if path else {}), **more})


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "prices.yaml"
    path.write_text(TABLE, encoding="utf-8")
    return path


def test_the_prices_of_the_endpoints_model_hold(table: Path) -> None:
    found = token_prices(_settings(table))
    assert (found.input, found.output, found.cached_input, found.origin) == (0.15, 0.6, 0.075, "prices.yaml, command line")
    found = token_prices(_settings(table, "claude-haiku-4.5"))
    assert (found.input, found.output, found.cached_input) == (1.0, 5.0, None)
    found = token_prices(_settings(table, "meta-llama/Llama-3.3-70B:free"))
    assert (found.input, found.output) == (0.0, 0.0)  # free is a price


def test_flags_without_a_table_hold_and_nothing_is_made_up(table: Path) -> None:
    found = token_prices(_settings(None, **{"decide.usd_per_m_input": 2.0, "decide.usd_per_m_output": 8.0}))
    assert (found.input, found.output, found.cached_input, found.origin) == (2.0, 8.0, None, "command line")
    for one in (_settings(None), _settings(table, None)):  # without an endpoint there is nothing that has a price
        assert (token_prices(one).input, token_prices(one).output) == (None, None)


def test_a_model_that_is_not_in_it_is_refused_with_the_nearest_name(table: Path) -> None:
    with pytest.raises(ConfigError, match=r"no prices of 'gpt-4o-mni'; the nearest name in it is 'gpt-4o-mini'"):
        token_prices(_settings(table, "gpt-4o-mni"))
    with pytest.raises(ConfigError, match="the nearest name"):
        token_prices(_settings(table, "GPT-4O-MINI"))  # another name is another model


@pytest.mark.parametrize("name", FIELDS)
def test_one_price_from_two_places_is_refused(table: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"a table of prices and decide.usd_per_m_{name}"):
        token_prices(_settings(table, **{f"decide.usd_per_m_{name}": 0.0}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the table is empty"),
        ("- a", "a list or a single value"),
        ("m: 3", "prices.yaml:1: m: found 3, expected the prices by name"),
        ("\nm: {input: 1}", "prices.yaml:2: m: found no output price"),
        ("m: {output: 1}", "found no input price"),
        ("m: {input: 1, output: 1, cachd_input: 1}", "found 'cachd_input', which is no price"),
        ("m: {input: -1, output: 1}", "m.input: found -1"),
        ("m: {input: .nan, output: 1}", "m.input: found"),
        ("m: {input: 1e999, output: 1}", "m.input: found"),
        ("m: {input: true, output: 1}", "m.input: found True"),
        ("m: {input: '1', output: 1}", "m.input: found '1'"),
        ("m: {input: null, output: 1}", "m.input: found None"),
        ("m: {input: 1, output: 1}\nm: {input: 2, output: 1}", "the key a second time"),
        ("m: !!python/object:os.system {input: 1}", "the tag"),
        ("a: &x {input: 1, output: 1}\nb: *x", "an anchor or alias"),
        ("m: {input: 1, output: 1", "not YAML"),
    ],
)  # fmt: skip
def test_a_wrong_table_says_where_and_what(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        token_prices(_settings(path, "m"))
    assert message in str(caught.value) and caught.value.fix, str(caught.value)


def test_a_table_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prices(tmp_path / "nowhere.yaml")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_prices(tmp_path / "x.yaml")


def test_a_run_finds_its_table_from_any_folder(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(table.parent)
    text = _settings(Path("prices.yaml")).to_yaml()
    assert f"prices: {table.resolve()}\n" in text


@settings(derandomize=True, max_examples=200, deadline=None)
@given(text=st.text(max_size=80) | st.sampled_from(HOSTILE) | st.sampled_from(HOSTILE).map(lambda text: f"m: {{{text}: 1}}"))
def test_whatever_is_in_the_file_is_a_table_or_a_known_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any-prices.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        found = read_prices(path)
    except ConfigError:
        return
    assert found and all(value >= 0 for row in found.values() for value in row.values())
