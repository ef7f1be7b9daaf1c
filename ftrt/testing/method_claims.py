"""What a fine-tuning method claims: functions that return or raise `AssertionError`."""

__all__ = [
    "COMMON_CLAIMS",
    "CONTRACT_CLAIMS",
    "Claim",
    "assert_lowers_the_loss",
    "assert_near",
    "assert_refuses",
    "assert_reloads",
    "distance",
]

import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from ftrt.api import ModelMethod
from ftrt.errors import UnsupportedError
from ftrt.testing.claims import require_config
from ftrt.testing.method_subjects import BUILD_SEED, RELOAD_SEED, Subject
from ftrt.testing.toy_model import loss_of, outputs_of

# Long enough that a zero-initialised factor has moved and its partner has a gradient.
STEPS = 4
STEPS_TO_LEARN = 12
# float32 sums over a few dozen terms through two blocks; a wrong delta is off by far more than
# this.
TOLERANCE = 1e-4


def has_name_and_source(subject: Subject) -> None:
    """A recipe names the method and a reader finds its paper."""
    kind = subject.method_class
    name, source = getattr(kind, "name", None), getattr(kind, "source", None)
    fits = isinstance(name, str) and re.fullmatch(r"([a-z][a-z0-9_]*:)?[a-z][a-z0-9_]*", name)
    if not fits:
        raise AssertionError(
            f"`name` must be lower_case letters, digits and underscores, after the `prefix:` of a"
            f" family if it is in one; got {name!r}"
        )
    if not (isinstance(source, str) and source.strip()):
        raise AssertionError(f"`source` must name the paper; got {source!r}")


def validates_options(subject: Subject) -> None:
    """Options come back from JSON as they were, and unknown ones are refused."""
    require_config(subject.method_class, subject.options)


def builds_without_side_effects(subject: Subject) -> None:
    """Building draws from torch's generator at most; it seeds nothing and sets nothing global."""
    random.seed(BUILD_SEED)
    numpy.random.seed(BUILD_SEED)
    base = subject.base()
    torch.manual_seed(BUILD_SEED)
    before = _global_state()
    subject.attach(base, subject.method())
    for name, value in _global_state().items():
        if value != before[name]:
            raise AssertionError(f"building must leave {name} alone; it changed")


