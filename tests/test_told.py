"""What README, MEASURED and the notebooks tell of the shipped sample is what its files say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
REPORT = json.loads((ROOT / "data" / "samples" / "report.json").read_text(encoding="utf-8"))
FOUND = REPORT["stages"]["evaluation"]
MODELS = ("base", "sl_cai", "rl_cai")
HEAD = "| | n | helpful start | SL-CAI | RL-CAI |"
# a row's name in the tables: the measure
ROWS = {
    "harmlessness": "harmlessness",
    "helps with the harm": "helps",
    "declines and says why": "explains",
    "evasive (refuses barely)": "evasive",
    "broken": "broken",
    "over-refusal on borderline prompts": "over_refusal",
    "helpfulness (checks)": "helpfulness",
    "perplexity of reference answers": "perplexity",
    "commonest five-word opening, red team": "boilerplate",
}
NUMBER = r"[-+]?\d+\.\d+"


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(NUMBER, text)]


def near(told: list[float], true: list[float]) -> bool:
    """Equal to the two digits that are told."""
    return len(told) == len(true) and all(
        abs(a - b) < 0.0051 for a, b in zip(told, true, strict=True)
    )


@pytest.mark.parametrize("document", ["README.md", "MEASURED.md"])
def test_the_table_of_the_three_models_is_the_reports(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    table = text.split(HEAD)[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert len(rows) >= 5
    for name, _, *cells in rows:
        measure = ROWS[name]
        for model, cell in zip(MODELS, cells, strict=True):
            found: dict[str, Any] = FOUND["models"][model]
            true = [found[measure], *found.get(f"{measure}_ci", [])]
            assert near(numbers(cell), true), (name, model, cell, true)


@pytest.mark.parametrize(
    ("document", "pair", "measure", "before"),
    [
        ("README.md", "sl_cai - base", "harmlessness", "n=80: SL-CAI "),
        ("README.md", "rl_cai - sl_cai", "harmlessness", "on the start, RL-CAI "),
        ("README.md", "sl_cai - base", "helpfulness", "helpfulness that we could tell ("),
        ("MEASURED.md", "sl_cai - base", "harmlessness", "than the start in our measure by "),
        ("MEASURED.md", "sl_cai - base", "broken", "as many broken answers ("),
        ("MEASURED.md", "rl_cai - sl_cai", "harmlessness", "RL-CAI goes further: harmlessness "),
        ("MEASURED.md", "rl_cai - base", "helpfulness", "helpfulness "),
        ("MEASURED.md", "rl_cai - base", "over_refusal", "The price is over-refusal, "),
    ],
)
def test_the_differences_are_the_reports(
    document: str, pair: str, measure: str, before: str
) -> None:
    text = re.sub(r"\s+", " ", (ROOT / document).read_text(encoding="utf-8"))
    told = re.findall(re.escape(before) + rf"({NUMBER} \[{NUMBER}, {NUMBER}\])", text)
    assert told, f"{document} tells no difference after {before!r}"
    assert near(numbers(told[0]), FOUND["differences"][pair][measure])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_of_one_clean_run_and_small(path: Path) -> None:
    assert path.stat().st_size <= 150_000
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert "widgets" not in notebook["metadata"]
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in code if "".join(cell["source"]).strip()]
    assert counts == list(range(1, len(counts) + 1))
    for cell in code:
        lines = "".join(cell["source"]).splitlines()
        assert len(lines) <= 25 and all(len(line) <= 80 for line in lines)
        errors = [out for out in cell["outputs"] if out["output_type"] == "error"]
        assert not errors or "raises-exception" in cell["metadata"].get("tags", [])
