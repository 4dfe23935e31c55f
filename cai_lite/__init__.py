"""cai-lite: Constitutional AI, small enough to read and real enough to run.

Public names are imported when they are first used, so that `import cai_lite` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .constitution import Constitution, load_constitution, shipped_constitutions
    from .data import Prompt, load_prompts, shipped_prompts
    from .errors import InputError
    from .presets import PRESETS, Preset, choose_preset, get_preset
    from .report import build_report, write_report
    from .run import STAGES, Run, begin_run, open_run, start_run

__version__ = "0.1.0"
__all__ = [
    "PRESETS",
    "STAGES",
    "Constitution",
    "InputError",
    "Preset",
    "Prompt",
    "Run",
    "begin_run",
    "build_report",
    "choose_preset",
    "get_preset",
    "load_constitution",
    "load_prompts",
    "open_run",
    "shipped_constitutions",
    "shipped_prompts",
    "start_run",
    "write_report",
]

_HOME = {
    "constitution": ("Constitution", "load_constitution", "shipped_constitutions"),
    "data": ("Prompt", "load_prompts", "shipped_prompts"),
    "errors": ("InputError",),
    "presets": ("PRESETS", "Preset", "choose_preset", "get_preset"),
    "report": ("build_report", "write_report"),
    "run": ("STAGES", "Run", "begin_run", "open_run", "start_run"),
}
_MODULES = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'cai_lite' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
