"""Names and paths of the files that nodes write."""

from __future__ import annotations

from pathlib import Path


def name_problem(filename: str | None) -> bool | str:
    """Check a file's name when the workflow is queued: True, or what is wrong."""
    from ..backend.errors import ConfigError
    from ..backend.plan.file_names import file_name_parts

    if filename is None:  # linked to another node: known only when that has run
        return True
    try:
        file_name_parts(filename, "filename")
    except ConfigError as error:
        return str(error)
    return True


def name_parts(filename: str) -> list[str]:
    """Split a name as `file_name_parts` does, with the error of an export."""
    from ..backend.errors import ConfigError, ExportError
    from ..backend.plan.file_names import file_name_parts

    try:
        return file_name_parts(filename, "filename")
    except ConfigError as error:
        raise ExportError(str(error)) from None


def new_file(target: Path, *, overwrite: bool, beside: str = "") -> Path:
    """Make the folder of a new file and return its path, numbered if it exists.

    beside: suffix of a companion that may not exist either.
    """
    from ..backend.errors import ExportError

    def taken(path: Path) -> bool:
        return path.exists() or bool(beside and path.with_suffix(beside).exists())

    number, other = 2, target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        while not overwrite and taken(other):
            other = target.with_name(f"{target.stem}_{number:05}{target.suffix}")
            number += 1
    except OSError as error:
        raise ExportError(
            f"filename: {shown(target)} cannot be made ({error.strerror}): choose another name"
        ) from None
    return other


def shown(target: Path) -> str:
    """Return a new file's path as the node shows it: from ComfyUI's folder, if it lies there."""
    import folder_paths

    base = Path(folder_paths.base_path)
    return (target.relative_to(base) if target.is_relative_to(base) else target).as_posix()
