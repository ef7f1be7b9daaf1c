"""Which methods the installed PEFT has, and the little that ftrt must know of some of them.

The methods, their options and their papers are read from PEFT, so one that a later PEFT adds is
there by itself. The tables below hold what PEFT does not say in a form that can be read.
"""

__all__ = ["FACTS", "PREFIX", "Facts", "peft_configs", "source_of", "summary_of"]

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

PREFIX = "peft:"
ALL_LINEAR = "all-linear"
LINK = re.compile(
    r"https?://(?:huggingface\.co/papers|arxiv\.org/(?:abs|pdf))/(?P<arxiv>\d{4}\.\d{4,5})"
    r"|https?://openreview\.net/(?:forum|pdf)\?id=(?P<review>\w+)"
    r"|https?://doi\.org/(?P<doi>[\w./-]*\w)"
)


@dataclass(frozen=True)
class Facts:
    """What ftrt must know of one PEFT method.

    Attributes:
        arxiv: number of the paper, where PEFT's own pages name none or another first.
        targets: `targets` by default; None leaves the choice to PEFT.
        hidden: fields that are no options, because ftrt drives what they set.
        required: fields that PEFT has no usable default for.
        unknown_yet: stand-ins for what only the run knows.
        refusal: why no recipe can use it yet, and what can be used in its place.
        why: capability -> why the method lacks it, where what PEFT raises does not say.
    """

    arxiv: str | None = None
    targets: str | list[str] | None = ALL_LINEAR
    hidden: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    unknown_yet: Mapping[str, Any] = field(default_factory=dict)
    refusal: str = ""
    why: Mapping[str, str] = field(default_factory=dict)


PROMPT = frozenset({"num_virtual_tokens"})
IN_FRONT = {
    "identity": "the prompt stands before the tokens from the start",
    "merge": "no weight does what a prompt does",
}
IN_CACHE = {
    **IN_FRONT,
    "checkpointing": "its keys and values are put in the cache, which recomputation does without",
}
TOKENIZER = {"tokenizer_name_or_path": "the base's"}

FACTS: Mapping[str, Facts] = {
    "adalora": Facts(
        arxiv="2303.10512",
        hidden=frozenset({"r", "rank_pattern", "use_dora", "loftq_config"}),
        unknown_yet={"total_step": 10**9},
    ),
    "adaption_prompt": Facts(
        targets=None,
        required=frozenset({"adapter_len", "adapter_layers"}),
        why={
            "int8": "it reads a dtype from the parameters of projections, and int8 layers have none"
        },
    ),
    "cartridge": Facts(arxiv="2506.06266", required=PROMPT, why=IN_CACHE),
    "cpt": Facts(
        required=frozenset({"cpt_token_ids"}),
        unknown_yet={"task_type": "CAUSAL_LM", **TOKENIZER},
        refusal="it reads a mask of token kinds with each batch, which no head gives; use"
        " peft:prompt_tuning",
    ),
    "glora": Facts(
        arxiv="2306.07967", why={"int8": "PEFT's GLoRA takes nn.Linear itself and no other class"}
    ),
    "gralora": Facts(arxiv="2505.20355"),
    "c3a": Facts(why={"identity": "its kernels start at random unless init_weights is true"}),
    "fourierft": Facts(
        why={"identity": "its spectrum starts at random unless init_weights is true"}
    ),
    "ia3": Facts(targets=None),
    "lily": Facts(why={"merge": "which experts answer depends on the input"}),
    "vblora": Facts(why={"identity": "its vector bank and logits start at random"}),
    "ln_tuning": Facts(targets=r".*[Nn]orm[^.]*"),
    "lokr": Facts(arxiv="2309.14859"),
    "multitask_prompt_tuning": Facts(
        required=PROMPT,
        unknown_yet=TOKENIZER,
        refusal="it reads task_ids with each batch, which no head gives; use peft:prompt_tuning",
    ),
    "osf": Facts(arxiv="2504.07097"),
    "p_tuning": Facts(arxiv="2103.10385", required=PROMPT, why=IN_FRONT),
    "poly": Facts(
        arxiv="2202.13914",
        refusal="it reads task_ids with each batch, which no head gives; use lora",
    ),
    "prefix_tuning": Facts(arxiv="2101.00190", required=PROMPT, why=IN_CACHE),
    "prompt_tuning": Facts(
        arxiv="2104.08691", required=PROMPT, unknown_yet=TOKENIZER, why=IN_FRONT
    ),
    "shadow": Facts(targets=None),
    "shira": Facts(arxiv="2406.13175"),
    "trainable_tokens": Facts(targets=None, required=frozenset({"token_indices"})),
    "waveft": Facts(arxiv="2505.12532"),
    "xlora": Facts(
        targets=None,
        required=frozenset({"adapters"}),
        refusal="what PEFT saves of it gives other outputs when it is read back; use lora",
    ),
}


def peft_configs() -> dict[str, type[PeftConfig]]:
    """name -> config of every method that PEFT itself has, by PEFT's names in lower case."""
    return {
        kind.value.lower(): config
        for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        # plugins register their own under other keys
        if isinstance(kind, PeftType)
    }


def source_of(name: str, config: type[PeftConfig]) -> str:
    """Where the method was published: the first paper that PEFT's files of it name."""
    arxiv = FACTS.get(name, Facts()).arxiv
    if arxiv:
        return f"https://arxiv.org/abs/{arxiv}"
    folder = Path(inspect.getfile(config)).parent
    for file in ("model.py", "config.py", "layer.py"):
        if (folder / file).is_file():
            found = LINK.search((folder / file).read_text(encoding="utf-8"))
            if found and found["arxiv"]:
                return f"https://arxiv.org/abs/{found['arxiv']}"
            if found and found["review"]:
                return f"https://openreview.net/forum?id={found['review']}"
            if found:
                return f"https://doi.org/{found['doi']}"
    return f"https://huggingface.co/docs/peft/package_reference/{folder.name}"


def summary_of(name: str) -> str:
    """What PEFT says the method is, in a sentence."""
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[PeftType(name.upper())]
    text = " ".join((tuner.__doc__ or "").partition("\n\n")[0].split())
    first = re.split(r"(?<=[.!])\s|\sPaper:|\sThe method is|\shttps?:", text)[0]
    return first.removesuffix(".") + "." if first else f"PEFT's {name}."