def _global_state() -> dict[str, Any]:
    return {
        "Python's random state": random.getstate(),
        "numpy's random state": tuple(map(str, numpy.random.get_state())),
        "torch's seed": torch.initial_seed(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's gradient mode": torch.is_grad_enabled(),
        "torch's thread count": torch.get_num_threads(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
    }


def starts_as_the_base(subject: Subject) -> None:
    """Before the first step the outputs are the base's, unless the method says otherwise."""
    if not subject.method_class.starts_as_base:
        return
    base = subject.outputs(subject.base())
    model, _ = subject.attached()
    assert_near(subject.outputs(model), base, "before training the outputs must be the base's")


def trains_what_it_declares(subject: Subject) -> None:
    """Every trainable parameter gets a gradient; everything else keeps its value."""
    base = subject.base()
    originals = dict(base.named_parameters())
    values = {name: p.detach().clone() for name, p in originals.items()}
    model, method = subject.attached(base)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise AssertionError("some parameter must require gradients; none does")
    if not isinstance(method, ModelMethod):
        loose = [name for name, p in originals.items() if p.requires_grad]
        if loose:
            raise AssertionError(f"the base must be frozen; {loose[0]} requires gradients")
    seen = _gradients_seen(subject, model, method, trainable)
    idle = [name for name in trainable if name not in seen]
    if idle:
        raise AssertionError(
            f"every trainable parameter must get a gradient within {STEPS} steps; {idle[0]} gets"
            f" none ({len(idle)} in all)"
        )
    ids = {id(p) for p in trainable.values()}
    for name, value in values.items():
        is_same = id(originals[name]) in ids or torch.equal(originals[name], value)
        if not is_same:
            raise AssertionError(f"frozen parameters must keep their values; {name} changed")


def _gradients_seen(
    subject: Subject, model: nn.Module, method: Any, trainable: dict[str, nn.Parameter]
) -> set[str]:
    """Names of parameters that had a non-zero gradient at some step."""
    run = subject.run(model, method, STEPS)
    seen: set[str] = set()
    for _ in range(STEPS):
        model.train()
        loss_of(model, subject.batch).backward()  # type: ignore[no-untyped-call]
        for name, parameter in trainable.items():
            grad = parameter.grad
            if grad is None:
                continue
            if not torch.isfinite(grad).all():
                raise AssertionError(f"gradients must be finite; that of {name} is not")
            if grad.abs().max() > 0:
                seen.add(name)
        run.optimizer.zero_grad()
        run.train(1)
    return seen


def lowers_the_loss(subject: Subject) -> None:
    """A few steps on one batch lower its loss."""
    assert_lowers_the_loss(subject, subject.base())


def assert_lowers_the_loss(subject: Subject, base: nn.Module) -> None:
    """A few steps over `base` on one batch lower its loss."""
    model, method = subject.attached(base)
    with torch.no_grad():
        before = loss_of(model, subject.batch).item()
    subject.run(model, method, STEPS_TO_LEARN).train(STEPS_TO_LEARN)
    with torch.no_grad():
        after = loss_of(model.eval(), subject.batch).item()
    # `not <` also catches NaN
    if not after < before:
        raise AssertionError(
            f"{STEPS_TO_LEARN} steps on one batch must lower its loss; got {before:.6f} before,"
            f" {after:.6f} after"
        )


def reloads_bit_equal(subject: Subject) -> None:
    """What is saved and read back onto a fresh base gives the same outputs, bit for bit."""
    assert_reloads(subject, subject.base)


def assert_reloads(subject: Subject, base: Callable[[], nn.Module]) -> None:
    """Outputs after training, saving and reloading are bit-equal on what `base` makes."""
    model, _ = subject.trained(STEPS, base())
    expected = subject.outputs(model)
    with tempfile.TemporaryDirectory() as folder:
        subject.save(model, Path(folder))
        again, _ = subject.reload(base(), Path(folder))
    got = subject.outputs(again.eval())
    if not torch.equal(got, expected):
        raise AssertionError(
            "outputs must be bit-equal after save and reload; they differ by"
            f" {distance(got, expected):.2e}. What the forward pass reads must be a parameter or a"
            " persistent buffer, or follow from the options alone"
        )


def resumes_equal(subject: Subject) -> None:
    """Training, saving, reloading and training on equals training straight through."""
    straight, _ = subject.trained(2 * STEPS)
    model, method = subject.attached()
    first = subject.run(model, method, 2 * STEPS)
    first.train(STEPS)
    # a Trainer writes the adapter, the optimizer and the method's state at this point
    with tempfile.TemporaryDirectory() as folder:
        subject.save(model.eval(), Path(folder))
        again, again_method = subject.reload(subject.base(), Path(folder), trainable=True)
    subject.hand_over(model, method, again, again_method)
    second = subject.run(again, again_method, 2 * STEPS)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.steps = first.steps
    second.train(STEPS)
    got, expected = subject.outputs(again.eval()), subject.outputs(straight)
    assert_near(
        got,
        expected,
        "a resumed run must equal one without a break; state that training needs must be in the"
        " adapter's state_dict, or in training_state()",
    )


def checkpoints_gradients(subject: Subject) -> None:
    """Gradients are the same when activations are recomputed in the backward pass."""
    if not hasattr(subject.model, "gradient_checkpointing_enable"):
        return
    if not subject.method_class.supports_gradient_checkpointing:
        base: Any = subject.base()
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        name = subject.method_class.name
        assert_refuses(lambda: subject.attached(base), name, "gradient checkpointing")
        return
    plain = _gradients(subject, checkpointing=False)
    recomputed = _gradients(subject, checkpointing=True)
    for name, grad in plain.items():
        other = recomputed.get(name)
        is_same = other is not None and torch.allclose(other, grad, atol=1e-6, rtol=1e-4)
        if not is_same:
            raise AssertionError(
                f"gradient checkpointing must not change gradients; that of {name} differs"
            )


def _gradients(subject: Subject, *, checkpointing: bool) -> dict[str, Tensor]:
    base: Any = subject.base()
    if checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model, method = subject.attached(base)
    subject.run(model, method, STEPS).train(STEPS)
    torch.manual_seed(RELOAD_SEED)
    loss_of(model.train(), subject.batch).backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def runs_on_bfloat16(subject: Subject) -> None:
    """On a bfloat16 base the outputs stay bfloat16 and gradients are finite."""
    model, method = subject.attached(subject.base(dtype=torch.bfloat16))
    got = outputs_of(model, subject.batch)
    if got.dtype != torch.bfloat16:
        raise AssertionError(
            f"outputs must keep the base's dtype; on a bfloat16 base they are {got.dtype}. Cast the"
            " adapter's part, or use ftrt.nn.lora_forward"
        )
    subject.run(model, method, STEPS).train(STEPS)
    if not torch.isfinite(subject.outputs(model)).all():
        raise AssertionError("training on a bfloat16 base must stay finite")


def groups_every_parameter_once(subject: Subject) -> None:
    """`param_groups` covers each trainable parameter exactly once, and nothing else."""
    model, method = subject.attached()
    groups = method.param_groups(model)
    if groups is None:
        return
    counts: dict[int, int] = {}
    for group in groups:
        for parameter in group["params"]:
            counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    for name, parameter in model.named_parameters():
        expected = int(parameter.requires_grad)
        found = counts.pop(id(parameter), 0)
        if found != expected:
            raise AssertionError(
                "param_groups must hold each trainable parameter once and no other; it holds"
                f" {name} {found} times instead of {expected}"
            )
    if counts:
        raise AssertionError(
            "param_groups must hold the model's parameters only; it holds others too"
        )


def assert_refuses(action: Callable[[], Any], name: str, what: str) -> None:
    """`action` must raise `UnsupportedError` with the method's name in its message."""
    try:
        action()
    except UnsupportedError as error:
        # PEFT's own files name a method without our family's prefix
        if name.rpartition(":")[2] not in str(error):
            raise AssertionError(f"{what} must be refused naming {name!r}; got: {error}") from None
        return
    raise AssertionError(
        f"the method says it does not support {what}; it must be refused, and was not"
    )


def assert_near(
    got: Tensor, expected: Tensor, sentence: str, *, tolerance: float = TOLERANCE
) -> None:
    """Equal within `tolerance` of the largest expected value; `sentence` says what must hold."""
    if got.shape != expected.shape:
        raise AssertionError(
            f"{sentence}; got shape {tuple(got.shape)} for {tuple(expected.shape)}"
        )
    apart = distance(got, expected)
    bound = tolerance * max(1.0, expected.float().abs().max().item())
    if apart > bound:
        raise AssertionError(f"{sentence}; they differ by {apart:.2e}, allowed is {bound:.2e}")


def distance(got: Tensor, expected: Tensor) -> float:
    """Largest absolute difference; infinite where either holds NaN."""
    return (got.float() - expected.float()).abs().max().nan_to_num(float("inf")).item()


Claim = Callable[[Subject], None]

# checked first: without these nothing else can be
CONTRACT_CLAIMS: tuple[Claim, ...] = (has_name_and_source, validates_options)
COMMON_CLAIMS: tuple[Claim, ...] = (
    builds_without_side_effects,
    starts_as_the_base,
    trains_what_it_declares,
    lowers_the_loss,
    reloads_bit_equal,
    resumes_equal,
    checkpoints_gradients,
    runs_on_bfloat16,
    groups_every_parameter_once,
)
