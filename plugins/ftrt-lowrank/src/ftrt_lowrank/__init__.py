"""Low-rank fine-tuning methods for ftrt, one module a method."""

__all__: list[str] = []
