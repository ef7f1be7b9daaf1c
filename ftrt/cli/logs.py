"""Log lines of ftrt on stderr while a command runs."""

__all__ = ["logs_to_stderr"]

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class PlainFormatter(logging.Formatter):
    """The message alone; from WARNING on with the level in front."""

    def format(self, record: logging.LogRecord) -> str:
        """One log line."""
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


@contextmanager
def logs_to_stderr(debug: bool) -> Iterator[None]:
    """Show what the logger `ftrt` says from INFO on, with `debug` from DEBUG on; then undo it."""
    logger = logging.getLogger("ftrt")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(name)s: %(message)s" if debug else "%(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
