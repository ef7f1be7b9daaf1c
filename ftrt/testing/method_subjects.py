"""What method claims are about: a method on a model, attached, trained, saved and read back."""

__all__ = ["AdapterSubject", "ModelSubject", "Subject", "TrainingRun", "subject_of"]

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load, load_model, save, save_model
from torch import Tensor, nn

from ftrt.api import LinearMethod, Method, ModelMethod
from ftrt.integrations import peft as peft_bridge
from ftrt.integrations.peft_config import TASK_MODULES
from ftrt.quantization.choices import Compute
from ftrt.quantization.convert import quantize_linears
from ftrt.testing.toy_model import batch_for, loss_of, outputs_of

LEARNING_RATE = 1e-2
# Seeds that differ wherever a method might otherwise get the same random numbers by luck.
BUILD_SEED, RELOAD_SEED, STEP_SEED = 100, 200, 300


@dataclass
class TrainingRun:
    """A model under training with its optimizer; `steps` have been taken of `total_steps`."""

    model: nn.Module
    method: Method
    optimizer: torch.optim.Optimizer
    batch: Tensor
    total_steps: int
    steps: int = 0

    def train(self, steps: int) -> None:
        """Take `steps` steps, each from a seed of its own, as a resumed Trainer does."""
        self.model.train()
        for _ in range(steps):
            torch.manual_seed(STEP_SEED + self.steps)
            loss_of(self.model, self.batch).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.steps += 1
            self.method.on_step(self.model, self.steps, self.total_steps)
            self.optimizer.zero_grad()


@dataclass(frozen=True)
class Subject(ABC):
    """One method class with its options, and the model it is tried on, which stays untouched."""

    method_class: type[Method]
    options: Mapping[str, Any]
    model: nn.Module
    task_type: str | None = None

    @property
    def batch(self) -> Tensor:
        """Token ids (batch, tokens)."""
        return batch_for(self.model)

    def method(self) -> Method:
        """A fresh method object."""
        return self.method_class(self.method_class.Config.model_validate(dict(self.options)))

    def base(
        self,
        *,
        int8: bool = False,
        compute: Compute = "w8a16",
        dtype: torch.dtype | None = None,
    ) -> nn.Module:
        """A fresh copy of the base in eval mode; `compute` is how its int8 layers do."""
        base = copy.deepcopy(self.model).eval()
        if dtype is not None:
            base = base.to(dtype)
        if int8:
            # a task's own modules are trained whole, which int8 cannot be
            whole = TASK_MODULES.get(self.task_type or "", ())
            skip = [name for name in whole if hasattr(base, name)]
            quantize_linears(base, "per_channel", skip, compute=compute)
        return base

    @abstractmethod
    def attach(self, base: nn.Module, method: Method) -> nn.Module:
        """Put the method on `base` and return what trains."""

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None:
        """Write what training changed."""

    @abstractmethod
    def reload(
        self, base: nn.Module, folder: Path, *, trainable: bool = False
    ) -> tuple[nn.Module, Method]:
        """Read it back onto a fresh base, as another process would."""

    def attached(self, base: nn.Module | None = None) -> tuple[nn.Module, Method]:
        """The method on a fresh base (or on `base`), before any step, in eval mode."""
        torch.manual_seed(BUILD_SEED)
        method = self.method()
        return self.attach(base if base is not None else self.base(), method).eval(), method

    def hand_over(
        self, model: nn.Module, method: Method, again: nn.Module, again_method: Method
    ) -> None:
        """Give the resumed method what the interrupted one would have left in a checkpoint."""
        state = method.training_state(model)
        if state:
            whole = {name: tensor.detach().contiguous() for name, tensor in state.items()}
            again_method.load_training_state(again, load(save(whole)))

    def run(self, model: nn.Module, method: Method, total_steps: int) -> TrainingRun:
        """A training run that has not started."""
        groups = method.param_groups(model)
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(groups if groups is not None else trainable, lr=LEARNING_RATE)
        return TrainingRun(model, method, optimizer, self.batch, total_steps)

    def trained(self, steps: int, base: nn.Module | None = None) -> tuple[nn.Module, Method]:
        """The method on a base after `steps` steps, in eval mode."""
        model, method = self.attached(base)
        self.run(model, method, steps).train(steps)
        return model.eval(), method

    def outputs(self, model: nn.Module) -> Tensor:
        """The model's logits on the batch, without gradient."""
        with torch.no_grad():
            return outputs_of(model, self.batch)


class AdapterSubject(Subject):
    """A method that becomes a `PeftModel`."""

    def attach(self, base: nn.Module, method: Method) -> nn.Module:
        """Wrap `base` as a `PeftModel`."""
        return peft_bridge.wrap(base, method, task_type=self.task_type)

    def save(self, model: nn.Module, folder: Path) -> None:
        """PEFT's adapter files."""
        model.save_pretrained(folder)  # type: ignore[operator]

    def reload(
        self, base: nn.Module, folder: Path, *, trainable: bool = False
    ) -> tuple[nn.Module, Method]:
        """Read PEFT's adapter files; the method need not be installed as a plugin."""
        torch.manual_seed(RELOAD_SEED)
        method = self.method()
        by_object = method if isinstance(method, LinearMethod) else None
        model = peft_bridge.load(base, folder, is_trainable=trainable, method=by_object)
        return model, method


class ModelSubject(Subject):
    """A method that trains the model's own parameters."""

    def attach(self, base: nn.Module, method: Method) -> nn.Module:
        """Let the method choose what trains."""
        cast(ModelMethod, method).prepare(base, [])
        return base

    def save(self, model: nn.Module, folder: Path) -> None:
        """The whole model."""
        save_model(model, str(folder / "model.safetensors"))

    def reload(
        self, base: nn.Module, folder: Path, *, trainable: bool = False
    ) -> tuple[nn.Module, Method]:
        """Read the whole model, then let the method choose what trains."""
        torch.manual_seed(RELOAD_SEED)
        load_model(base, folder / "model.safetensors")
        method = self.method()
        return self.attach(base, method), method


def subject_of(
    method_class: type[Method],
    options: Mapping[str, Any] | None,
    model: nn.Module,
    task_type: str | None = None,
) -> Subject:
    """The subject that fits the method's contract."""
    kind = ModelSubject if issubclass(method_class, ModelMethod) else AdapterSubject
    return kind(method_class, dict(options or {}), model, task_type)
