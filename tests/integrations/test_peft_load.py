"""Reading adapters back: bit-equal where the files are right, else an error that names the file."""

import copy
import json

import pytest
import torch
from peft import PeftModel
from peft_subjects import Shift, ShiftConfig, bert, logits, lora, shift, train
from safetensors.torch import load_file, save_file

from ftrt.checkpoint import base_fingerprint, write_run_info
from ftrt.errors import CheckpointError, ConfigError, PluginError, UsageError
from ftrt.integrations import peft as bridge
from ftrt.integrations.peft_lora import FusedLoraLinear, Int8LoraLinear

METHODS = pytest.mark.parametrize("method", [shift, lora], ids=["ftrt", "lora"])
BASES = pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])

pytestmark = pytest.mark.usefixtures("installed_shift")


def saved(folder, method, *, int8=False, **options):
    torch.manual_seed(5)
    model = bridge.wrap(
        bert(int8=int8), method(**options), new_modules=["classifier"], task_type="SEQ_CLS"
    )
    train(model, 3)
    model.save_pretrained(folder)
    return logits(model)


@METHODS
@BASES
def test_load_is_bit_equal(method, int8, tmp_path):
    expected = saved(tmp_path, method, int8=int8)
    model = bridge.load(bert(int8=int8), tmp_path)
    assert torch.equal(logits(model), expected)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@METHODS
@BASES
def test_a_trainable_load_trains_the_same_parameters(method, int8, tmp_path):
    saved(tmp_path, method, int8=int8)
    model = bridge.load(bert(int8=int8), tmp_path, is_trainable=True)
    fresh = bridge.wrap(bert(int8=int8), method(), new_modules=["classifier"], task_type="SEQ_CLS")
    names = [[n for n, p in m.named_parameters() if p.requires_grad] for m in (model, fresh)]
    assert names[0] == names[1]


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@METHODS
def test_peft_itself_reads_the_files_bit_equal(method, low_cpu_mem_usage, tmp_path):
    expected = saved(tmp_path, method)
    model = PeftModel.from_pretrained(bert(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    torch.testing.assert_close(logits(model), expected, atol=1e-6, rtol=1e-6)
    if method is shift:
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_float32_adapters_survive_a_bfloat16_base(low_cpu_mem_usage, tmp_path):
    model = bridge.wrap(bert(dtype=torch.bfloat16), shift())
    train(model, 2).save_pretrained(tmp_path)
    values = load_file(tmp_path / "adapter_model.safetensors")
    assert {value.dtype for value in values.values()} == {torch.float32}
    again = PeftModel.from_pretrained(
        bert(dtype=torch.bfloat16), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
    )
    assert torch.equal(logits(again), logits(model))
    again.save_pretrained(tmp_path / "again")
    for name, value in load_file(tmp_path / "again" / "adapter_model.safetensors").items():
        assert torch.equal(value, values[name])


@METHODS
def test_a_second_adapter_is_loaded_beside_the_first(method, tmp_path):
    one = saved(tmp_path / "one", method)
    model = bridge.wrap(bert(), method(), new_modules=["classifier"], task_type="SEQ_CLS")
    untrained = logits(model)
    again = bridge.load(model, tmp_path / "one", adapter_name="one")
    assert again is model
    assert torch.equal(logits(model), untrained)
    model.set_adapter("one")
    assert torch.equal(logits(model), one)
    with pytest.raises(UsageError, match="adapter 'one' is on the model already"):
        bridge.load(model, tmp_path / "one", adapter_name="one")
    model.load_adapter(str(tmp_path / "one"), "two")
    model.set_adapter("two")
    assert torch.equal(logits(model), one)


def test_an_adapter_saved_under_another_name_loads_under_any(tmp_path):
    model = bridge.wrap(bert(), shift(), adapter_name="mine")
    train(model, 2)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(bridge.load(bert(), tmp_path / "mine")), logits(model))
    with pytest.raises(CheckpointError, match="it has none itself but holds the adapters mine"):
        bridge.load(bert(), tmp_path)


def test_an_adapter_named_like_a_module_keeps_its_keys(tmp_path):
    model = bridge.wrap(bert(), shift(), adapter_name="query")
    train(model, 2)
    model.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "query" / "adapter_model.safetensors"))
    prefix = "base_model.model.bert.encoder.layer.0.attention.self.query.ftrt_adapters"
    assert {f"{prefix}.up", f"{prefix}.down.weight"} <= names
    again = bridge.load(bert(), tmp_path / "query", adapter_name="key")
    assert torch.equal(logits(again), logits(model))


def test_a_method_object_stands_in_for_an_installed_plugin(tmp_path):
    class Local(Shift):
        name = "local"

    model = bridge.wrap(bert(), Local(ShiftConfig()))
    train(model, 2).save_pretrained(tmp_path)
    again = bridge.load(bert(), tmp_path, method=Local(ShiftConfig()))
    assert torch.equal(logits(again), logits(model))
    with pytest.raises(CheckpointError, match="method is 'local'; got method 'shift'"):
        bridge.load(bert(), tmp_path, method=shift())
    with pytest.raises(PluginError, match="method 'local': its plugin must be installed"):
        bridge.load(bert(), tmp_path)


def edit_config(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_tensors(folder, change):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def cut(file, share):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])


def drop_first(tensors):
    del tensors[min(tensors)]


def add_one(tensors):
    tensors["base_model.model.nowhere.weight"] = torch.zeros(2)


def widen_first(tensors):
    tensors[min(tensors)] = torch.zeros(99, 2)


def poison_first(tensors):
    tensors[min(tensors)].view(-1)[0] = float("nan")


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

