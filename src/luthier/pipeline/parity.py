"""Stage: the parity gate. Tested model and artefact on the same locked items; see `luthier.export.gate` for what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from luthier.core.errors import LuthierError
from luthier.core.exports import DifferentAnswer, Parity, SecondReading
from luthier.core.types import Estimate, Generation, ItemScore
from luthier.evaluate.run import score_generations
from luthier.export.folders import open_tested
from luthier.export.gate import TOLERANCES, Found, Tolerance, in_llama, judge
from luthier.export.llama_parity import llama_checks, num_positions, write_in_llama
from luthier.export.loaders import Reloaded
from luthier.export.modelfile import expected_prompt, read_modelfile, run_template
from luthier.export.parity import Distances, ParityItem, Written, distances, explain, reader, write_answers
from luthier.generate.llama_file import find_llama_python, open_in_llama
from luthier.pipeline.artefact import Artefact
from luthier.pipeline.tested import Tested
from luthier.stats.intervals import mean_estimate, paired_difference
from luthier.tokens.template import ChatEncoder, open_chat

MAX_SHOWN = 20
Step = Callable[[str, float, float, str], None]
NOT_MEASURED = Estimate(value=None, low=None, high=None, n=0, method="not measured")


def measure_parity(tested: Tested, artefact: Artefact, reloaded: Reloaded, step: Step) -> Parity:
    """Everything the gate looks at, and its judgement. Raises ModelError where the artefact computes no numbers."""
    encoder = open_chat(reloaded.tokenizer)
    checks = _checks(tested, artefact, reloaded, encoder)
    tolerance = TOLERANCES[artefact.storage]
    model = open_tested(tested.path, tested.adapter)
    total = len(tested.items)
    apart = distances(reader(model), reader(reloaded.model), tested.items, _counter(step, "distributions on reference answers", total))
    written = write_answers(reloaded, encoder, tested.items, tested.conditions, _counter(step, "answers of the artefact", total))
    found = _compare(tested, model, apart, written, tolerance, checks)
    second = None if artefact.gguf is None else _in_llama(tested, model, artefact.gguf, tolerance, step)
    return Parity(
        n=total,
        num_locked=tested.num_locked,
        num_exact=found.num_exact,
        num_ties=found.num_ties,
        num_tokens=apart.num_tokens,
        mean_kl=apart.mean_kl,
        max_kl=apart.max_kl,
        max_logit_difference=apart.max_logit_difference,
        tolerance=tolerance.as_mapping(),
        tolerance_words=tolerance.words,
        metric=tested.record.metric,
        tested=found.tested,
        artefact=found.artefact,
        difference=found.difference,
        recorded=_recorded(tested),
        num_as_recorded=None
        if tested.recorded is None
        else sum(item.tested == text for item, text in zip(tested.items, tested.recorded, strict=True)),
        checks=checks,
        different=_worst_first(found.different)[:MAX_SHOWN],
        failures=(*found.failures, *(f"in llama.cpp: {failure}" for failure in (second.failures if second else ()))),
        llama_cpp=second,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compared:
    """One reading of the artefact against the tested model."""

    num_exact: int
    num_ties: int
    tested: Estimate
    artefact: Estimate
    difference: Estimate
    different: tuple[DifferentAnswer, ...]
    failures: tuple[str, ...]


def _compare(
    tested: Tested, model: nn.Module, apart: Distances, written: Sequence[Written], tolerance: Tolerance, checks: Mapping[str, bool]
) -> _Compared:
    different = tuple(
        explain(model, tested.encoder, item, answer, tested.conditions, tolerance.tie_gap)
        for item, answer in zip(tested.items, written, strict=True)
        if answer.text != item.tested
    )
    ours, theirs, difference = _scores(tested, written)
    num_ties = sum(one.is_tie for one in different)
    found = Found(
        mean_kl=apart.mean_kl,
        max_logit_difference=apart.max_logit_difference,
        num_different=len(different) - num_ties,
        difference=difference,
        margin=tested.settings.decide.margin / 100,
        checks=checks,
    )
    return _Compared(
        num_exact=len(written) - len(different),
        num_ties=num_ties,
        tested=ours,
        artefact=theirs,
        difference=difference,
        different=different,
        failures=judge(found, tolerance),
    )


def _in_llama(tested: Tested, model: nn.Module, gguf: Path, tolerance: Tolerance, step: Step) -> SecondReading | None:
    """The file once more, by llama.cpp where there is one. A file that it does not open, or that ends it, has failed."""
    python = find_llama_python()
    if python is None:
        return None
    tolerance = in_llama(tolerance)
    how, total = tested.conditions, len(tested.items)
    with closing(open_in_llama(python, gguf, num_positions=num_positions(tested.items, how, tested.encoder))) as llama:
        apart = distances(reader(model), llama.logits, tested.items, _counter(step, "distributions in llama.cpp", total))
        written = write_in_llama(llama, tested.encoder, tested.items, how, _counter(step, "answers of llama.cpp", total))
        checks = llama_checks(llama, tested.encoder, tested.items, written)
        program = llama.program
    found = _compare(tested, model, apart, written, tolerance, checks)
    return SecondReading(
        program=program,
        num_exact=found.num_exact,
        num_ties=found.num_ties,
        num_tokens=apart.num_tokens,
        mean_kl=apart.mean_kl,
        max_kl=apart.max_kl,
        max_logit_difference=apart.max_logit_difference,
        tolerance=tolerance.as_mapping(),
        tolerance_words=tolerance.words,
        artefact=found.artefact,
        difference=found.difference,
        checks=checks,
        different=_worst_first(found.different)[:MAX_SHOWN],
        failures=found.failures,
    )


def _worst_first(different: Sequence[DifferentAnswer]) -> tuple[DifferentAnswer, ...]:
    return tuple(sorted(different, key=lambda one: (one.is_tie, -one.gap)))


def _counter(step: Step, what: str, total: int) -> Callable[[], None]:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        step("parity", done, total, what)

    return count


def _checks(tested: Tested, artefact: Artefact, reloaded: Reloaded, encoder: ChatEncoder) -> dict[str, bool]:
    """What must be equal, whatever the weights."""
    ours, theirs = tested.encoder, encoder
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    same_pad = [getattr(ours.tokenizer, name) == getattr(theirs.tokenizer, name) for name in names]
    checks = {
        "special tokens": all(same_pad) and ours.bos_ids == theirs.bos_ids,
        "end of turn": ours.end_id == theirs.end_id and ours.eos_ids <= reloaded.stop_ids,
        "chat template": _same(ours, theirs, tested, lambda encoder, item: expected_prompt(encoder, item.messages, strip_bos=False)),
        "tokens": _same(ours, theirs, tested, lambda encoder, item: encoder.encode_prompt(item.messages))
        and all(
            tuple(theirs.encode_example(example).input_ids) == item.reference_ids
            for example, item in zip(tested.examples, tested.items, strict=True)
        ),
    }
    if artefact.kind == "ollama":
        checks["modelfile"] = _modelfile_holds(tested, artefact)
    return checks


def _same(ours: ChatEncoder, theirs: ChatEncoder, tested: Tested, take: Callable[[ChatEncoder, ParityItem], object]) -> bool:
    try:
        return all(take(ours, item) == take(theirs, item) for item in tested.items)
    except LuthierError:
        return False


def _modelfile_holds(tested: Tested, artefact: Artefact) -> bool:
    """Whether Ollama, reading the file, would send the items as the model's own template does, and stop where it should."""
    assert artefact.gguf is not None
    encoder = tested.encoder
    try:
        read = read_modelfile((artefact.folder / "Modelfile").read_text(encoding="utf-8"))
        prompts = all(
            run_template(read.template, item.messages) == expected_prompt(encoder, item.messages, strip_bos=artefact.adds_bos)
            for item in tested.items
        )
    except LuthierError:
        return False
    stops = {str(encoder.tokenizer.convert_ids_to_tokens(index)) for index in encoder.eos_ids}
    return prompts and read.source == f"./{artefact.gguf.name}" and read.system == tested.system and stops <= set(read.stops)


