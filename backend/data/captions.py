"""Captions of an image folder: tables (Hugging Face imagefolder) and text files (kohya)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..text import json_text
from .file_names import FileNames
from .text import lines_of, read_text

CAPTION_SUFFIXES = (".txt", ".caption")
METADATA = ("metadata.jsonl", "metadata.csv")
CAPTION_COLUMNS = ("text", "caption", "prompt")
FILE_COLUMN = "file_name"
_SHOWN = 100  # names in a message


def listed(names: Iterable[str]) -> str:
    """Format names for a message: up to a hundred, then how many more."""
    names = list(names)
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def is_table(path: Path) -> bool:
    return path.name.lower() in METADATA


def table_captions(folder: Path, tables: Iterable[Path], names: FileNames) -> dict[Path, str]:
    """Return captions by path, from every table of the set; empty where a row has none."""
    captions: dict[Path, str] = {}
    absent: list[str] = []
    twice: list[str] = []
    seen: set[Path] = set()
    for table in tables:
        if table.parent in seen:
            raise DataError(f"{table.parent}: has both {' and '.join(METADATA)}; keep one of them")
        seen.add(table.parent)
        base = table.parent.relative_to(folder).as_posix()
        for where, row in _rows(table):
            file_name = row.get(FILE_COLUMN)
            if not isinstance(file_name, str) or not file_name:
                raise DataError(f"{where}: has no `{FILE_COLUMN}`")
            path = names.find_written(file_name, base)
            if path is None:
                absent.append(file_name)
            elif path in captions:
                twice.append(file_name)
            else:
                captions[path] = _caption(row, where)
    if absent:
        raise DataError(
            f"image set {folder}: its metadata names {len(absent)} absent files: "
            f"{listed(absent)}; remove the rows, or bring the files back"
        )
    if twice:
        raise DataError(
            f"image set {folder}: its metadata names {len(twice)} files more than once: "
            f"{listed(twice)}; keep one row each"
        )
    return captions


def find_sidecar(name: str, names: FileNames, stems: set[str]) -> Path | None:
    """Return the caption file of an image. stems: of all images; a file that belongs exactly to
    another of them is not taken for a name that differs in case."""
    stem = name.rpartition(".")[0]
    for suffix in CAPTION_SUFFIXES:
        found = names.by_name.get(stem + suffix)
        if found is not None:
            return found
    for suffix in CAPTION_SUFFIXES:
        found = names.find(stem + suffix)
        if found is not None and names.name_of(found).rpartition(".")[0] not in stems:
            return found
    return None


def sidecar_caption(file: Path) -> str:
    """Return the first line of a caption file that is not empty; empty if there is none."""
    lines = (line.strip() for line in lines_of(read_text(file)))
    return next((line for line in lines if line), "")


def _rows(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row of a table with its location for messages."""
    text = read_text(table)
    if table.suffix.lower() == ".csv":
        yield from _csv_rows(table, text)
        return
    for number, line in enumerate(lines_of(text), start=1):
        if not line.strip():
            continue
        where = f"{table}, line {number}"
        try:
            row = json_text.loads(line)
        except json_text.JsonError as error:
            raise DataError(f"{where}: is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: is a {type(row).__name__}, not an object in braces")
        yield where, row


def _csv_rows(table: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        columns = [name.strip().lower() for name in next(reader, [])]
        if len(set(columns)) < len(columns):
            raise DataError(f"{table}, line 1: names a column twice")
        for fields in reader:
            where = f"{table}, line {reader.line_num}"
            if not fields:
                continue
            if FILE_COLUMN not in columns:
                raise DataError(
                    f"{where}: has no `{FILE_COLUMN}`; the first line must name the columns, "
                    f"separated by commas, and is {', '.join(columns)!r}"
                )
            if len(fields) > len(columns):
                raise DataError(
                    f"{where}: has {len(fields)} fields for {len(columns)} columns; put a text "
                    'with commas in quotes: a.png,"1girl, red hair"'
                )
            yield where, dict(zip(columns, fields, strict=False))
    except csv.Error as error:
        raise DataError(f"{table}: is not a CSV table ({error})") from error


def _caption(row: dict[str, Any], where: str) -> str:
    for column in CAPTION_COLUMNS:
        value = row.get(column)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: `{column}` is {value!r}, not a text")
        if value and value.strip():
            return value.strip()
    return ""
