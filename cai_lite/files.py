"""Where the files that travel with the package are: constitutions, prompt sets, samples."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped(*parts: str) -> Path:
    """Path of a shipped file: inside an installed wheel, else at the root of the checkout."""
    inside = _PACKAGE.joinpath("_shipped", *parts)
    return inside if (_PACKAGE / "_shipped").is_dir() else _PACKAGE.parent.joinpath(*parts)
