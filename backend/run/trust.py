"""Recognises the jobs that this user began on this machine.

A run or probe folder may come from a stranger, and its `job.json` may name a command to run or any
place to write to. A job that is begun here is therefore marked with a key of the user's
(HMAC-SHA256, kept in `$XDG_STATE_HOME/resalign`); one without the mark is asked about first.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MARK = "begun_by"  # the field of job.json


def marked(job: Mapping[str, Any], plan: Any = None) -> dict[str, Any]:
    """Return the fields of a job file with this user's mark; without one where no key can be kept.

    plan: what the mark covers besides.
    """
    key = _key(create=True)
    return {**job, MARK: _mark(key, job, plan)} if key else dict(job)


def is_marked(fields: Mapping[str, Any], plan: Any = None) -> bool:
    """Return True if this user began the job of these fields, which include the mark."""
    key = _key(create=False)
    job = {name: value for name, value in fields.items() if name != MARK}
    return bool(key) and hmac.compare_digest(str(fields.get(MARK)), _mark(key, job, plan))


def _mark(key: bytes, job: Mapping[str, Any], plan: Any) -> str:
    text = json.dumps([json.loads(json.dumps(job)), plan], sort_keys=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _key(*, create: bool) -> bytes:
    """Return this user's key; empty if there is none, or no place to keep one."""
    try:
        base = os.environ.get("XDG_STATE_HOME") or os.environ.get("LOCALAPPDATA")
        folder = (Path(base) if base else Path.home() / ".local" / "state") / "resalign"
        path = folder / "key"
        if create and not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(32))
        key = path.read_bytes()
        return key if len(key) == 32 else b""
    except (OSError, RuntimeError):  # no home, a read-only one, or another process made it first
        return b""
