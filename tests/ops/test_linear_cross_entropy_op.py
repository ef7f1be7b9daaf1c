"""`ftrt::linear_cross_entropy` against the logits written out in float64."""

import pytest
import torch
from torch.nn import functional

from ftrt.ops import linear_cross_entropy as module
from ftrt.ops.linear_cross_entropy import linear_cross_entropy
from ftrt.testing.tolerances import assert_close

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks, and several blocks in each, at the sizes of these tests."""
    monkeypatch.setattr(module, "_CHUNK_VALUES", 2**9)
    monkeypatch.setattr(module, "_BLOCK_VALUES", 2**7)


def operands(rows=37, features=24, classes=65, *, dtype=torch.float64, bias=True, ignored=3):
    generator = torch.Generator().manual_seed(rows + classes)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    labels = torch.randint(0, classes, (rows,), generator=generator)
    if ignored:
        labels[::ignored] = -100
    bias = draw(classes) if bias else None
    return draw(rows, features), draw(classes, features), labels, bias


def oracle(hidden, weight, labels, bias):
    """The loss and the gradients of its three operands in float64."""
    wide = [
        None if operand is None else operand.detach().double().requires_grad_()
        for operand in (hidden, weight, bias)
    ]
    logits = functional.linear(*wide)
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    given = [operand for operand in wide if operand is not None]
    return loss, torch.autograd.grad(loss * 0.3, given)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "rows, classes, ignored", [(37, 65, 3), (1, 7, 0), (111, 1, 2), (8, 600, 0)]
)
def test_loss_and_gradients_are_those_of_the_logits(rows, classes, ignored, dtype, bias):
    hidden, weight, labels, bias = operands(
        rows, classes=classes, dtype=dtype, bias=bias, ignored=ignored
    )
    loss = linear_cross_entropy(hidden, weight, labels, bias)
    given = [operand for operand in (hidden, weight, bias) if operand is not None]
    found = torch.autograd.grad(loss * 0.3, given)
    expected, gradients = oracle(hidden, weight, labels, bias)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # logits are rounded to dtype; their errors add up over the rows
    assert_close(loss.to(dtype), expected, k=24)
    for got, want in zip(found, gradients, strict=True):
        assert got.dtype == dtype
        assert_close(got, want, k=max(rows, classes, 24))


def test_the_label_of_certainty_keeps_its_small_gradient():
    hidden = torch.tensor([[40.0, 0.0]]).requires_grad_()
    loss = linear_cross_entropy(hidden, torch.eye(2), torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, hidden)
    # softmax − 1 is −e⁻⁴⁰, which 1 − e⁻⁴⁰ − 1 would lose
    assert gradient.tolist() == [[pytest.approx(0, abs=1e-16), pytest.approx(4.248e-18, rel=1e-3)]]


def test_operands_that_need_no_gradient_get_none():
    hidden, weight, labels, bias = operands(dtype=torch.float32)
    weight, bias = weight.detach(), bias.detach()
    _, *found = module._op(hidden, weight, bias, labels, -100, [True, False, False])
    assert [tensor.numel() for tensor in found] == [hidden.numel(), 0, 0]
    linear_cross_entropy(hidden, weight, labels, bias).backward()
    assert hidden.grad is not None


def test_without_gradients_only_the_loss_is_computed():
    hidden, weight, labels, bias = operands(dtype=torch.float32)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, labels, bias)
    assert not loss.requires_grad
    assert loss == linear_cross_entropy(hidden, weight, labels, bias).detach()


@pytest.mark.parametrize("rows", [0, 5])
def test_where_nothing_is_labelled_loss_and_gradients_are_zero(rows):
    hidden, weight, labels, bias = operands(rows, dtype=torch.float32)
    loss = linear_cross_entropy(hidden, weight, torch.full_like(labels, -100), bias)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not any(operand.grad.any() for operand in (hidden, weight, bias))


def test_another_ignored_label_is_ignored():
    hidden, weight, labels, _ = operands(bias=False, ignored=0)
    labels[:20] = 7
    found = linear_cross_entropy(hidden, weight, labels, ignored_label=7)
    kept = labels != 7
    assert found.item() == pytest.approx(
        functional.cross_entropy((hidden @ weight.t())[kept], labels[kept], reduction="sum").item()
    )


def test_strided_operands_give_the_same():
    hidden, weight, labels, _ = operands(bias=False)
    strided = torch.stack([hidden.detach(), hidden.detach()], dim=2)[:, :, 0].requires_grad_()
    transposed = weight.detach().t().contiguous().t().requires_grad_()
    found = linear_cross_entropy(strided, transposed, labels)
    expected = linear_cross_entropy(hidden, weight, labels)
    found.backward()
    expected.backward()
    assert_close(found, expected)
    assert_close(strided.grad, hidden.grad, k=24)
    assert_close(transposed.grad, weight.grad, k=24)


def test_autocast_computes_in_its_dtype_and_keeps_gradients_of_the_operands():
    hidden, weight, labels, bias = operands(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, labels, bias)
    loss.backward()
    low = [operand.detach().bfloat16() for operand in (hidden, weight, bias)]
    expected = linear_cross_entropy(low[0], low[1], labels, low[2])
    assert loss.dtype == torch.float32 and weight.grad.dtype == torch.float32
    assert float(loss.detach()) == float(expected)


def test_gradcheck():
    hidden, weight, labels, bias = operands(9, 5, 7)
    assert torch.autograd.gradcheck(
        lambda *given: linear_cross_entropy(given[0], given[1], labels, given[2]),
        (hidden, weight, bias),
    )


@pytest.mark.parametrize("needs", [[True, False, False], [True, True, True], [False, True, False]])
def test_opcheck(needs):
    hidden, weight, labels, bias = operands(dtype=torch.float32)
    given = [
        operand.detach().requires_grad_(needed)
        for operand, needed in zip((hidden, weight, bias), needs, strict=True)
    ]
    torch.library.opcheck(module._op, (*given, labels, -100, needs))


def test_compiles_whole_with_any_number_of_rows():
    compiled = torch.compile(
        linear_cross_entropy, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for rows in (37, 5, 111):
        hidden, weight, labels, bias = operands(rows, dtype=torch.float32)
        found = compiled(hidden, weight, labels, bias)
        found.backward()
        assert_close(found, oracle(hidden, weight, labels, bias)[0], k=24)
        assert hidden.grad.shape == hidden.shape


def test_a_second_derivative_is_refused():
    hidden, weight, labels, _ = operands(bias=False)
    factor = torch.ones((), requires_grad=True, dtype=torch.float64)
    loss = linear_cross_entropy(hidden, weight, labels) * factor
    with pytest.raises(
        RuntimeError, match="the loss is differentiable once; got create_graph=True"
    ):
        torch.autograd.grad(loss, hidden, create_graph=True)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(weight=torch.ones(7, 4)), "weight (classes, in_features); got hidden (2, 3)"),
        (dict(hidden=torch.ones(2, 3, 1)), "hidden must be (rows, in_features) and weight"),
        (dict(weight=torch.ones(7, 3).double()), "hidden and weight must have one float dtype"),
        (dict(hidden=torch.ones(2, 3, dtype=torch.int32)), "must have one float dtype; got hidden"),
        (dict(bias=torch.ones(6)), "bias must be (out_features)"),
        (dict(bias=torch.ones(7).double()), "bias must have the dtype of hidden; got bias (7,)"),
        (dict(labels=torch.zeros(3, dtype=torch.int64)), "labels must be (rows) int64; got"),
        (dict(labels=torch.zeros(2)), "labels must be (rows) int64; got labels (2,) float32"),
        (dict(labels=torch.tensor([0, 7])), "labels must be 0..6 or ignored; got 0..7"),
        (dict(labels=torch.tensor([-1, 3])), "labels must be 0..6 or ignored; got -1..3"),
    ],
)
def test_each_error_says_what_it_got(change, message):
    given = dict(
        hidden=torch.ones(2, 3), weight=torch.ones(7, 3), labels=torch.tensor([0, 6]), bias=None
    )
    with pytest.raises(RuntimeError) as error:
        linear_cross_entropy(**{**given, **change})
    assert str(error.value).startswith("ftrt::linear_cross_entropy: ")
    assert message in str(error.value)