FAULTS = {
    "config missing": (
        lambda d: (d / CONFIG).unlink(),
        "must be an adapter folder with",
        "it has none",
    ),
    "config not JSON": (lambda d: cut(d / CONFIG, 0.5), f"{CONFIG}: must be JSON", "line"),
    "config not UTF-8": (lambda d: (d / CONFIG).write_bytes(b"\xff\xfe{"), "must be JSON", "utf-8"),
    "config a list": (lambda d: (d / CONFIG).write_text("[]"), "peft_type must be one", "got None"),
    "method misspelt": (
        lambda d: edit_config(d, peft_type="LORRA"),
        "peft_type must be one that PEFT or ftrt has; got 'LORRA'",
        "did you mean 'LORA'?",
    ),
    "config value refused": (
        lambda d: edit_config(d, task_type="NO_TASK"),
        f"{CONFIG}: must hold a valid",
        "NO_TASK",
    ),
    "weights missing": (
        lambda d: (d / WEIGHTS).unlink(),
        f"{WEIGHTS}: the adapter's weights must be",
        "missing",
    ),
    "weights cut short": (
        lambda d: cut(d / WEIGHTS, 0.7),
        f"{WEIGHTS}: must be a whole safetensors",
        "cut short",
    ),
    "weights empty": (
        lambda d: (d / WEIGHTS).write_bytes(b""),
        "must be a whole safetensors",
        "cut short",
    ),
    "weights garbage": (
        lambda d: (d / WEIGHTS).write_bytes(b"x" * 900),
        "must be a whole",
        "corrupt",
    ),
    "tensor missing": (
        lambda d: edit_tensors(d, drop_first),
        "exactly this adapter's tensors; it lacks",
        "incomplete",
    ),
    "tensor left over": (
        lambda d: edit_tensors(d, add_one),
        "it holds base_model.model.nowhere.weight",
        "no place",
    ),
    "wrong shape": (lambda d: edit_tensors(d, widen_first), "must have shape", "got (99, 2)"),
    "not finite": (lambda d: edit_tensors(d, poison_first), "every value must be finite", "NaN"),
    "other targets": (
        lambda d: edit_config(d, target_modules=["no_such_layer"]),
        "does not fit BertForSequenceClassification",
        "no_such_layer",
    ),
    "fewer targets": (
        lambda d: edit_config(d, target_modules=["query"]),
        "exactly this adapter's tensors; it holds",
        "no place",
    ),
}


@METHODS
@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_adapter_is_an_error_and_the_model_stays_as_it_was(method, fault, tmp_path):
    break_it, what, detail = FAULTS[fault]
    saved(tmp_path, method)
    break_it(tmp_path)
    model = bert()
    before, kinds = logits(model), [type(module) for module in model.modules()]
    with pytest.raises(CheckpointError) as caught:
        bridge.load(model, tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert what in message and detail in message, message
    assert [type(module) for module in model.modules()] == kinds
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(logits(model), before)
    assert not hasattr(model, "peft_config")


@METHODS
def test_a_broken_second_adapter_leaves_the_first(method, tmp_path):
    saved(tmp_path, method)
    edit_tensors(tmp_path, widen_first)
    model = bridge.wrap(bert(), method(), new_modules=["classifier"], task_type="SEQ_CLS")
    train(model, 1)
    before = logits(model)
    with pytest.raises(CheckpointError, match="must have shape"):
        bridge.load(model, tmp_path, adapter_name="second")
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model), before)
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_a_pickle_is_not_read(tmp_path):
    saved(tmp_path, lora)
    (tmp_path / WEIGHTS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(
        CheckpointError, match=r"adapter_model\.bin is a pickle, which ftrt does not"
    ):
        bridge.load(bert(), tmp_path)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="it does not exist"):
        bridge.load(bert(), tmp_path / "nowhere")


def test_options_that_the_method_refuses_are_an_error(tmp_path):
    saved(tmp_path, shift)
    edit_config(tmp_path, options={"size": "many"})
    with pytest.raises((ConfigError, ValueError), match="size"):
        bridge.load(bert(), tmp_path)


@BASES
def test_the_base_is_recognised_by_its_fingerprint(int8, tmp_path):
    expected = saved(tmp_path, shift, int8=int8)
    fingerprint = base_fingerprint(bert())
    write_run_info(tmp_path, {"base": {"fingerprint": fingerprint, "path": "./my-bert"}})
    assert torch.equal(logits(bridge.load(bert(int8=int8), tmp_path)), expected)
    other = bert(int8=int8, seed=1)
    with pytest.raises(CheckpointError) as caught:
        bridge.load(other, tmp_path)
    message = str(caught.value)
    assert "wrong base model" in message
    assert fingerprint[:16] in message and base_fingerprint(other)[:16] in message
    assert "./my-bert" in message


def test_a_base_of_another_size_is_an_error(tmp_path):
    saved(tmp_path, lora)
    model = copy.deepcopy(bert())
    model.bert.encoder.layer = model.bert.encoder.layer[:1]
    with pytest.raises(CheckpointError, match="no place for; the adapter belongs to another base"):
        bridge.load(model, tmp_path)


def test_dora_files_load_on_int8(tmp_path):
    saved(tmp_path, lora, dora=True)
    exact, rounded = bridge.load(bert(), tmp_path), bridge.load(bert(int8=True), tmp_path)
    expected = logits(exact)
    assert (logits(rounded) - expected).norm() / expected.norm() < 5e-2
    layers = [m for m in rounded.modules() if isinstance(m, Int8LoraLinear)]
    assert len(layers) == 13
    for mine, theirs in zip(
        layers, [m for m in exact.modules() if isinstance(m, FusedLoraLinear)], strict=True
    ):
        magnitude = theirs.lora_magnitude_vector["default"].weight
        assert torch.equal(mine.lora_magnitude_vector["default"].weight, magnitude)
