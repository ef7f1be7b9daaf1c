"""A model under torch's DistributedDataParallel, in a group of one process."""

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import ftrt
from ftrt.nn import Int8Linear
from ftrt.quantization.distributed import keep_out_of_ddp

RECIPE = {
    "quantization": {"dtype": "int8"},
    "method": {"name": "lora", "rank": 2, "targets": ["0", "2"]},
}


@pytest.fixture(autouse=True)
def group(tmp_path):
    store = f"file://{tmp_path / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def float_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))


def attached():
    return ftrt.attach(float_model(), RECIPE).model


def test_the_int8_base_is_not_sent_at_each_step():
    model = attached()
    int8 = {id(b) for m in model.modules() if isinstance(m, Int8Linear) for b in m.buffers()}
    assert len(int8) >= 4

    wrapped = DistributedDataParallel(model)

    sent = {id(buffer) for buffer in wrapped.modules_buffers}
    assert not int8 & sent
    # buffers that do change in training are sent as before
    assert sent == {
        id(b) for m in model.modules() if isinstance(m, nn.BatchNorm1d) for b in m.buffers()
    }


def test_the_adapters_train():
    wrapped = DistributedDataParallel(attached())
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.1)
    x, target = torch.randn(32, 8), torch.randn(32, 4)
    losses = []
    for _ in range(5):
        loss = nn.functional.mse_loss(wrapped(x), target)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_what_was_kept_out_before_stays_out():
    model = attached()
    name = next(n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm1d))
    norm = model.get_submodule(name)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        model, [f"{name}.running_mean"]
    )

    keep_out_of_ddp(model)

    sent = {id(buffer) for buffer in DistributedDataParallel(model).modules_buffers}
    assert id(norm.running_mean) not in sent and id(norm.running_var) in sent
    assert sent == {id(norm.running_var), id(norm.num_batches_tracked)}
