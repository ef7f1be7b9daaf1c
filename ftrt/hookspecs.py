"""The hooks a plugin implements, and when each one fires.

    manifest = plugins.discover()                     # reads metadata, imports nothing
    recipe   = recipe.load("recipe.yaml")             # names a method, a head, loss terms, ...
    for each name in the recipe:
        module = import the one plugin that offers it
        module.register_recipes()                     # first: a named recipe expands to sections
        module.register_methods() / register_heads() / register_losses()
              / register_signals() / register_transforms()
        module.register_kernels()                     # when one of its kernels is asked for
    model = load, transform rows, quantize, head, method, losses
    for each plugin this run imported:
        module.after_attach(run=run)                  # last word before training
    trainer.train()                                   # per-step events: TrainerCallback

A plugin module states the version of this file it was written for, `ftrt_hookspec = 1`, marks its
functions with `ftrt.hookimpl` and lists what it offers as entry points of the group `ftrt`,
`"method.NAME" = "module"`. The entry points are read without importing the module, so what is not
listed there cannot be found. `"method.PREFIX:*"` lists a family: all names PREFIX:NAME that the
module's hook returns.
"""

__all__ = ["HOOKS", "HOOKSPEC_VERSION", "KINDS", "PROJECT", "hookimpl"]

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from ftrt.api import Head, LossTerm, Method, SignalSource, Transform
    from ftrt.kernels import Kernel

PROJECT = "ftrt"
HOOKSPEC_VERSION = 1

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

# kind (the first half of an entry-point name) -> the hook that must deliver it
KINDS = {
    "method": "register_methods",
    "head": "register_heads",
    "loss": "register_losses",
    "signal": "register_signals",
    "recipe": "register_recipes",
    "transform": "register_transforms",
    "kernel": "register_kernels",
}


@hookspec
def register_methods() -> "list[type[Method]]":  # type: ignore[empty-body]
    """Return the fine-tuning methods this plugin offers (`ftrt.api.Method` classes)."""


@hookspec
def register_heads() -> "list[type[Head]]":  # type: ignore[empty-body]
    """Return the task heads this plugin offers (`ftrt.api.Head` classes)."""


@hookspec
def register_losses() -> "list[type[LossTerm]]":  # type: ignore[empty-body]
    """Return the loss terms this plugin offers (`ftrt.api.LossTerm` classes)."""


@hookspec
def register_signals() -> "list[type[SignalSource]]":  # type: ignore[empty-body]
    """Return the teacher signals this plugin offers (`ftrt.api.SignalSource` classes)."""


@hookspec
def register_recipes() -> "list[type[Any]]":  # type: ignore[empty-body]
    """Return named recipes: classes with `name`, `Config`, `expand(config) -> dict` of sections."""


@hookspec
def register_transforms() -> "list[type[Transform]]":  # type: ignore[empty-body]
    """Return the row transforms this plugin offers (`ftrt.api.Transform` classes)."""


@hookspec
def register_kernels() -> "list[Kernel]":  # type: ignore[empty-body]
    """Return the CUDA kernels this plugin ships (`ftrt.kernels.Kernel` objects)."""


@hookspec
def after_attach(run: Any) -> None:
    """Called once the model is ready and before training, with the `ftrt.Run`.

    Only plugins that the recipe named are called. The return value is ignored.
    """


HOOKS = (*KINDS.values(), "after_attach")
