"""What other programs offer and this one does not: refused by name and with the reason, not as a typing mistake.

The numbers behind the reasons are in docs/log.md, the list for people in docs/methods-training.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# (setting below `train`, as a pattern; its value, as a pattern; why not; what to do instead)
_ABSENT = (
    (
        r"method",
        r"qlora",
        "4-bit weights (QLoRA) are for NVIDIA GPUs, where this version was not measured yet; on a CPU they are no faster and 9 % off",
        "--set train.method=lora",
    ),
    (
        r"load_in_[48]bit",
        r"true",
        "4-bit and 8-bit weights are for NVIDIA GPUs, where this version was not measured yet; on a CPU they are no faster",
        "--set train.method=lora",
    ),
    (
        r"optimiser|optimizer|optim",
        r"\w*8_?bit",
        "8-bit moments are for NVIDIA GPUs, where nothing was measured yet; on a CPU unpacking takes 40 times as long and saves nothing",
        "--set train.optimiser=adafactor",
    ),
    (
        r"(offload_activations|activation_offload\w*)",
        r"true",
        "on a CPU activations are in its memory already: there is nowhere to offload them to; for GPUs it is not built in",
        "--set train.checkpoint_activations=true",
    ),
    (
        r"label_smoothing\w*",
        r".*",
        "label smoothing teaches a distribution nobody measured, and is left out on purpose",
        "leave train.label_smoothing out",
    ),
)


def refuse_absent(train: Mapping[str, object]) -> None:
    """Raise ValueError ("reason | remedy") for the first of them among the settings of `train`."""
    for key, value in train.items():
        for name, values, reason, fix in _ABSENT:
            if re.fullmatch(name, str(key)) and re.fullmatch(values, str(value).lower()):
                raise ValueError(f"no train.{key}={value}: {reason} | {fix}"[:400])
