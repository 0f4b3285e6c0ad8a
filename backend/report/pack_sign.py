"""Signs a pack with the OpenSSF's model-signing, if that package is installed.

The signature is a file in the pack that covers every other one. Whoever has the publisher's public
key checks it with `python -m model_signing verify key`. Only a key of the publisher's own is used:
nothing is sent anywhere.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError

SIGNATURE = "model.sig"


def check_key(key: Path) -> None:
    """Refuse a signature that could not be made, before anything is written."""
    try:
        from model_signing import signing  # type: ignore[import-not-found] # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"`sign` needs the package model-signing ({error}): pip install model-signing pyopenssl"
        ) from None
    if not key.is_file():
        raise ConfigError(f"sign: {key} does not exist; give the file of a private key (PEM)")


def sign_folder(folder: Path, key: Path) -> None:
    """Write the signature of all files in a folder into it.

    key: an elliptic curve's private key without a password, as PEM.
    """
    from model_signing import hashing, signing  # type: ignore[import-not-found]

    path = folder / SIGNATURE
    ignored = hashing.Config().set_ignored_paths(paths=[path], ignore_git_paths=False)
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=key)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"sign: {key.name} is not a private key that can sign: {error}") from None
    config.set_hashing_config(ignored).sign(folder, path)
