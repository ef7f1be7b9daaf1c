"""How many weights share one scale."""

__all__ = ["Granularity", "PerChannel", "PerGroup", "parse_granularity"]

from dataclasses import dataclass

from ftrt.errors import ConfigError, suggest


@dataclass(frozen=True)
class PerChannel:
    """One scale per output feature: LLM.int8's row-wise weight format."""

    def groups(self, in_features: int) -> int:
        """Scales in a row of `in_features` weights."""
        return 1


@dataclass(frozen=True)
class PerGroup:
    """One scale per `group_size` neighbouring input features of an output feature."""

    group_size: int

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ConfigError(f"PerGroup: group_size must be at least 1; got {self.group_size}")

    def groups(self, in_features: int) -> int:
        """Scales in a row of `in_features` weights.

        Raises:
            ConfigError: group_size does not divide in_features.
        """
        if in_features % self.group_size:
            raise ConfigError(
                f"group_size must divide in_features; got group_size {self.group_size},"
                f" in_features {in_features}"
            )
        return in_features // self.group_size


Granularity = PerChannel | PerGroup


def parse_granularity(granularity: Granularity | str, group_size: int | None = None) -> Granularity:
    """The granularity a recipe means by "per_channel", or "per_group" with a group_size.

    Raises:
        ConfigError: another name, a group_size that is missing, or one that has no use.
    """
    if granularity == "per_group":
        if group_size is None:
            raise ConfigError("per_group: group_size must be given; got None")
        return PerGroup(group_size)
    if group_size is not None:
        raise ConfigError(
            f"group_size: must be given with granularity 'per_group' only; got {group_size} with"
            f" {granularity!r}"
        )
    if granularity == "per_channel":
        return PerChannel()
    if isinstance(granularity, str):
        known = ("per_channel", "per_group")
        raise ConfigError(
            f"granularity: must be one of {', '.join(known)}; got {granularity!r}"
            f"{suggest(granularity, known)}"
        )
    return granularity
