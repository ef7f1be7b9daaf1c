"""Task heads for ftrt: sequence classification, causal language modelling, and a text transform."""

__all__: list[str] = []
