"""The house: imports run downward only, and nothing in the package is dangerous to read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cai_lite

PACKAGE = Path(cai_lite.__file__).parent
SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if "_shipped" not in p.parts)
GROUND = ("constitution", "prompts", "records", "presets", "run", "data", "texts", "measures",
          "refusals", "lens", "elo", "answers", "paper", "errors", "files", "progress")  # fmt: skip
HEAVY = {"torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate"}
FACES = {"cli", "report", "cards", "teaching", "__main__"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    """Imported modules: of the package as "engine.models", others by their first name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                ours, _, rest = alias.name.partition("cai_lite")
                found.add(rest.lstrip(".") if not ours and rest else alias.name.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            found |= _from(path, node)
    return found


def _from(path: Path, node: ast.ImportFrom) -> set[str]:
    if node.level:
        parts = path.relative_to(PACKAGE).parts[: -node.level]
        module = ".".join([*parts, *((node.module or "").split(".") if node.module else [])])
    elif (node.module or "").split(".")[0] == "cai_lite":
        module = (node.module or "").partition("cai_lite")[2].lstrip(".")
    else:
        return {(node.module or "").split(".")[0]}
    # `from ..engine import labellers` imports a module too
    below = {f"{module}.{alias.name}".lstrip(".") for alias in node.names}
    modules = {name for name in below if (PACKAGE / (name.replace(".", "/") + ".py")).is_file()}
    return modules or {module}


def floor_of(module: str) -> str:
    return module.split(".")[0]


def test_imports_are_read_right() -> None:
    assert {"engine.labellers", "engine.judges", "run", "numpy"} <= imports(
        PACKAGE / "stages" / "ai_feedback.py"
    )
    assert "constitution" in imports(PACKAGE / "paper.py")  # written as cai_lite.constitution


@pytest.mark.parametrize("module", GROUND)
def test_the_ground_floor_is_plain_python(module: str) -> None:
    path = PACKAGE / f"{module}.py"
    found = imports(path)
    assert not {floor_of(m) for m in found} & {"engine", "stages", *FACES}
    allowed = {"torch"} if module == "presets" else set()  # `auto` looks for a GPU when asked
    assert not found & HEAVY - allowed
    assert not imports(path, top_only=True) & HEAVY


def test_the_engine_knows_no_stage_and_no_face() -> None:
    for path in (PACKAGE / "engine").glob("*.py"):
        assert not {floor_of(m) for m in imports(path)} & {"stages", *FACES}, path


def test_stages_know_neither_each_other_nor_faces() -> None:
    for path in (PACKAGE / "stages").glob("*.py"):
        assert not {floor_of(m) for m in imports(path)} & {"stages", *FACES}, path


def test_only_faces_know_teaching() -> None:
    for path in SOURCES:
        if floor_of(name_of(path)) not in FACES:
            assert "teaching" not in {floor_of(m) for m in imports(path)}, path


def test_nothing_imports_the_command_line() -> None:
    for path in SOURCES:
        if floor_of(name_of(path)) != "__main__":
            assert "cli" not in imports(path), path


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_dangerous_is_called(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword):
            assert node.arg != "trust_remote_code", node.value.lineno
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("torch.load", "yaml.load", "yaml.unsafe_load", "eval", "exec",
                                  "os.system"), node.lineno  # fmt: skip
            assert not any(k.arg == "shell" for k in node.keywords), node.lineno
    assert not imports(path) & {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_broad_except(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, node.lineno
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = {ast.unparse(one) for one in caught} & {"Exception", "BaseException"}
            goes_on = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            assert not broad or goes_on, node.lineno  # looked at and raised again, not swallowed


def test_the_ground_floor_loads_no_torch() -> None:
    modules = ", ".join(f"cai_lite.{module}" for module in GROUND)
    code = f"import sys, {modules}; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
