"""Full fine-tuning for ftrt, found through the entry points of the group `ftrt`."""

__all__: list[str] = []
