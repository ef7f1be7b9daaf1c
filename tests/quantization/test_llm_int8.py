"""LLM.int8 checkpoints, written here by hand, are read as they are, without bitsandbytes."""

import json

import pytest
import torch
import transformers
from loading_subjects import changed, same, write_model
from safetensors.torch import load_file

import ftrt
from ftrt.errors import CheckpointError, ConfigError, UnsupportedError
from ftrt.integrations import transformers as bridge
from ftrt.integrations.transformers_saving import save_llm_int8
from ftrt.quantization import Int8Linear
from ftrt.quantization.int8_layers import int8_layers
from ftrt.quantization.llm_int8 import layer_bytes, layer_tensors
from ftrt.recipe import QuantizationSection
from ftrt.runtime.base import quantize_base

KINDS = ["language model", "tied language model", "encoder", "classifier"]


def write_llm_int8(folder, kind="language model", keep=("lm_head", "pooler")):
    """A checkpoint as bitsandbytes writes it; what each layer's weight is, and the Auto class."""
    path, auto_class = write_model(folder, kind)
    weights = {}

    def convert(tensors):
        for name in [n for n in tensors if n.endswith(".weight") and tensors[n].dim() == 2]:
            layer = name.removesuffix(".weight")
            if "embed" in name or any(part in name for part in keep):
                continue
            absmax = tensors[name].abs().amax(dim=1)
            q = (tensors[name] * (127 / absmax[:, None])).round().to(torch.int8)
            tensors[name], tensors[f"{layer}.SCB"] = q, absmax
            tensors[f"{layer}.weight_format"] = torch.tensor(0, dtype=torch.uint8)
            weights[layer] = q.double() * absmax.double()[:, None] / 127

    changed(folder, convert)
    configure(folder, {"load_in_8bit": True, "quant_method": "bitsandbytes"})
    return path, auto_class, weights


def configure(folder, quantization):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_read_without_conversion(tmp_path, kind, dtype):
    path, auto_class, weights = write_llm_int8(tmp_path, kind)
    stored = load_file(tmp_path / "model.safetensors")
    model = bridge.load_model(path, auto_class, dtype=dtype)
    layers = int8_layers(model)
    assert len(layers) == len(weights)
    for name, layer in layers.items():
        # a classifier's backbone stands one module deeper than in the file
        key = next(k for k in weights if name.endswith(k))
        assert torch.equal(layer.qweight, stored[f"{key}.weight"])
        assert torch.equal(layer.scale[:, 0], stored[f"{key}.SCB"] / 127)
        torch.testing.assert_close(layer.dequantize().double(), weights[key], rtol=1e-6, atol=0)
        assert layer.float_dtype == getattr(torch, dtype) and layer.compute == "w8a16"
    assert not hasattr(model.config, "quantization_config")
    assert not any(p.is_meta for p in model.parameters())


def test_it_computes_what_the_dequantized_model_does(tmp_path):
    path, auto_class, _ = write_llm_int8(tmp_path)
    model = bridge.load_model(path, auto_class)
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        logits = model(tokens).logits
        ftrt.dequantize_linears(model)
        torch.testing.assert_close(logits, model(tokens).logits, rtol=1e-4, atol=1e-4)


def test_load_quantized_and_a_recipe_keep_int8_layers_and_convert_the_rest(tmp_path):
    path, auto_class, weights = write_llm_int8(tmp_path, keep=("lm_head", "down_proj"))
    expected = bridge.load_model(path, auto_class)
    assert set(int8_layers(expected)) == weights.keys()
    names = quantize_base(expected, QuantizationSection(compute="w8a8"), [])
    assert len(names) == len(weights) + 2
    assert {layer.compute for layer in int8_layers(expected).values()} == {"w8a8"}
    model = ftrt.load_quantized(path, auto_class, compute="w8a8")
    assert list(int8_layers(model)) == names and same(model, expected)


def test_what_stays_in_float_may_not_be_int8_in_the_checkpoint(tmp_path):
    path, auto_class, _ = write_llm_int8(tmp_path)
    with pytest.raises(ConfigError, match=r"layers\.0\.self_attn\.q_proj is int8 already"):
        ftrt.load_quantized(path, auto_class, skip=["q_proj"])
    with pytest.raises(ConfigError, match=r"keep their granularity; .* asks for 3"):
        ftrt.load_quantized(path, auto_class, "per_group", group_size=16)


def test_a_row_of_zeros_is_zero(tmp_path):
    path, auto_class, _ = write_llm_int8(tmp_path)

    def blank(tensors):
        tensors["model.layers.0.mlp.up_proj.SCB"][3] = 0
        tensors["model.layers.0.mlp.up_proj.weight"][3] = 5

    changed(tmp_path, blank)
    layer = bridge.load_model(path, auto_class).model.layers[0].mlp.up_proj
    assert layer.scale[3] == 1 and not layer.dequantize()[3].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("NAME.SCB"), r"row maxima beside it; .*up_proj\.SCB is missing"),
        (lambda t: t.update({"NAME.weight": t["NAME.weight"].float()}), r"int8; got F32 \(48, 32"),
        (lambda t: t.pop("NAME.weight"), r"up_proj\.weight must be int8; got none"),
        (
            lambda t: t["NAME.SCB"].__setitem__(2, float("nan")),
            r"be finite .* got 1 other",
        ),
        (lambda t: t["NAME.SCB"].__setitem__(2, -1.0), r"SCB must be finite and not negative"),
        (lambda t: t.update({"NAME.SCB": torch.ones(7)}), r"one value for each .* got 7 for \(48"),
        (lambda t: t["NAME.weight"].__setitem__(2, -128), r"within -127\.\.127; got -128"),
        (
            lambda t: t.update({"NAME.weight": t["NAME.weight"][:, :8].contiguous()}),
            r"up_proj\.weight is \(48, 8\) in the file, \(48, 32\) in the model",
        ),
    ],
)
def test_a_damaged_layer_is_named(tmp_path, change, message):
    path, auto_class, _ = write_llm_int8(tmp_path)
    name = "model.layers.1.mlp.up_proj"

    class Named(dict):
        """Writes NAME for the layer."""

        def __getitem__(self, key):
            return super().__getitem__(key.replace("NAME", name))

        def pop(self, key):
            return super().pop(key.replace("NAME", name))

        def update(self, items):
            super().update({k.replace("NAME", name): v for k, v in items.items()})

    def spoil(tensors):
        named = Named(tensors)
        change(named)
        tensors.clear()
        tensors.update(named)

    changed(tmp_path, spoil)
    with pytest.raises(CheckpointError, match=message):
        bridge.load_model(path, auto_class)


