"""The sections of a recipe: which keys there are, what each holds, and its default.

Sections that name a plugin keep the plugin's own keys beside `name`; the registry validates those
against the plugin's `Config` once the plugin is known.
"""

__all__ = [
    "CalibrationSection",
    "DataSection",
    "EarlyStoppingSection",
    "LossSection",
    "ModelSection",
    "PluginSection",
    "QuantizationSection",
    "Recipe",
    "ScheduleSection",
    "Section",
]

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Split = str | int | None


class Section(BaseModel):
    """A part of the recipe whose keys are all known here; "8" is no number and 1 is not true."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PluginSection(BaseModel):
    """A part that names a plugin; the remaining keys are the plugin's options."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)
    name: str = Field(min_length=1)

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the plugin's `Config`."""
        return dict(self.__pydantic_extra__ or {})

    @model_validator(mode="before")
    @classmethod
    def _name_alone_is_no_section(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(f"must be a mapping with a name; write {{name: {value}}}")
        return value


class ModelSection(Section):
    """Which pretrained model to start from."""

    path: str = Field(description="A transformers model folder, an ftrt run folder, or asset:NAME.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Dtype of the float weights."
    )
    layers: list[int] | None = Field(
        default=None,
        description="Keep only these transformer blocks, in this order (a shallower student).",
    )
    config: dict[str, Any] = Field(
        default={},
        description="Values of the model's own config to change, say attention_probs_dropout_prob.",
    )


class CalibrationSection(Section):
    """How w8a8 layers are measured before training, and when one falls back to w8a16."""

    sequences: int = Field(
        default=128, ge=1, le=128, description="Training rows that are used, at most 128."
    )
    max_error: float = Field(
        default=0.02, gt=0, le=1, description="Relative error above which a layer computes w8a16."
    )
    max_gradient_error: float = Field(
        default=0.045, gt=0, le=1, description="The same for the gradient; cosine 0.999."
    )
    max_outliers: int = Field(
        default=16, ge=0, le=128, description="Input columns that a layer may compute in float."
    )


class QuantizationSection(Section):
    """Turns the frozen linear layers into int8."""

    dtype: Literal["int8"] = "int8"
    compute: Literal["w8a16", "w8a8"] = Field(
        default="w8a16",
        description="Float activations, or int8 ones in the layers that calibration finds fit.",
    )
    calibration: CalibrationSection = CalibrationSection()
    granularity: Literal["per_channel", "per_group"] = Field(
        default="per_channel",
        description="One scale per output feature, or per group of input features.",
    )
    group_size: int | None = Field(
        default=None, ge=1, description="Input features per scale; per_group only."
    )
    skip: list[str] = Field(
        default=[], description="Names, or last parts of names, of layers to leave in float."
    )

    @model_validator(mode="after")
    def _group_size_fits(self) -> Self:
        if (self.granularity == "per_group") != (self.group_size is not None):
            raise ValueError("group_size must be given with granularity: per_group, and only then")
        return self

    @model_validator(mode="after")
    def _compute_fits(self) -> Self:
        if self.compute == "w8a8" and self.granularity != "per_channel":
            raise ValueError(
                "compute: w8a8 must have granularity: per_channel, one scale per output feature;"
                f" got {self.granularity}. Remove it, or compute w8a16"
            )
        return self


class ScheduleSection(Section):
    """How a loss weight moves: from `start` to `end` times the weight over `fraction` of a run."""

    kind: Literal["linear", "cosine"]
    start: float = Field(default=1.0, ge=0)
    end: float = Field(default=0.0, ge=0)
    fraction: float = Field(default=1.0, gt=0, le=1)


class LossSection(PluginSection):
    """A loss term and its weight; a distillation term has a teacher.

    The name `task` is the student's own loss.
    """

    weight: float = Field(default=1.0, ge=0)
    schedule: ScheduleSection | None = None
    teacher: PluginSection | None = None

    @field_validator("teacher", mode="before")
    @classmethod
    def _path_is_online_teacher(cls, value: Any) -> Any:
        return {"name": "online", "path": value} if isinstance(value, str) else value


class DataSection(Section):
    """Where rows come from and how they are split."""

    train: str | None = Field(
        default=None, description="jsonl, csv or parquet file, or asset:NAME."
    )
    validation: Split = Field(
        default="10%", description="A file, a share of train such as 10%, or a row count."
    )
    test: Split = Field(
        default=None, description="A file, a share, or a row count; never shares a text with train."
    )
    columns: dict[str, str] = Field(
        default={}, description="The head's column -> the file's column."
    )
    where: dict[str, str | int] = Field(
        default={}, description="Keep only rows whose columns equal these values."
    )
    limit: int | None = Field(
        default=None, ge=1, description="Use at most this many training rows (after the splits)."
    )
    max_length: int = Field(
        default=256, ge=4, description="Tokens per example; longer ones are cut and counted."
    )
    on_bad_row: Literal["raise", "skip"] = "raise"
    transforms: list[PluginSection] = []
    seed: int = 0


class EarlyStoppingSection(Section):
    """Stop when the validation metric has not improved."""

    patience: int = Field(ge=1, description="Evaluations without improvement before stopping.")
    min_delta: float = Field(default=0.0, ge=0)


class Recipe(Section):
    """A whole run.

    `attach` uses quantization, method, head, losses, chunked_loss and compile; the rest is
    for `train`.
    """

    recipe: PluginSection | None = Field(
        default=None, description="A named recipe of a plugin; other keys override it."
    )
    model: ModelSection | None = None
    quantization: QuantizationSection | None = None
    method: PluginSection | None = None
    head: PluginSection | None = None
    losses: list[LossSection] = []
    chunked_loss: bool = Field(
        default=True,
        description="Compute a language model's loss without holding all logits, where it can be.",
    )
    compile: bool = Field(
        default=False, description="Run the transformer blocks through torch.compile in training."
    )
    data: DataSection = DataSection()
    training: dict[str, Any] = Field(
        default={}, description="Any field of transformers.TrainingArguments."
    )
    early_stopping: EarlyStoppingSection | None = None
    baseline: bool = Field(
        default=False, description="Also measure the held-out split before training."
    )
    output: str | None = Field(default=None, description="The run folder.")
    seed: int = 0

    @field_validator("losses")
    @classmethod
    def _loss_names_once(cls, value: list[LossSection]) -> list[LossSection]:
        names = [section.name for section in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"each loss term may stand once; {name!r} stands {names.count(name)} times"
                )
        return value
