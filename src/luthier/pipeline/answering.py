"""What answers for the arms of a run: Luthier's own engine, or vLLM where `arms.vllm` says so. Opened for a while, then given back."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from luthier.core.types import ArmResult
from luthier.evaluate.run import ANSWERED_BY, HereModel
from luthier.generate.vllm_model import VllmModel
from luthier.kernels.device import free_cached_memory
from luthier.pipeline.in_vllm import find_in_vllm
from luthier.pipeline.open import open_local, open_tuned, tuned_folder
from luthier.pipeline.prepare import Prepared
from luthier.pipeline.settings import Settings
from luthier.store.layout import RunFolder
from luthier.train.precision import Precision


@contextmanager
def open_both(settings: Settings, folder: RunFolder, prepared: Prepared) -> Generator[tuple[HereModel, HereModel]]:
    """The base model and the tuned one. Raises as `open_tuned` and `InVllm.open_models`."""
    if settings.arms.vllm:
        with _in_vllm(settings, prepared.model_path, prepared.precision, tuned_folder(folder)) as both:
            yield both
    else:
        yield open_local(prepared.model_path, prepared.precision), open_tuned(folder, prepared.model_path, prepared.precision)


@contextmanager
def open_trained(settings: Settings, folder: RunFolder, prepared: Prepared) -> Generator[HereModel]:
    """The tuned model alone, as `open_both`."""
    if settings.arms.vllm:
        with _in_vllm(settings, prepared.model_path, prepared.precision, tuned_folder(folder)) as (_, tuned):
            yield tuned
    else:
        yield open_tuned(folder, prepared.model_path, prepared.precision)


@contextmanager
def open_untrained(settings: Settings, model_path: Path, precision: Precision) -> Generator[HereModel]:
    """A model as it is, as `open_both`."""
    if settings.arms.vllm:
        with _in_vllm(settings, model_path, precision, None) as (base, _):
            yield base
    else:
        yield open_local(model_path, precision)


@contextmanager
def _in_vllm(settings: Settings, model_path: Path, precision: Precision, adapter: Path | None) -> Generator[tuple[VllmModel, VllmModel]]:
    gc.collect()  # what a training left in circles holds the device's memory, which vLLM sets aside for itself when it is opened
    free_cached_memory()
    with ExitStack() as until:
        found = find_in_vllm(until, memory=settings.arms.vllm_memory)
        yield found.open_models(model_path, precision, adapter=adapter, max_active=settings.arms.batch)


def engine_notes(settings: Settings, arms: tuple[ArmResult, ...]) -> tuple[str, ...]:
    """Which program answered for what, where it is not Luthier's own engine alone."""
    if not settings.arms.vllm:
        return ()
    programs = sorted({arm.params[ANSWERED_BY] for arm in arms if arm.params.get(ANSWERED_BY, "").startswith("vLLM ")})
    return (
        f"All arms with local models, prompted and tuned alike, were answered by {', '.join(programs) or 'vLLM'}: answers, waiting times, "
        "and what was asked again. By Luthier's own engine, in the same number format: the probes, how likely general text is, a local "
        "judge and a local paraphraser. Serve the model as it was measured: luthier serve RUN --vllm.",
    )
