"""Fused LoRA layers: PEFT's outputs, keys and functions, another forward."""

import copy

import peft
import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from peft_subjects import IDS, LABELS, bert, logits, lora, shift, train

import ftrt
import ftrt.integrations.peft_lora as fused_module
from ftrt.errors import UsageError
from ftrt.integrations import peft as bridge
from ftrt.integrations.peft_lora import FusedLoraLinear, Int8LoraLinear
from ftrt.ops.dropout import draw_seed, dropout_mask


def plain(*, model=None, **options):
    """An ordinary PEFT model that knows nothing of ftrt, trained a little."""
    torch.manual_seed(5)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        task_type="SEQ_CLS",
        target_modules=["query", "value", "dense"],
        **options,
    )
    return train(peft.get_peft_model(model if model is not None else bert(), config), 3)


def kinds(model):
    return {type(m) for m in model.modules() if isinstance(m, LoraLinear)}


@pytest.fixture
def calls(monkeypatch):
    """Counts how often the fused op runs."""
    made = []
    original = fused_module.lora_forward
    monkeypatch.setattr(
        fused_module,
        "lora_forward",
        lambda *args, **kwargs: made.append(1) or original(*args, **kwargs),
    )
    return made


def test_fuse_keeps_outputs_and_keys_and_returns_the_same_object(calls):
    model = plain()
    expected, keys = logits(model), list(model.state_dict())
    assert bridge.fuse(model) is model
    assert kinds(model) == {FusedLoraLinear}
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    assert list(model.state_dict()) == keys
    assert calls


def test_fuse_keeps_gradients():
    model = plain()
    fused = bridge.fuse(copy.deepcopy(model))
    for m in (model, fused):
        m.train()
        m.zero_grad()
        m(input_ids=IDS, labels=LABELS).loss.backward()
    others = dict(fused.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(others[name].grad, parameter.grad, atol=1e-5, rtol=1e-4)


def test_fuse_twice_and_unfuse_restore_pefts_classes():
    model = plain()
    expected = logits(model)
    bridge.fuse(bridge.fuse(model))
    bridge.unfuse(bridge.unfuse(model))
    assert kinds(model) == {LoraLinear}
    assert torch.equal(logits(model), expected)


def test_fused_and_plain_files_are_the_same(tmp_path):
    model = plain()
    model.save_pretrained(tmp_path / "plain")
    bridge.fuse(model).save_pretrained(tmp_path / "fused")
    name = "adapter_model.safetensors"
    assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "fused" / name).read_bytes()


def second_active(model):
    model.add_adapter("second", copy.deepcopy(model.peft_config["default"]))
    for layer in model.modules():
        if isinstance(layer, LoraLinear):
            layer.set_adapter(["default", "second"])


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"lora_bias": True}, None),
        ({}, second_active),
        ({}, lambda model: model.merge_adapter()),
        ({}, lambda model: model.base_model.disable_adapter_layers()),
    ],
    ids=["bias", "two active", "merged", "disabled"],
)
def test_everything_unusual_runs_pefts_own_forward(options, change, calls):
    model = plain(**options)
    if change is not None:
        change(model)
    expected = logits(model)
    assert torch.equal(logits(bridge.fuse(model)), expected)
    assert not calls


def test_dropout_runs_the_fused_forward_while_training_and_after(calls):
    model = bridge.fuse(plain(lora_dropout=0.5))
    model.train()
    with torch.no_grad():
        model(input_ids=IDS)
    assert len(calls) == 11
    logits(model)
    assert len(calls) == 22


def test_a_mixed_batch_of_adapters_runs_pefts_forward(calls):
    model = plain()
    names = ["default", "__base__", "default"]
    expected = model(input_ids=IDS, adapter_names=names).logits
    got = bridge.fuse(model)(input_ids=IDS, adapter_names=names).logits
    assert torch.equal(got, expected)
    assert not calls


def test_a_module_hook_on_a_factor_or_the_base_still_fires(calls):
    model = bridge.fuse(plain())
    layer = next(m for m in model.modules() if isinstance(m, FusedLoraLinear))
    for module in (layer.lora_A["default"], layer.lora_B["default"], layer.base_layer):
        seen = []
        handle = module.register_forward_hook(lambda *args, seen=seen: seen.append(1))
        logits(model)
        handle.remove()
        assert seen
    assert calls


