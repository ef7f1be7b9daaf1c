"""Reading the tensors of a model folder one by one, and what broken folders are told."""

import json

import pytest
import torch
from safetensors.torch import save_file

from ftrt.errors import CheckpointError
from ftrt.quantization.shards import Shards

FIRST = {"a": torch.arange(24, dtype=torch.float32).reshape(6, 4), "empty": torch.zeros(0, 3)}
SECOND = {"b": torch.ones(5, 3, dtype=torch.bfloat16) / 3, "flag": torch.tensor(7)}


@pytest.fixture
def folder(tmp_path):
    """Two shards and their index."""
    save_file(FIRST, tmp_path / "one.safetensors", metadata={"format": "pt"})
    save_file(SECOND, tmp_path / "two.safetensors")
    places = dict.fromkeys(FIRST, "one.safetensors") | dict.fromkeys(SECOND, "two.safetensors")
    write_index(tmp_path, {"metadata": {}, "weight_map": places})
    return tmp_path


def write_index(folder, tree):
    (folder / "model.safetensors.index.json").write_text(
        tree if isinstance(tree, str) else json.dumps(tree)
    )


def test_every_tensor_is_read_as_it_was_written(folder):
    shards = Shards(folder)
    assert sorted(shards.names()) == ["a", "b", "empty", "flag"]
    for name, tensor in {**FIRST, **SECOND}.items():
        read = shards.read(name)
        assert torch.equal(read, tensor) and read.dtype == tensor.dtype, name
        assert shards.shape(name) == tuple(tensor.shape)
    assert (shards.dtype("b"), shards.file("b").name) == ("BF16", "two.safetensors")
    assert "a" in shards and "c" not in shards


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (2, 5), (4, 99), (0, 6)])
def test_rows_are_read_alone(folder, start, stop):
    assert torch.equal(Shards(folder).read_rows("a", start, stop), FIRST["a"][start:stop])


def test_a_tensor_is_read_into_room_that_is_there(folder):
    room = torch.empty(40)
    read = Shards(folder).read("a", room)
    assert torch.equal(read, FIRST["a"]) and read.data_ptr() == room.data_ptr()


def test_one_file_alone_is_a_model_and_wins_over_an_index(folder):
    save_file({"c": torch.ones(2)}, folder / "model.safetensors")
    assert Shards(folder).names() == ["c"]


def test_what_is_read_outlives_the_file(folder):
    tensor = Shards(folder).read("a")
    (folder / "one.safetensors").write_bytes(b"")
    assert torch.equal(tensor, FIRST["a"])


def test_an_index_that_names_a_missing_file_says_which(folder):
    (folder / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json: .*two\.safetensors of 2 is missing"):
        Shards(folder)


def test_an_index_that_names_a_missing_tensor_says_which(folder):
    places = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    write_index(folder, {"weight_map": places | {"flag": "two.safetensors"}})
    with pytest.raises(CheckpointError, match=r"every tensor it lists must stand .* c does not"):
        Shards(folder)


@pytest.mark.parametrize("tree", ["{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_a_corrupt_index_is_named(folder, tree):
    write_index(folder, tree)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json: must"):
        Shards(folder)


def test_an_index_may_not_lead_out_of_the_folder(folder):
    write_index(folder, {"weight_map": {"a": "../one.safetensors"}})
    with pytest.raises(CheckpointError, match=r"files of its own folder; got '\.\./one"):
        Shards(folder)


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_a_file_that_is_cut_short_is_named(folder, kept):
    file = folder / "one.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"one\.safetensors: must be a whole safetensors"):
        Shards(folder)


def test_a_file_that_is_cut_short_later_is_named_with_the_tensor(folder):
    shards = Shards(folder)
    with (folder / "one.safetensors").open("r+b") as file:
        file.truncate(150)
    with pytest.raises(CheckpointError, match=r"one\.safetensors: tensor a must be whole"):
        shards.read("a")


def test_pickles_are_refused_with_what_to_do(tmp_path):
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, a pickle.*save_pretrained"):
        Shards(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="it holds neither"):
        Shards(tmp_path)


def test_a_dtype_that_torch_lacks_is_named(tmp_path):
    header = json.dumps({"odd": {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}})
    body = len(header).to_bytes(8, "little") + header.encode() + b"\0\0"
    (tmp_path / "model.safetensors").write_bytes(body)
    with pytest.raises(
        CheckpointError, match="odd must be of a dtype that ftrt reads; got F8_E8M0"
    ):
        Shards(tmp_path).read("odd")
