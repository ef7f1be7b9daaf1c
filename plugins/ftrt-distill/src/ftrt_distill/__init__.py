"""Knowledge distillation for ftrt: loss terms, a teacher in memory, and a named recipe."""

__all__: list[str] = []
