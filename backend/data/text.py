"""Reads text files as people and programs write them, and splits them into lines."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import DataError
from ..text import json_text

# Marks at the start of a file that is not UTF-8; the longer ones first.
_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}  # fmt: skip
_OTHERS = {
    "cp1252": "Windows-1252", "cp1251": "Windows-1251", "shift_jis": "Shift-JIS", "gbk": "GBK",
    "euc_kr": "EUC-KR",
}  # fmt: skip
_LINE_END = re.compile(r"\r\n|\r|\n")


def read_text(path: Path) -> str:
    """Read UTF-8 with or without a byte order mark; the error names what else it seems to be."""
    try:
        data = json_text.read_bounded(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > json_text.LONGEST:
        raise DataError(f"{path}: is longer than {json_text.LONGEST >> 20} MiB")
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            raise _other(path, f"it begins like {name}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        names = [name for codec, name in _OTHERS.items() if _decodes(data, codec)]
        maybe = f"; it may be {' or '.join(names)}" if names else ""
        where = f"byte 0x{data[error.start]:02x} in line {line}"
        raise _other(path, f"{where}{maybe}") from None
    if "\0" in text:
        raise _other(path, "it holds NUL bytes, as UTF-16 or data that is not text do")
    return text


def lines_of(text: str) -> list[str]:
    """Split at line feeds and carriage returns only: U+2028, U+0085 and the like, at which
    `str.splitlines` splits too, occur within captions and JSON."""
    lines = _LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


def _decodes(data: bytes, codec: str) -> bool:
    try:
        data.decode(codec)
    except UnicodeDecodeError:
        return False
    return True


def _other(path: Path, why: str) -> DataError:
    return DataError(f"{path}: is not UTF-8 text; save it as UTF-8 ({why})")
