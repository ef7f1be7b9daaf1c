"""torch.compile for the blocks of a transformer: one compilation serves all of them."""

__all__ = ["CompiledBlocks", "check_compile", "compile_blocks"]

import inspect
import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from ftrt.errors import ConfigError, UnsupportedError
from ftrt.integrations.transformers import first_line

logger = logging.getLogger(__name__)

# A block is compiled once for each of: input with gradient (all but the first) or without, padding
# in the batch or none, one row or several. These are all; torch gives up above its limit of 8.
_VARIANTS = 8


@dataclass(frozen=True)
class CompiledBlocks:
    """The blocks that run compiled in training mode.

    Attributes:
        count: how many.
    """

    count: int
    _blocks: tuple[nn.Module, ...] = field(repr=False, compare=False, default=())

    def remove(self) -> None:
        """Let the blocks run as Python again."""
        for block in self._blocks:
            block._compiled_call_impl = None


def check_compile(training: Mapping[str, Any]) -> None:
    """Refuse `compile: true` where torch.compile cannot make CPU code, or would run twice.

    Args:
        training: the recipe's `training:`.

    Raises:
        ConfigError: there is no C++ compiler, by the name that was looked for; or the Trainer is
            asked to compile the whole model as well.
    """
    if training.get("torch_compile"):
        raise ConfigError(
            "recipe: compile: compiles the blocks, and training.torch_compile the whole model; got"
            " both. Remove training.torch_compile"
        )
    if torch.cuda.is_available():
        return
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name) is None:
        raise ConfigError(
            "recipe: compile: needs a C++ compiler on PATH, which torch.compile calls during the"
            f" first steps; got {name!r}, which is not there. Install g++, name one in CXX, or set"
            " compile: false"
        )


def compile_blocks(model: nn.Module, *, backend: str = "inductor") -> CompiledBlocks:
    """Compile the transformer blocks of `model` for training, in place, when they first run.

    Each block is compiled by itself, with the number of tokens and rows left open. All blocks share
    what is compiled, so its cost does not grow with their number, and batches of new lengths cost
    nothing. What stands outside the blocks (embedding, output layer, loss, module hooks of the
    whole model) runs as before, and so do the blocks in evaluation mode. Names of weights do not
    change.

    Args:
        model: a transformers model or a `PeftModel` on one, adapted already.
        backend: torch.compile's.

    Raises:
        UnsupportedError: no lists of blocks are found.
        ConfigError: later, in the first training step, where the compiler fails.
    """
    blocks = _blocks(model)
    for block in blocks:
        block._compiled_call_impl = _training_call(block, backend)
    logger.info("compile: %d blocks, when training first reaches them", len(blocks))
    return CompiledBlocks(len(blocks), blocks)


def _training_call(block: nn.Module, backend: str) -> Callable[..., Any]:
    # newer torch only; where it is absent the limit is 8 anyway
    has_limit = "recompile_limit" in inspect.signature(torch.compile).parameters
    limit: dict[str, Any] = {"recompile_limit": _VARIANTS} if has_limit else {}
    plain: Callable[..., Any] = block._call_impl
    compiled = torch.compile(plain, dynamic=True, backend=backend, **limit)

    def call(*args: Any, **kwargs: Any) -> Any:
        # evaluation would add as many variants again, for a fraction of the run
        runs_compiled = block.training and torch.is_grad_enabled()
        if not runs_compiled:
            return plain(*args, **kwargs)
        try:
            return compiled(*args, **kwargs)
        except BackendCompilerFailed as error:
            cause = error.inner_exception
            raise ConfigError(
                "recipe: compile: the blocks must compile on this machine; got"
                f" {type(cause).__name__}: {first_line(cause)}. Mend the compiler, which CXX may"
                " name, or set compile: false"
            ) from error

    return call


def _blocks(model: nn.Module) -> tuple[nn.Module, ...]:
    """The members of every list of modules that has as many as the model has layers."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    names = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers")
    counts = {getattr(part, name, None) for part in (config, text) for name in names} - {None, 0}
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) in counts]
    # a list inside a block (experts, say) may have as many members by chance
    inside = {id(m) for block in lists for child in block for m in child.modules()}
    blocks = tuple(child for block in lists if id(block) not in inside for child in block)
    if not blocks:
        raise UnsupportedError(
            "compile: needs a model with a list of as many blocks as its config has layers;"
            f" {type(model).__name__} has none; set compile: false"
        )
    return blocks
