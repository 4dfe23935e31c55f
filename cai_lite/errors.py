"""The one error a user can mend: it names the value, what was expected and the way out."""


class InputError(Exception):
    """Something the user gave is wrong; the command line prints one sentence and exits with 2."""
