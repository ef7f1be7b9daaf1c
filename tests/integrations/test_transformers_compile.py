"""Blocks compile once for all, whatever the length of a batch, and train as they did."""

import shutil

import pytest
import torch
from causal_subjects import batch, build, loss_and_gradients
from torch import nn
from torch._dynamo.utils import counters

import ftrt
from ftrt.errors import ConfigError, UnsupportedError
from ftrt.integrations import transformers_compile
from ftrt.integrations.transformers_compile import check_compile, compile_blocks

BASES = {
    "float": None,
    "w8a16": {"dtype": "int8", "compute": "w8a16"},
    "w8a8": {"dtype": "int8", "compute": "w8a8"},
}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def attached(base="float", **recipe):
    quantization = {} if BASES[base] is None else {"quantization": BASES[base]}
    torch.manual_seed(2)
    run = ftrt.attach(
        build(num_hidden_layers=3),
        {
            "method": {"name": "lora", "rank": 2, "targets": "all-linear"},
            "head": {"name": "causal_lm"},
            **quantization,
            **recipe,
        },
    )
    for name, parameter in run.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    # with a gradient to its input the first block is like the others, and compiles with them
    run.model.enable_input_require_grads()
    run.model.train()
    return run


def unpadded(rows, tokens):
    ids = torch.randint(3, 500, (rows, tokens), generator=torch.Generator().manual_seed(tokens))
    return {"input_ids": ids, "labels": ids.clone()}


@pytest.mark.parametrize("base", BASES)
def test_compiled_blocks_keep_loss_and_gradients_at_any_length(base):
    plain, compiled = attached(base).model, attached(base).model
    # aot traces the ops' backward as well; the two int8 bases have the same
    found = compile_blocks(compiled, backend="eager" if base == "w8a16" else "aot_eager")
    assert found.count == 3
    for rows, tokens in ((4, 20), (4, 33), (3, 7), (2, 40)):
        inputs = unpadded(rows, tokens)
        loss, expected = loss_and_gradients(plain, inputs)
        found_loss, gradients = loss_and_gradients(compiled, inputs)
        assert float(found_loss) == pytest.approx(float(loss), rel=1e-4)
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            error = (gradients[name] - gradient).norm() / gradient.norm()
            assert error < (0.02 if base == "w8a8" else 1e-4), (name, error)
    # three blocks, four lengths, two numbers of rows: one graph, whole
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_gradient_checkpointing_compiles_too():
    plain, compiled = attached().model, attached().model
    compile_blocks(compiled, backend="eager")
    compiled.gradient_checkpointing_enable()
    _, expected = loss_and_gradients(plain, unpadded(4, 20))
    _, found = loss_and_gradients(compiled, unpadded(4, 20))
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() / gradient.norm() < 1e-4, name
    assert not counters["graph_break"]


def test_evaluation_runs_as_python_and_names_of_weights_stay():
    plain = attached()
    run = attached(compile=True)
    assert run.compiled.count == 3
    assert list(run.model.state_dict()) == list(plain.model.state_dict())
    run.model.eval()
    run.model(**batch())
    run.model.train()
    with torch.no_grad():
        run.model(**batch())
    assert counters["stats"]["unique_graphs"] == 0


def test_detach_and_remove_take_the_compilation_off():
    run = attached(compile=True)
    blocks = run.model.get_base_model().model.layers
    assert all(block._compiled_call_impl is not None for block in blocks)
    run.compiled.remove()
    assert all(block._compiled_call_impl is None for block in blocks)
    run = attached(compile=True)
    model = run.detach()
    assert all("_compiled_call_impl" not in vars(block) for block in model.model.layers)


def test_lists_inside_a_block_are_no_blocks():
    model = build("mixtral", num_hidden_layers=2, num_local_experts=2)
    found = compile_blocks(model, backend="eager")
    assert [id(block) for block in found._blocks] == [id(block) for block in model.model.layers]


def test_a_model_without_blocks_is_refused():
    with pytest.raises(UnsupportedError) as error:
        compile_blocks(nn.Linear(2, 2))
    assert str(error.value) == (
        "compile: needs a model with a list of as many blocks as its config has layers; Linear has"
        " none; set compile: false"
    )


def test_without_a_compiler_the_recipe_is_refused_before_the_model_is_touched(monkeypatch):
    monkeypatch.setattr(transformers_compile.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "my-c++")
    model = build()
    state = dict(vars(model))
    with pytest.raises(ConfigError) as error:
        ftrt.attach(model, {"method": {"name": "lora"}, "compile": True})
    assert str(error.value) == (
        "recipe: compile: needs a C++ compiler on PATH, which torch.compile calls during the first"
        " steps; got 'my-c++', which is not there. Install g++, name one in CXX, or set compile:"
        " false"
    )
    assert vars(model) == state


def test_a_compiler_that_fails_is_the_machines_fault_and_named():
    def broken(graph, inputs):
        raise RuntimeError("No working C++ compiler found\nmore")

    model = attached().model
    compile_blocks(model, backend=broken)
    with pytest.raises(ConfigError) as error:
        model(**unpadded(2, 8))
    message = str(error.value)
    assert message.startswith("recipe: compile: the blocks must compile on this machine; got")
    assert "No working C++ compiler found" in message and "more" not in message
    assert message.endswith("Mend the compiler, which CXX may name, or set compile: false")


def test_both_ways_to_compile_at_once_are_refused():
    with pytest.raises(
        ConfigError, match=r"compile: compiles the blocks, and training\.torch_comp"
    ):
        check_compile({"torch_compile": True})
    check_compile({"torch_compile": False})
