"""One formatter for every size: its units, and what happens between them."""

import re

import pytest

from resalign.backend.numerics.byte_sizes import GIB, KIB, MIB, format_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (KIB, "1 KiB"),
        (64 * KIB + 1, "64 KiB"),
        (MIB, "1.0 MiB"),
        (3.24 * MIB, "3.2 MiB"),
        (9.96 * MIB, "10 MiB"),
        (512 * MIB, "512 MiB"),
        (GIB, "1.0 GiB"),
        (11.94 * GIB, "11.9 GiB"),
        (2000 * GIB, "2000.0 GiB"),
    ],
)
def test_a_size_has_the_largest_unit_that_it_fills(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize("unit", [KIB, MIB, GIB])
def test_no_size_just_below_a_unit_reads_1024_of_the_smaller_one(unit):
    for below in (1, unit // 10_000 + 1):
        assert not format_bytes(unit - below).startswith("1024 ")


def test_nothing_else_in_the_package_turns_bytes_into_units(package_folder):
    """A second formatter would print one size in two ways."""
    divides = re.compile(r"/ ?(?:2 ?\*\* ?[123]0|1e[69]|GIB|MIB|GB|MB)\b[^\n]*[GM]i?B\b")
    wrong = [
        f"{path.relative_to(package_folder)}:{line}"
        for folder in ("backend", "nodes", "scripts")
        for path in sorted((package_folder / folder).rglob("*.py"))
        if path.name != "byte_sizes.py"
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if divides.search(text)
    ]
    assert wrong == []
