"""Low-rank fine-tuning methods for ftrt; one module a method, found through the entry points of
the group `ftrt`.
"""

__all__: list[str] = []
