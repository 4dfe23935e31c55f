"""Silence for the libraries: no banners, bars or advice; their errors still show."""

import logging
import os
import sys
import warnings

_LOUD = ("transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "huggingface_hub")
_SETTINGS = {  # read when the libraries are imported
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def quiet_libraries() -> None:
    """Let the libraries show errors only; a setting of the user's own in the environment stays.

    Best called before they are imported; those that already are are silenced too.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    # a library's warning is laid at the door of whatever library called it
    for name in (*_LOUD, "torch"):
        warnings.filterwarnings("ignore", module=rf"{name}\b")
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()
    if "transformers" in sys.modules:
        sys.modules["transformers"].utils.logging.disable_progress_bar()
