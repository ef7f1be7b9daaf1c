"""The loss terms `logit_kl` and `hidden_mse`."""

import math

import pytest
import torch
from ftrt_distill import hidden_mse, logit_kl
from ftrt_distill.hidden_mse import HiddenMSE
from ftrt_distill.logit_kl import LogitKL
from pydantic import ValidationError

from ftrt.errors import UnsupportedError, UsageError
from ftrt.testing import check_loss


def make(**options):
    return LogitKL(LogitKL.Config(**options))


def divergence(p_logits, q_logits, temperature):
    """KL(p ‖ q) in plain Python, float64."""
    p, q = ([math.exp(value / temperature) for value in logits] for logits in (p_logits, q_logits))
    p, q = [value / sum(p) for value in p], [value / sum(q) for value in q]
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_hooks_offer_the_terms():
    assert logit_kl.register_losses() == [LogitKL]
    assert hidden_mse.register_losses() == [HiddenMSE]


@pytest.mark.parametrize("task", ["classification", "causal_lm"])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.0}, {"temperature": 5.0}, {"direction": "reverse", "temperature": 0.7}],
)
def test_logit_kl_keeps_the_contract(options, task):
    check_loss(LogitKL, options, task=task)


@pytest.mark.parametrize("task", ["classification", "causal_lm"])
def test_hidden_mse_keeps_the_contract(task):
    check_loss(HiddenMSE, task=task)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_classification_equals_the_equation(direction, temperature):
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    total, count = make(direction=direction, temperature=temperature)(
        {"logits": student}, {"logits": teacher}, {"labels": torch.tensor([0, 1, 2, 0, -100])}
    )
    pairs = list(zip(student.tolist(), teacher.tolist(), strict=True))[:4]
    values = [
        divergence(t, s, temperature) if direction == "forward" else divergence(s, t, temperature)
        for s, t in pairs
    ]
    assert float(total) == pytest.approx(temperature**2 * sum(values), rel=1e-5)
    assert count == 4


def test_causal_lm_sums_the_tokens_whose_next_label_counts():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    labels = torch.tensor([[1, -100, 2, 3], [-100, -100, 4, -100]])
    total, count = make(temperature=2.0)(
        {"logits": student}, {"logits": teacher}, {"labels": labels}
    )
    # labels at positions 2 and 3 of row 0 and 2 of row 1 are predicted at 1, 2 and 1
    places = [(0, 1), (0, 2), (1, 1)]
    values = [divergence(teacher[p].tolist(), student[p].tolist(), 2.0) for p in places]
    assert float(total) == pytest.approx(4 * sum(values), rel=1e-5)
    assert count == 3


def test_the_gradient_keeps_its_size_when_the_temperature_grows():
    """Hinton et al. 2015, equation 4: at high temperature it is zero-mean logit matching."""
    torch.manual_seed(0)
    teacher = torch.randn(4, 6)
    sizes = []
    for temperature in (20.0, 80.0):
        student = torch.zeros(4, 6, requires_grad=True)
        total, _ = make(temperature=temperature)(
            {"logits": student}, {"logits": teacher}, {"labels": torch.zeros(4).long()}
        )
        total.backward()
        sizes.append(float(student.grad.norm()))
    centred = teacher - teacher.mean(dim=1, keepdim=True)
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)
    assert sizes[1] == pytest.approx(float(centred.norm() / 6), rel=0.05)


def test_shapes_that_differ_are_refused_with_all_three():
    with pytest.raises(
        UnsupportedError, match=r"student \(2, 3\), teacher \(2, 4\), labels \(2,\)"
    ):
        make()(
            {"logits": torch.zeros(2, 3)},
            {"logits": torch.zeros(2, 4)},
            {"labels": torch.zeros(2).long()},
        )


def test_a_missing_signal_is_refused():
    for term in (make(), HiddenMSE(None)):
        with pytest.raises(UsageError, match="needs a teacher; got no signal"):
            term({"logits": torch.zeros(2, 3), "hidden_states": ()}, None, {})


@pytest.mark.parametrize("options", [{"temperature": 0}, {"direction": "sideways"}, {"temp": 2}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValidationError):
        make(**options)


def test_hidden_mse_maps_layers_evenly_and_skips_padding():
    torch.manual_seed(0)
    student = [torch.randn(2, 3, 4) for _ in range(3)]
    teacher = [torch.randn(2, 3, 4) for _ in range(5)]
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    batch = {"labels": torch.tensor([1, 0]), "attention_mask": mask}
    total, count = HiddenMSE(None)({"hidden_states": student}, {"hidden_states": teacher}, batch)
    expected = 0.0
    for row, length in enumerate((2, 3)):
        gaps = [
            (student[m][row, :length] - teacher[2 * m][row, :length]).square().mean()
            for m in range(3)
        ]
        expected += float(sum(gaps) / 3)
    assert float(total) == pytest.approx(expected, rel=1e-5) and int(count) == 2


def test_hidden_mse_refuses_layers_that_do_not_map():
    batch = {"labels": torch.tensor([1, 0])}
    for layers, width in ((4, 4), (5, 6)):
        with pytest.raises(UnsupportedError, match=r"got student 2 layers of \(2, 3, 4\), teacher"):
            HiddenMSE(None)(
                {"hidden_states": [torch.zeros(2, 3, 4)] * 3},
                {"hidden_states": [torch.zeros(2, 3, width)] * layers},
                batch,
            )
