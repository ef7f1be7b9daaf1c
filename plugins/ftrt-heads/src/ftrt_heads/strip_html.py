"""Remove HTML mark-up from text columns."""

__all__ = ["StripHtml", "register_transforms"]

import html
import re
from typing import Any, ClassVar

from pydantic import Field

from ftrt import PluginConfig, Transform, hookimpl
from ftrt.errors import DataError, suggest

ftrt_hookspec = 1

_INVISIBLE = re.compile(r"<!--.*?-->|<(script|style)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
# a letter or slash must follow "<", so that "a < b" and "<3" are text
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|<![A-Za-z][^<>]*>")
_SPACES = re.compile(r"[ \t\u00a0]+")


class StripHtmlConfig(PluginConfig):
    """Options of `strip_html`."""

    columns: list[str] = Field(["text"], min_length=1, description="The columns to clean.")


class StripHtml(Transform):
    """Tags become a space, entities their characters, runs of spaces one space."""

    name: ClassVar[str] = "strip_html"
    Config: ClassVar[type[PluginConfig]] = StripHtmlConfig

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A copy of the row with its text columns cleaned; an empty value stays empty.

        Raises:
            DataError: the row has no such column, or it holds something other than text.
        """
        cleaned = dict(row)
        for column in self.config.columns:
            if column not in row:
                raise DataError(
                    f"transform 'strip_html': column {column!r} must be in the row"
                    f"{suggest(column, row)}"
                )
            value = row[column]
            if value is not None and not isinstance(value, str):
                raise DataError(
                    f"transform 'strip_html': column {column!r} must hold text; got"
                    f" {type(value).__name__} {value!r}"
                )
            cleaned[column] = None if value is None else strip_html(value)
        return cleaned


def strip_html(text: str) -> str:
    """`text` without tags, comments, scripts and styles, its entities unescaped."""
    plain = html.unescape(_TAG.sub(" ", _INVISIBLE.sub(" ", text)))
    return _SPACES.sub(" ", plain).strip()


@hookimpl
def register_transforms() -> list[type[Transform]]:
    """Offer `strip_html`."""
    return [StripHtml]
