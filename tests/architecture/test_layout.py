"""Where files may be, how long they may get, and what the wheel holds."""

from __future__ import annotations

import ast
import operator
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DRAWERS = (
    "crds",
    "operator",
    "runtime",
    "kernels",
    "charts",
    "tests",
    "e2e",
    "benchmarks",
    "examples",
    "images",
    "docs",
)
PACKAGES = ("readapt_api", "readapt_operator", "readapt_runtime", "readapt_kernels")
SUPPORT = ROOT / "tests" / "support" / "readapt_testing"
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_KERNEL_LINES = 120
FORBIDDEN_NAMES = frozenset({"utils", "helpers", "common", "misc"})


def python_files() -> list[Path]:
    folders = [ROOT / name for name in DRAWERS if (ROOT / name).is_dir()]
    return sorted(path for folder in folders for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Decorated with @triton.jit, bare or called."""
    return any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)


def test_drawers_are_no_packages() -> None:
    assert [name for name in DRAWERS if (ROOT / name / "__init__.py").exists()] == []


def test_only_the_support_package_of_the_tests_is_a_package() -> None:
    found = [p for p in (ROOT / "tests").rglob("__init__.py") if not p.is_relative_to(SUPPORT)]

    assert found == []
    assert (SUPPORT / "__init__.py").exists()


def test_operator_is_the_standard_librarys() -> None:
    assert Path(operator.__file__).is_relative_to(Path(sys.base_prefix))


def test_test_files_have_unique_names() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]

    assert sorted(set(names)) == sorted(names)


def test_no_module_is_a_drawer_for_everything() -> None:
    assert [p for p in python_files() if p.stem in FORBIDDEN_NAMES or p.parent.name in FORBIDDEN_NAMES] == []


def test_files_stay_readable() -> None:
    lengths = {p: len(p.read_text().splitlines()) for p in python_files()}

    assert {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > MAX_FILE_LINES} == {}


def test_functions_stay_readable() -> None:
    long = []
    for path in python_files():
        for function in functions(ast.parse(path.read_text())):
            limit = MAX_KERNEL_LINES if is_kernel(function) else MAX_FUNCTION_LINES
            lines = (function.end_lineno or 0) - function.body[0].lineno + 1  # parameters are no logic
            if lines > limit:
                long.append(f"{path.relative_to(ROOT)}:{function.lineno} {function.name} has {lines} lines")

    assert long == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built as `python -m build` builds it, by the backend that pyproject.toml names."""
    folder = tmp_path_factory.mktemp("wheel")
    code = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True, capture_output=True, timeout=120)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_has_the_four_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}

    assert {t for t in tops if not t.endswith(".dist-info")} == set(PACKAGES)
    assert len(tops) == len(PACKAGES) + 1


def test_wheel_has_every_module_and_the_type_markers(wheel: zipfile.ZipFile) -> None:
    drawers = {"readapt_api": "crds", "readapt_operator": "operator"}
    drawers |= {"readapt_runtime": "runtime", "readapt_kernels": "kernels"}
    for package, drawer in drawers.items():
        folder = ROOT / drawer / package
        ours = {p.relative_to(folder.parent).as_posix() for p in folder.rglob("*.py")}
        assert ours - set(wheel.namelist()) == set()
        assert f"{package}/py.typed" in wheel.namelist()
    for module in ("__init__.py", "operator.py"):
        assert module not in wheel.namelist()