def _scores(tested: Tested, written: Sequence[Written]) -> tuple[Estimate, Estimate, Estimate]:
    """Tested, artefact, and artefact minus tested, by the run's metric and scorer."""
    metric, seed = tested.record.metric, tested.record.seed
    ours = _scored(tested, [item.tested for item in tested.items])
    theirs = _scored(tested, [answer.text for answer in written])
    pairs = [
        (b - a, one.cluster)
        for one, other in zip(ours, theirs, strict=True)
        if (a := one.values.get(metric)) is not None and (b := other.values.get(metric)) is not None
    ]
    if not pairs:
        return NOT_MEASURED, NOT_MEASURED, NOT_MEASURED
    values = [one.values.get(metric) for one in (*ours, *theirs)]
    is_binary = all(value in (None, 0.0, 1.0) for value in values)
    found = paired_difference([d for d, _ in pairs], [c for _, c in pairs], is_binary=is_binary, seed=seed)
    low, high = found.interval95
    difference = Estimate(value=found.difference, low=low, high=high, n=found.n, method=found.method)
    return _mean(ours, metric, seed), _mean(theirs, metric, seed), difference


def _recorded(tested: Tested) -> Estimate:
    if tested.recorded is None:
        return NOT_MEASURED
    return _mean(_scored(tested, tested.recorded), tested.record.metric, tested.record.seed)


def _scored(tested: Tested, texts: Sequence[str]) -> tuple[ItemScore, ...]:
    answers = [
        Generation(
            item_id=item.item_id,
            text=text,
            finish="stop",
            num_prompt_tokens=None,
            num_cached_tokens=None,
            num_new_tokens=None,
            latency_s=0.0,
        )
        for item, text in zip(tested.items, texts, strict=True)
    ]
    return score_generations(tested.examples, answers, tested.bench)


def _mean(scores: Sequence[ItemScore], metric: str, seed: int) -> Estimate:
    known = [(value, one.cluster) for one in scores if (value := one.values.get(metric)) is not None]
    return mean_estimate([value for value, _ in known], [cluster for _, cluster in known], seed=seed)
