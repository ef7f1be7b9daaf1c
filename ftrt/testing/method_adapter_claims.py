"""What adapter methods claim beyond training: int8 bases, merging, disabling, two at once."""

__all__ = ["ADAPTER_CLAIMS", "runs_on_int8", "runs_on_w8a8"]

from typing import Any

import torch
from torch import nn

from ftrt.api import LinearMethod, ModelMethod
from ftrt.errors import UnsupportedError
from ftrt.integrations import peft as peft_bridge
from ftrt.testing.method_claims import (
    STEPS,
    STEPS_TO_LEARN,
    TOLERANCE,
    Claim,
    assert_lowers_the_loss,
    assert_near,
    assert_refuses,
    assert_reloads,
    distance,
)
from ftrt.testing.method_subjects import Subject

# Where two roads round differently in the last bit, an input on the edge between two levels may
# take the other one: a step of 1 / 127 of the largest value in one of its columns.
W8A8_TOLERANCE = 1e-2


def runs_on_int8(subject: Subject) -> None:
    """Over an int8 base: identity, training, save and reload, merging; or a refusal by name."""
    name = subject.method_class.name
    base = subject.base(int8=True)
    if not subject.method_class.supports_quantized_base:
        if not issubclass(subject.method_class, ModelMethod):
            assert_refuses(lambda: subject.attached(base), name, "an int8 base")
        return
    expected = subject.outputs(base)
    model = _attached_or_refused(subject, base)
    if model is None:
        return
    if subject.method_class.starts_as_base:
        assert_near(
            subject.outputs(model), expected, "on an int8 base the outputs must start as the base's"
        )
    assert_reloads(subject, lambda: subject.base(int8=True))
    if not issubclass(subject.method_class, ModelMethod):
        _assert_merges(subject, int8=True)


def runs_on_w8a8(subject: Subject) -> None:
    """Over an int8 base that quantizes its inputs: identity, a falling loss, save and reload."""
    if not subject.method_class.supports_quantized_base:
        return

    def base() -> nn.Module:
        return subject.base(int8=True, compute="w8a8")

    expected = subject.outputs(base())
    model = _attached_or_refused(subject, base())
    if model is None:
        return
    if subject.method_class.starts_as_base:
        assert_near(
            subject.outputs(model),
            expected,
            "on a w8a8 base the outputs must start as the base's",
            tolerance=W8A8_TOLERANCE,
        )
    assert_lowers_the_loss(subject, base())
    assert_reloads(subject, base)


def _attached_or_refused(subject: Subject, base: nn.Module) -> nn.Module | None:
    """The method on `base`; None where an option needs a float base and says so."""
    try:
        return subject.attached(base)[0]
    except UnsupportedError as error:
        # an option may need a float base although the method itself does not
        if subject.options and subject.method_class.name in str(error):
            return None
        raise


def merges(subject: Subject) -> None:
    """The merged model gives the same outputs; or merging refuses by name."""
    _assert_merges(subject, int8=False)


def _assert_merges(subject: Subject, *, int8: bool) -> None:
    base = subject.base(int8=int8)
    before = subject.outputs(base)
    model: Any
    model, method = subject.trained(STEPS_TO_LEARN, base)
    if not method.mergeable:
        assert_refuses(lambda: peft_bridge.merge(model), method.name, "merging")
        return
    expected = subject.outputs(model)
    effect = distance(expected, before)
    if effect <= 10 * TOLERANCE:
        raise AssertionError(
            "training must change the outputs visibly for merging to be judged; they moved"
            f" {effect:.2e}"
        )
    assert_near(
        subject.outputs(peft_bridge.merge(model)),
        expected,
        f"merged outputs{' over int8' if int8 else ''} must equal the adapter's; delta_weight() and"
        " forward() must say the same",
    )


def disables_exactly(subject: Subject) -> None:
    """With the adapter disabled the outputs are the base's, bit for bit."""
    expected = subject.outputs(subject.base())
    model: Any
    model, _ = subject.trained(STEPS)
    with model.disable_adapter():
        got = subject.outputs(model)
    if not torch.equal(got, expected):
        raise AssertionError(
            "a disabled adapter must give the base's outputs exactly; they differ by"
            f" {distance(got, expected):.2e}"
        )


def keeps_two_adapters_apart(subject: Subject) -> None:
    """A second adapter starts as the base, trains alone, and can go again."""
    base_outputs = subject.outputs(subject.base())
    model: Any
    model, _ = subject.trained(STEPS)
    first = subject.outputs(model)
    second_method = subject.method()
    config = peft_bridge.config_for(model, second_method, task_type=subject.task_type)
    model.add_adapter("second", config)
    if not torch.equal(subject.outputs(model), first):
        raise AssertionError("adding an adapter must not change outputs")
    model.set_adapter("second")
    if subject.method_class.starts_as_base:
        assert_near(subject.outputs(model), base_outputs, "a second adapter must start as the base")
    subject.run(model, second_method, STEPS).train(STEPS)
    model.eval().set_adapter("default")
    if not torch.equal(subject.outputs(model), first):
        raise AssertionError(
            "training a second adapter must leave the first alone; its outputs changed"
        )
    if isinstance(second_method, LinearMethod):
        model.base_model.set_adapter(["default", "second"])
        both = subject.outputs(model)
        if not (torch.isfinite(both).all() and not torch.equal(both, first)):
            raise AssertionError("two active adapters must both take part in the outputs")
        model.set_adapter("default")
    model.delete_adapter("second")
    if not torch.equal(subject.outputs(model), first):
        raise AssertionError("deleting an adapter must leave the other")


ADAPTER_CLAIMS: tuple[Claim, ...] = (merges, disables_exactly, keeps_two_adapters_apart)
