"""Hashes of files of all sizes, those too small for a thread and those of several pieces."""

import hashlib

import pytest

from resalign.backend.checkpoint import hashing
from resalign.backend.checkpoint.hashing import CHUNK, sha256_of

MIB = 1 << 20


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, CHUNK + 1])
def test_a_hash_is_that_of_all_bytes_and_ends_at_their_number(tmp_path, size):
    content, seen = bytes(range(256)) * (size // 256 + 1), []
    path = tmp_path / "file"
    path.write_bytes(content[:size])
    assert sha256_of(path, on_progress=seen.append) == hashlib.sha256(content[:size]).hexdigest()
    assert len(seen) == -(-size // CHUNK)
    assert all(each.stage == "hash" for each in seen)
    if seen:
        assert (seen[-1].step, seen[-1].total) == (-(-size // MIB), -(-size // MIB))


def test_a_small_file_takes_no_thread(tmp_path, monkeypatch):
    """A pack hashes hundreds of pictures."""
    path = tmp_path / "picture.png"
    path.write_bytes(b"small")
    monkeypatch.setattr(hashing, "Pipe", lambda **_: pytest.fail("a thread for five bytes"))
    assert sha256_of(path) == hashlib.sha256(b"small").hexdigest()
