"""JSON lines, and JSON files that hold one list of objects."""

__all__ = ["read_json_lines", "read_json_list"]

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from ftrt.data.rows import BadRows, Origin, Row
from ftrt.errors import DataError

OBJECT = "a line must be one JSON object"
RECORD = "a record must be a JSON object"
UNICODE = "text must be valid Unicode"
TOO_DEEP = "values nested too deeply"
# how deep is too deep for `json` depends on the Python; far below any of them, far above any data
MAX_DEPTH = 100
BOM = b"\xef\xbb\xbf"
KINDS = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


def read_json_lines(path: Path, bad: BadRows) -> Iterator[Row]:
    """The rows of a file with one JSON object a line; blank lines are passed over."""
    with path.open("rb") as file:
        offset = 0
        for number, raw in enumerate(file, 1):
            row = _parse_line(raw, offset, Origin(str(path), number), bad)
            if row is not None:
                yield row
            offset += len(raw)


def read_json_list(path: Path, bad: BadRows) -> Iterator[Row]:
    """The rows of a JSON file that holds one list of objects."""
    text = _whole_text(path)
    try:
        records = _loads(text)
    except json.JSONDecodeError as error:
        got = _describe(error, text)
        hint = "; one object a line belongs in a .jsonl file" if text[:1] == "{" else ""
        raise DataError(
            f"{path}:{error.lineno}: the file must hold one JSON list of objects; got {got}{hint}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: the file must hold one JSON list; got {_reason(error)}") from None
    if not isinstance(records, list):
        hint = "; one object a line belongs in a .jsonl file" if isinstance(records, dict) else ""
        got = _kind(records)
        raise DataError(f"{path}: the file must hold one JSON list of objects; got {got}{hint}")
    escaped = "\\u" in text
    for number, record in enumerate(records, 1):
        row = _checked(record, Origin(str(path), number, "row"), RECORD, bad, escaped=escaped)
        if row is not None:
            yield row


def _whole_text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError:
        must, got = byte_fault(raw, 0) or ("text must be UTF-8", "other bytes")
        raise DataError(f"{path}: {must}; got {got}; save the file as UTF-8") from None


def _parse_line(raw: bytes, offset: int, origin: Origin, bad: BadRows) -> Row | None:
    fault = byte_fault(raw, offset)
    if fault:
        bad.add(origin, *fault)
        return None
    text = raw.removeprefix(BOM if offset == 0 else b"").decode("utf-8").strip()
    if not text:
        return None
    try:
        record = _loads(text)
    except json.JSONDecodeError as error:
        bad.add(origin, OBJECT, _describe(error, text))
        return None
    except (ValueError, RecursionError) as error:
        bad.add(origin, OBJECT, _reason(error))
        return None
    return _checked(record, origin, OBJECT, bad, escaped="\\u" in text)


def byte_fault(raw: bytes, offset: int) -> tuple[str, str] | None:
    """(what must hold, what was found) where bytes that start at `offset` are not UTF-8 text."""
    if b"\0" not in raw and raw.isascii():
        return None
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"byte 0x{raw[error.start]:02x} at offset {offset + error.start} of the file"
        utf16 = offset == 0 and raw[:2] in (b"\xff\xfe", b"\xfe\xff")
        return "text must be UTF-8", place + (", which is how UTF-16 starts" if utf16 else "")
    if b"\0" in raw:
        return "text must not hold NUL bytes", f"one at offset {offset + raw.index(0)} of the file"
    return None


def _checked(record: Any, origin: Origin, must: str, bad: BadRows, *, escaped: bool) -> Row | None:
    if not isinstance(record, dict):
        bad.add(origin, must, _kind(record))
        return None
    if escaped and not _is_encodable(record):
        bad.add(origin, UNICODE, "half of a surrogate pair, written \\ud800 to \\udfff")
        return None
    return Row(record, origin)


def _is_encodable(record: dict[str, Any]) -> bool:
    # only an escape can smuggle a lone surrogate past the UTF-8 check; tokenizers choke on it
    try:
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _loads(text: str) -> Any:
    value = json.loads(text, parse_constant=_refuse_constant)
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise ValueError(TOO_DEEP)
    return value


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value] if isinstance(value, (list, dict)) else []
    for _ in range(limit):
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [item for items in inner for item in items if isinstance(item, (list, dict))]
        if not level:
            return False
    return True


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant}, which is not JSON; write null")


def _describe(error: json.JSONDecodeError, text: str) -> str:
    cut_off = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
    start = "JSON that is cut off" if cut_off else "text that is not JSON"
    return f"{start} ({error.msg} at column {error.colno})"


def _reason(error: ValueError | RecursionError) -> str:
    return TOO_DEEP if isinstance(error, RecursionError) else str(error)


def _kind(value: Any) -> str:
    return KINDS.get(type(value), "an object" if isinstance(value, dict) else "a number")
