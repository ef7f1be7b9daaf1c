"""Everything a fine-tuning method promises, tried on a small model."""

__all__ = ["check_method", "try_method"]

import random
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import nn

from ftrt.api import LinearMethod, Method, ModelMethod, PeftMethod
from ftrt.testing.claims import require_claims, try_claims
from ftrt.testing.method_adapter_claims import ADAPTER_CLAIMS, runs_on_int8, runs_on_w8a8
from ftrt.testing.method_claims import COMMON_CLAIMS, CONTRACT_CLAIMS, Claim
from ftrt.testing.method_subjects import Subject, subject_of
from ftrt.testing.toy_model import ToyModel

MODEL_SEED = 0


def check_method(
    method_class: type[Method],
    options: Mapping[str, Any] | None = None,
    *,
    model: nn.Module | None = None,
    task_type: str | None = None,
) -> None:
    """Try every claim of the method contract and say which ones fail.

    The claims: options validate and survive JSON; building touches no global random state or
    setting; the outputs start as the base's; exactly the declared parameters train, and the loss
    falls; save and reload is bit-equal; a resumed run equals an unbroken one; gradient
    checkpointing changes nothing; bfloat16 and int8 bases (w8a16 and w8a8) work; `param_groups` is
    complete. For adapters also: merging keeps the outputs (or is refused by name), a disabled
    adapter is the base exactly, two adapters do not disturb each other.

    Args:
        method_class: derives from `LinearMethod`, `PeftMethod` or `ModelMethod`; it need not be
            installed as a plugin.
        options: what a recipe would say beside the name; the defaults if None.
        model: a float32 model called as `model(input_ids)` that returns logits or an object with
            `.logits`; copied, never changed. A toy model with linear layers of 32, 48 and 4
            features if None.
        task_type: PEFT's task type, say "CAUSAL_LM"; prompts are only put before the tokens of a
            model whose task PEFT knows.

    Raises:
        AssertionError: one line for each claim that fails.
    """
    subject = _subject(method_class, options, model, task_type)
    with _prepared():
        require_claims(method_class.__name__, subject, CONTRACT_CLAIMS)
        require_claims(method_class.__name__, subject, _claims(method_class))


def try_method(
    method_class: type[Method],
    options: Mapping[str, Any] | None = None,
    *,
    model: nn.Module | None = None,
    task_type: str | None = None,
    only: Collection[str] | None = None,
) -> dict[str, str | None]:
    """The claims of `check_method` by name: None where one holds, else why it fails.

    For tables of what works.

    Args:
        method_class: as for `check_method`.
        options: as for `check_method`.
        model: as for `check_method`.
        task_type: as for `check_method`.
        only: names of the claims to try; all if None.
    """
    subject = _subject(method_class, options, model, task_type)
    claims = (*CONTRACT_CLAIMS, *_claims(method_class))
    chosen = [claim for claim in claims if only is None or claim.__name__ in only]
    with _prepared():
        return try_claims(subject, chosen)


def _subject(
    method_class: type[Method],
    options: Mapping[str, Any] | None,
    model: nn.Module | None,
    task_type: str | None,
) -> Subject:
    contracts = (LinearMethod, PeftMethod, ModelMethod)
    if not (isinstance(method_class, type) and issubclass(method_class, contracts)):
        names = ", ".join(contract.__name__ for contract in contracts)
        raise AssertionError(f"{method_class!r}: must be a class that derives from one of {names}")
    if model is None:
        with torch.random.fork_rng():
            torch.manual_seed(MODEL_SEED)
            model = ToyModel()
    return subject_of(method_class, options, model, task_type)


def _claims(method_class: type[Method]) -> tuple[Claim, ...]:
    extra = () if issubclass(method_class, ModelMethod) else ADAPTER_CLAIMS
    return (*COMMON_CLAIMS, runs_on_int8, runs_on_w8a8, *extra)


@contextmanager
def _prepared() -> Iterator[None]:
    with _private_random_state(), warnings.catch_warnings():
        # PEFT warns about models that are not transformers' and about adapters that go
        warnings.simplefilter("ignore")
        torch.manual_seed(MODEL_SEED)
        # a toy model gains nothing from threads, and sums come out the same on every machine
        torch.set_num_threads(1)
        yield


@contextmanager
def _private_random_state() -> Iterator[None]:
    """Leave the caller's random states, default dtype and gradient mode as they were."""
    python, arrays = random.getstate(), numpy.random.get_state()
    dtype, gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(arrays)
            torch.set_default_dtype(dtype)
            torch.set_grad_enabled(gradients)
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)
