"""What an export leaves behind: what it is, and how it answered beside the tested model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from luthier.core.types import Estimate

ExportKind = Literal["adapter", "merged", "gguf", "ollama", "hub-folder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferentAnswer:
    """A locked item that tested model and artefact answer differently, both computed in fp32. Texts are untrusted.

    `gap`: how many logits below the tested model's best token the artefact's answer ever goes.
    """

    item_id: str
    tested: str
    artefact: str
    gap: float
    is_tie: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondReading:
    """The same file and the same items in llama.cpp, which computes in number formats of its own. Held against the tested model too."""

    program: str
    num_exact: int
    num_ties: int
    num_tokens: int
    mean_kl: float
    max_kl: float
    max_logit_difference: float
    tolerance: Mapping[str, float]
    tolerance_words: str
    artefact: Estimate
    difference: Estimate  # artefact minus tested, paired
    checks: Mapping[str, bool]
    different: tuple[DifferentAnswer, ...]  # the first few
    failures: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """An exported artefact, read back from disk, against the tested model on the same locked items. It ships without `failures` only."""

    n: int  # items answered by both
    num_locked: int  # items there are
    num_exact: int
    num_ties: int  # different, but explained by rounding
    num_tokens: int  # of reference answers, on which the distributions were compared
    mean_kl: float  # nats a token, tested against artefact
    max_kl: float
    max_logit_difference: float
    tolerance: Mapping[str, float]
    tolerance_words: str
    metric: str
    tested: Estimate  # computed in fp32, like the artefact
    artefact: Estimate
    difference: Estimate  # artefact minus tested, paired
    recorded: Estimate  # the tested model's answers in the record of the run, on the same items
    num_as_recorded: int | None  # of the tested model's answers in fp32; None: the record has none
    checks: Mapping[str, bool]  # what must be equal: special tokens, end of turn, template, tokens
    different: tuple[DifferentAnswer, ...]  # the first few
    failures: tuple[str, ...]  # of both readings
    llama_cpp: SecondReading | None = None  # None: no GGUF file, or no llama.cpp here

    @property
    def exact_agreement(self) -> float:
        """Share of items with the very same answer."""
        return self.num_exact / self.n


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRecord:
    """One export of a run and what its gate found. `storage`: "adapter", "bfloat16", "Q8_0", ... Holds no path of this machine."""

    kind: ExportKind
    storage: str
    created: str
    luthier_version: str
    loader: str
    files: Mapping[str, int]  # name -> bytes
    seconds: float
    parity: Parity
    notes: tuple[str, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict[str, str])  # of the files, once they are handed over
    earlier_sha256: tuple[str, ...] = ()  # of files of the same kind and storage that were handed over before
