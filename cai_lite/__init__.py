"""cai-lite: Constitutional AI, small enough to read and real enough to run."""

__version__ = "0.1.0"