def test_another_layout_is_refused(tmp_path):
    path, auto_class, _ = write_llm_int8(tmp_path)
    name = "model.layers.1.mlp.up_proj.weight_format"
    changed(tmp_path, lambda tensors: tensors[name].fill_(2))
    with pytest.raises(UnsupportedError, match=f"{name} must be 0, row-major; got 2"):
        bridge.load_model(path, auto_class)


def test_four_bit_checkpoints_are_refused_by_config_and_by_content(tmp_path):
    path, auto_class, _ = write_llm_int8(tmp_path)
    four_bit = {"load_in_4bit": True, "quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4"}
    configure(tmp_path, four_bit)
    with pytest.raises(UnsupportedError, match="layers are nf4, 4 bits a weight.*8-bit one"):
        bridge.load_model(path, auto_class)
    configure(tmp_path, {"load_in_8bit": True})
    extra = "model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__fp4"
    changed(tmp_path, lambda tensors: tensors.update({extra: torch.zeros(3, dtype=torch.uint8)}))
    with pytest.raises(UnsupportedError, match="layers are fp4"):
        bridge.load_model(path, auto_class)


def test_a_config_that_promises_int8_is_held_to_it(tmp_path):
    path, auto_class = write_model(tmp_path, "language model")
    configure(tmp_path, {"load_in_8bit": True})
    with pytest.raises(CheckpointError, match="must hold int8 weights; they hold none"):
        bridge.load_model(path, auto_class)


def test_int8_layers_load_also_where_the_config_is_silent(tmp_path):
    path, auto_class, weights = write_llm_int8(tmp_path)
    configure(tmp_path, None)
    assert set(int8_layers(ftrt.load_quantized(path, auto_class))) == weights.keys()


def test_conv1d_layers_of_gpt2_load_too(tmp_path):
    """Their float weight stands transposed; in int8 it is (out_features, in_features)."""
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=32, n_layer=1, n_head=4, bos_token_id=1, eos_token_id=1
    )
    with torch.random.fork_rng(), bridge.quiet():
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config).eval()
        model.save_pretrained(tmp_path)
    tokens = torch.arange(6)[None]
    expected = model(tokens).logits

    def convert(tensors):
        for name in [n for n in tensors if "c_" in n and n.endswith(".weight")]:
            rows = tensors[name].T.contiguous()
            absmax = rows.abs().amax(dim=1)
            tensors[name] = (rows * (127 / absmax[:, None])).round().to(torch.int8)
            tensors[f"{name.removesuffix('.weight')}.SCB"] = absmax

    changed(tmp_path, convert)
    configure(tmp_path, {"load_in_8bit": True})
    loaded = bridge.load_model(str(tmp_path), "AutoModelForCausalLM")
    assert len(int8_layers(loaded)) == 4
    error = (loaded(tokens).logits - expected).norm() / expected.norm()
    assert error < 2e-2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [*KINDS, "experts", "tied decoder", "shared blocks"])
def test_a_saved_model_reads_back_bit_for_bit(tmp_path, kind, dtype):
    path, auto_class = write_model(tmp_path / "float", kind)
    torch.manual_seed(0)
    model = ftrt.load_quantized(path, auto_class, dtype=dtype)
    (tmp_path / "int8").mkdir()
    save_llm_int8(model, tmp_path / "int8", shard_bytes=20_000)
    assert len(list((tmp_path / "int8").glob("*.safetensors"))) > 1
    again = bridge.load_model(str(tmp_path / "int8"), auto_class, dtype=dtype)
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert config["dtype"] == dtype
    assert config["quantization_config"]["load_in_8bit"] is True


def test_scales_survive_the_format_exactly():
    """scale · 127 is rounded; SCB is the float32 whose 127th part is the scale."""
    torch.manual_seed(0)
    absmax = torch.cat([torch.rand(4000) * 10**k for k in range(-6, 7)])
    scale = (absmax / 127)[:, None]
    layer = Int8Linear.from_quantized(torch.ones(len(absmax), 4, dtype=torch.int8), scale)
    tensors = layer_tensors(layer)
    assert torch.equal(tensors["SCB"] / 127, scale[:, 0])
    assert layer_bytes(layer) == sum(tensor.nbytes for tensor in tensors.values())


def test_groups_have_no_place_in_the_format():
    layer = Int8Linear(8, 4, groups=2)
    with pytest.raises(UnsupportedError, match="one scale for each output feature; got 2 groups"):
        layer_tensors(layer)
