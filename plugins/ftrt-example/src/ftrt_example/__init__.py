"""The method `example` for ftrt."""
