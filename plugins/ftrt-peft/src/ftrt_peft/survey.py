"""Try every method of the installed PEFT and write down what works: `python -m ftrt_peft.survey`.

Without names all methods are tried. What is found goes to `tested.json` beside this file, which
the methods read what they support from, and to METHODS.md where `--table FILE` names it.
"""

__all__ = ["main", "survey", "table"]

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft

from ftrt.testing import try_method
from ftrt_peft.catalog import FACTS, PREFIX, Facts, peft_configs, source_of
from ftrt_peft.methods import NamedMethod, method_class
from ftrt_peft.prompts import SoftPrompt
from ftrt_peft.trial import KINDS, OPTIONS, tiny_model

RECORD = Path(__file__).with_name("tested.json")
# Without these a method is of no use on a kind of model.
ESSENTIAL = ("lowers_the_loss", "reloads_bit_equal")
# A new head lowers the loss alone, so a prompt must be seen to train: some models drop it.
OF_PROMPTS = ("trains_what_it_declares", *ESSENTIAL)
# capability -> the class attribute that denies it, and the claims that show it
CAPABILITIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "identity": ("starts_as_base", ("starts_as_the_base",)),
    "merge": ("mergeable", ("merges",)),
    "int8": ("supports_quantized_base", ("runs_on_int8", "runs_on_w8a8")),
    "checkpointing": ("supports_gradient_checkpointing", ("checkpoints_gradients",)),
    "resume": ("", ("resumes_equal",)),
    "all train": ("", ("trains_what_it_declares",)),
    "no side effects": ("", ("builds_without_side_effects",)),
    "bfloat16": ("", ("runs_on_bfloat16",)),
    "two adapters": ("", ("disables_exactly", "keeps_two_adapters_apart")),
}
SHOWN = 200


def survey(name: str) -> dict[str, Any]:
    """What one method does on each kind of model, and what it lacks."""
    facts = FACTS.get(name, Facts())
    if facts.refusal:
        return {"refused": facts.refusal}
    own = method_class(name, peft_configs()[name])
    works: list[str] = []
    fails: dict[str, str] = {}
    without: dict[str, str] = {}
    essential = OF_PROMPTS if issubclass(own, SoftPrompt) else ESSENTIAL
    for kind in KINDS:
        if kind == "decoder":
            found = _capabilities(own, name, without)
        else:
            found = _claims(own, name, kind, without, essential)
        faults = [found[claim] for claim in essential if found.get(claim)]
        if faults:
            fails[kind] = _short(str(faults[0]))
        else:
            works.append(kind)
    return {"works": works, "fails": fails, "without": without if works else {}}


def _capabilities(own: type[NamedMethod], name: str, without: dict[str, str]) -> dict[str, Any]:
    """All claims on the decoder, those that depend on a denied capability tried again."""
    found = _claims(own, name, "decoder", without, None)
    if any(found.get(claim) for claim in ESSENTIAL):
        return found
    for capability, (attribute, claims) in CAPABILITIES.items():
        fault = next((found[claim] for claim in claims if found.get(claim)), None)
        if fault is None:
            continue
        without[capability] = FACTS.get(name, Facts()).why.get(capability) or _short(fault)
        if attribute:
            # A claim that also tries the denied capability is only now about its own.
            again = [claim for claim, text in found.items() if text]
            found.update(_claims(own, name, "decoder", without, again))
    return found


def _claims(
    own: type[NamedMethod],
    name: str,
    kind: str,
    without: Mapping[str, str],
    only: Sequence[str] | None,
) -> dict[str, str | None]:
    flags = {a: capability not in without for capability, (a, _) in CAPABILITIES.items() if a}
    tried = type(own.__name__, (own,), flags)
    return try_method(
        tried, OPTIONS.get(name, {}), model=tiny_model(kind), task_type=KINDS[kind], only=only
    )


def _short(fault: str) -> str:
    text = " ".join(fault.split()).removeprefix("must not raise; raised ")
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def table(record: Mapping[str, Any]) -> str:
    """METHODS.md: what was found, as tables."""
    kinds = [kind.replace("_", "-") for kind in KINDS]
    lines = [
        "# What each of PEFT's methods does",
        "",
        f"Written by `python -m ftrt_peft.survey --table METHODS.md` with PEFT {record['peft']}:"
        " every claim of `ftrt.testing.check_method`, tried on two-block models of 32 features"
        " (Llama, BERT, T5). A number points to the reason below.",
        "",
        f"| method | {' | '.join(kinds)} | {' | '.join(CAPABILITIES)} | source |",
        f"|{'---|' * (2 + len(kinds) + len(CAPABILITIES))}",
    ]
    reasons: list[str] = []

    def cell(fault: str | None, is_tried: bool = True) -> str:
        if not is_tried:
            return "-"
        if fault is None:
            return "yes"
        if fault not in reasons:
            reasons.append(fault)
        return f"no [{reasons.index(fault) + 1}]"

    configs = peft_configs()
    for name, found in sorted(record["methods"].items()):
        works, fails = found.get("works", []), found.get("fails", {})
        refused = found.get("refused")
        cells = [
            cell(refused or fails.get(kind), bool(refused) or kind in fails or kind in works)
            for kind in KINDS
        ]
        cells += [cell(found.get("without", {}).get(c), bool(works)) for c in CAPABILITIES]
        source = source_of(name, configs[name]) if name in configs else ""
        lines.append(f"| `{PREFIX}{name}` | {' | '.join(cells)} | {source} |")
    lines += ["", "## Reasons", ""]
    lines += [f"{number}. {_escaped(reason)}" for number, reason in enumerate(reasons, start=1)]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|")


def main(arguments: Sequence[str] | None = None) -> None:
    """Try the named methods, or all, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="methods, say adalora; all by default")
    parser.add_argument("--table", type=Path, help="also write METHODS.md here")
    given = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    known = peft_configs()
    for name in given.names or known:
        record["methods"][name] = survey(name)
    record["peft"] = peft.__version__
    record["methods"] = {n: found for n, found in sorted(record["methods"].items()) if n in known}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if given.table is not None:
        given.table.write_text(table(record), encoding="utf-8")


if __name__ == "__main__":
    main()
