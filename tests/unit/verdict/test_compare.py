from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.verdict.made_arms import METRIC, arm, contest, paired

from luthier.core.errors import RunError
from luthier.stats.intervals import mcnemar_midp, tango
from luthier.verdict.compare import compare_arms, latency_ratio, with_holm
from luthier.verdict.seeds import recipe_difference, same_recipe


def test_right_or_wrong_items_are_compared_by_tango_and_mcnemar() -> None:
    prompt, tuned = contest(300, 200, 40, 10)
    found = compare_arms(tuned, prompt, METRIC, seed=0)
    assert (found.a, found.b, found.n, found.num_clusters, found.metric) == ("tuned", "few-shot", 300, 300, METRIC)
    assert found.difference == pytest.approx(0.1)
    assert (found.low95, found.high95) == tango(40, 10, 300, 0.95)
    assert (found.low90, found.high90) == tango(40, 10, 300, 0.90)
    assert found.p_value == mcnemar_midp(40, 10)
    assert found.discordance == pytest.approx(50 / 300)
    assert found.method == "Tango score interval, McNemar mid-p"


def test_items_are_paired_by_id_not_by_position() -> None:
    prompt, tuned = contest(300, 200, 40, 10)
    shuffled = replace(prompt, items=tuple(reversed(prompt.items)))
    assert compare_arms(tuned, shuffled, METRIC, seed=0) == compare_arms(tuned, prompt, METRIC, seed=0)


def test_items_not_scored_in_both_are_left_out_and_counted() -> None:
    prompt, tuned = contest(300, 200, 40, 10)
    unscored = tuple(replace(item, values={METRIC: None}) for item in tuned.items[:7])
    found = compare_arms(replace(tuned, items=(*unscored, *tuned.items[7:])), replace(prompt, items=prompt.items[:-3]), METRIC, seed=0)
    assert found.n == 290
    assert "10 items left out" in found.method
    mirrored = compare_arms(prompt, replace(tuned, items=(*unscored, *tuned.items[7:])), METRIC, seed=0)
    assert (mirrored.n, mirrored.difference) == (293, pytest.approx(-30 / 293))


def test_clustered_items_use_the_bootstrap_over_clusters() -> None:
    names = [f"c{i // 3}" for i in range(300)]
    prompt, tuned = contest(300, 100, 90, 60, clusters=names)
    found = compare_arms(tuned, prompt, METRIC, seed=0)
    assert found.num_clusters == 100
    assert "cluster bootstrap BCa" in found.method
    assert found.discordance == 0.5
    alone = compare_arms(*reversed(contest(300, 100, 90, 60)), METRIC, seed=0)
    # In `paired` equal items stand together, so clusters are nearly copies: about sqrt(3) times as wide.
    assert found.high95 - found.low95 > 1.5 * (alone.high95 - alone.low95)
    assert found == compare_arms(tuned, prompt, METRIC, seed=0)


def test_one_pair_of_near_duplicates_is_enough_to_be_clustered() -> None:
    names = ["same", "same", *(f"i{i}" for i in range(298))]
    prompt, tuned = contest(300, 200, 40, 10, clusters=names)
    assert "Tango score interval" not in compare_arms(tuned, prompt, METRIC, seed=0).method


def test_graded_scores_use_the_bootstrap() -> None:
    a = arm("a", [0.5 + 0.001 * i for i in range(60)], family="tuned")
    b = arm("b", [0.4 + 0.002 * (i % 7) for i in range(60)], family="prompt")
    found = compare_arms(a, b, METRIC, seed=0)
    assert found.method == "paired cluster bootstrap BCa, sign-flip permutation"
    assert found.discordance is None
    assert 0 < found.low95 < found.low90 < found.difference < found.high90 < found.high95


def test_damaged_records_are_refused() -> None:
    prompt, tuned = contest(40, 20, 5, 5)
    with pytest.raises(RunError, match="twice"):
        compare_arms(replace(tuned, items=(*tuned.items, tuned.items[0])), prompt, METRIC, seed=0)
    moved = replace(tuned, items=(replace(tuned.items[0], cluster="elsewhere"), *tuned.items[1:]))
    with pytest.raises(RunError, match="elsewhere"):
        compare_arms(moved, prompt, METRIC, seed=0)
    with pytest.raises(RunError, match="no item"):
        compare_arms(tuned, prompt, "unknown", seed=0)


def test_holm_over_the_comparisons() -> None:
    prompt, tuned = contest(300, 200, 40, 10)
    one = compare_arms(tuned, prompt, METRIC, seed=0)
    first, second = with_holm([replace(one, p_value=0.01), replace(one, p_value=0.04)])
    assert (first.p_holm, second.p_holm) == (0.02, 0.04)


def test_latency_ratio_is_paired_and_has_an_interval() -> None:
    slow = arm("p", [], family="prompt", waits=[1.0 + 0.1 * i for i in range(20)])
    fast = arm("t", [], family="tuned", waits=[0.5 * (1.0 + 0.1 * i) for i in range(20)])
    found = latency_ratio(fast, slow)
    assert (found.low, found.value, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert latency_ratio(replace(fast, latencies_s=(1.0,)), slow).value is None


def test_seed_noise_widens_the_claim_about_the_recipe() -> None:
    runs = [compare_arms(*reversed(contest(300, 200, b, 10)), METRIC, seed=0) for b in (20, 40, 60)]
    found = recipe_difference(runs)
    assert found.difference == pytest.approx(0.1)
    assert found.seed_sd == pytest.approx(20 / 300)
    # s / sqrt(3) = 3.8 points exceeds the items' 2.2, so t with 2 df: the recipe is not shown better though the mean checkpoint is.
    assert found.low95 < 0 < runs[1].low95
    quiet = recipe_difference([runs[1], runs[1], runs[1]])
    assert (quiet.low95, quiet.high95) == pytest.approx(
        (0.1 - (runs[1].high95 - runs[1].low95) / 2, 0.1 + (runs[1].high95 - runs[1].low95) / 2)
    )


def test_same_recipe_is_same_settings_and_another_seed() -> None:
    t, _ = paired(40, 20, 5, 5)
    first, second, other = (
        arm("tuned", t, family="tuned", seed=0),
        arm("tuned, seed 1", t, family="tuned", seed=1),
        arm("tuned", t, family="tuned", seed=1, params={"k": "4"}),
    )
    assert same_recipe(first, [first, second, other]) == (second,)
