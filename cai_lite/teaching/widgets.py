"""What a reader can click in a notebook, and the same as a table for pages and prints.

All text of models and users is escaped before it becomes HTML.
"""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import ipywidgets
from IPython.display import HTML