def test_autocast_gives_what_peft_gives():
    model = plain()
    fused = bridge.fuse(copy.deepcopy(model))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, got = logits(model), logits(fused)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_factors_on_any_base_give_what_peft_gives(dtype):
    model = plain(model=bert(dtype=dtype))
    expected = logits(model)
    got = logits(bridge.fuse(model))
    assert got.dtype == expected.dtype == dtype
    bound = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(got, expected, atol=bound, rtol=bound)


def test_gradient_checkpointing_gives_the_same_gradients():
    grads = []
    for checkpointing in (False, True):
        model = bridge.fuse(plain())
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        model.zero_grad()
        model(input_ids=IDS, labels=LABELS).loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-6, rtol=1e-5)


def test_wrap_and_load_fuse_by_themselves(tmp_path, calls):
    model = bridge.wrap(bert(), lora(), new_modules=["classifier"], task_type="SEQ_CLS")
    assert kinds(model) == {FusedLoraLinear}
    model.save_pretrained(tmp_path)
    assert kinds(bridge.load(bert(), tmp_path)) == {FusedLoraLinear}
    int8 = bridge.wrap(bert(int8=True), lora(), new_modules=["classifier"], task_type="SEQ_CLS")
    assert kinds(int8) == {Int8LoraLinear}
    calls.clear()
    logits(int8)
    assert len(calls) == 13
    assert kinds(bridge.unfuse(int8)) == {Int8LoraLinear}


@pytest.mark.parametrize("int8", [False, True])
def test_dropout_while_training_drops_the_adapters_input_alone(int8):
    model = bridge.wrap(bert(int8=int8), lora(dropout=0.5), task_type="SEQ_CLS")
    layer = next(m for m in model.modules() if isinstance(m, FusedLoraLinear))
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    x = torch.randn(3, layer.in_features)
    layer.train()
    torch.manual_seed(0)
    got = layer(x)
    torch.manual_seed(0)
    dropped = x * dropout_mask(draw_seed(), *x.shape, 0.5) * 2.0
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(got, layer.base_layer(x) + dropped @ a.T @ b.T * 2.0)
    assert not torch.equal(layer(x), got)
    assert torch.equal(layer.eval()(x), layer(x))


def hooked(model):
    model.get_submodule("base_model.model.bert.pooler.dense").base_layer.register_forward_hook(
        lambda *args: None
    )


def train_base(model):
    model.get_submodule("base_model.model.bert.pooler.dense").base_layer.weight.requires_grad_()


@pytest.mark.parametrize(
    ("options", "change", "reason"),
    [
        ({"lora_bias": True}, None, "lora_bias"),
        ({}, hooked, "its base has module hooks"),
        ({}, train_base, "its base trains"),
        ({}, second_active, "several adapters are active"),
    ],
)
def test_layers_that_run_pefts_forward_for_good_are_named_and_listed(
    options, change, reason, caplog
):
    model = plain(**options)
    if change is not None:
        change(model)
    bridge.fuse(model)
    assert f"run PEFT's own forward, because {reason}: " in caplog.text
    assert "bert.pooler.dense" in caplog.text
    rows = {row.name: row for row in ftrt.layer_report(model)}
    row = rows["bert.pooler.dense"]
    assert (row.kind, row.adapter, row.adapter_reason) == ("float", "peft", reason)
    assert row.implementation == "torch"
    one_layer = change in (hooked, train_base)
    paths = {name: row.adapter for name, row in rows.items() if name != "bert.pooler.dense"}
    assert set(paths.values()) == {"fused" if one_layer else "peft"} and len(paths) == 10


def test_a_fully_fused_model_logs_no_obstacle(caplog):
    bridge.fuse(plain())
    assert "own forward" not in caplog.text


def test_a_rank_that_no_op_takes_runs_pefts_forward(calls, caplog):
    config = peft.LoraConfig(r=257, target_modules=["query"])
    model = bridge.fuse(peft.get_peft_model(bert(), config)).eval()
    assert "because its rank 257 is above 256" in caplog.text
    logits(model)
    assert not calls


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bert, "fuse: must be given a peft.PeftModel; got BertForSequenceClassification"),
        (
            lambda: peft.get_peft_model(
                bert(), peft.IA3Config(target_modules=["query"], feedforward_modules=[])
            ),
            "fuse: the model must have LoRA linear layers; it has none (its PEFT type is IA3)",
        ),
        (
            lambda: bridge.wrap(bert(), shift()),
            "fuse: the model must have LoRA linear layers; it has none (its PEFT type is FTRT)",
        ),
    ],
)
def test_fusing_what_has_no_lora_is_an_error(make, message):
    with pytest.raises(UsageError) as caught:
        bridge.fuse(make())
    assert str(caught.value) == message
