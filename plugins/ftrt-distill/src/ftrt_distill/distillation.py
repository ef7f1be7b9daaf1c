"""A whole distillation by name: labels and teacher in proportion."""

__all__ = ["Distillation", "register_recipes"]

from typing import Any, ClassVar, Literal

from pydantic import Field

from ftrt import PluginConfig, hookimpl

ftrt_hookspec = 1


class DistillationConfig(PluginConfig):
    """Options of the recipe `distillation`."""

    teacher: str = Field(description="A model folder, an ftrt run folder, or asset:NAME.")
    teacher_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    temperature: float = Field(2.0, gt=0)
    direction: Literal["forward", "reverse"] = "forward"
    weight: float = Field(0.5, ge=0, le=1, description="The teacher's share; labels get the rest.")
    hidden_weight: float = Field(
        0.0, ge=0, description="Weight of hidden_mse; the teacher must be as wide as the student."
    )


class Distillation:
    """(1 − weight) · task + weight · logit_kl + hidden_weight · hidden_mse.

    Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2: a weighted average of
    two objectives, the teacher's soft targets and the correct labels.
    """

    name: ClassVar[str] = "distillation"
    Config: ClassVar[type[PluginConfig]] = DistillationConfig

    @staticmethod
    def expand(config: DistillationConfig) -> dict[str, Any]:
        """The recipe's sections that this name stands for."""
        teacher = {"name": "online", "path": config.teacher, "dtype": config.teacher_dtype}
        losses: list[dict[str, Any]] = [
            {"name": "task", "weight": 1.0 - config.weight},
            {
                "name": "logit_kl",
                "weight": config.weight,
                "temperature": config.temperature,
                "direction": config.direction,
                "teacher": teacher,
            },
        ]
        if config.hidden_weight > 0:
            losses.append(
                {"name": "hidden_mse", "weight": config.hidden_weight, "teacher": teacher}
            )
        return {"losses": losses}


@hookimpl
def register_recipes() -> list[type[Any]]:
    """Offer `distillation`."""
    return [Distillation]
