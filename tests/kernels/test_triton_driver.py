"""Triton launches kernels through the module that images bring: no C compiler, and no driver at build time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from fnmatch import fnmatch
from pathlib import Path

import pytest

from readapt_kernels.triton_driver import compile_module, module_file

ROOT = Path(__file__).resolve().parents[2]
LOAD = """
import sys
from pathlib import Path
from readapt_kernels.triton_driver import use_compiled
use_compiled(Path(sys.argv[1]))
from triton.backends.nvidia.driver import CudaUtils
print(CudaUtils().launch.__name__)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_module(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def driver(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a driver that has the functions which the module wants of it, and nothing in them."""
    folder = tmp_path_factory.mktemp("driver")
    listed = subprocess.run(["nm", "-D", "--undefined-only", str(built)], capture_output=True, text=True, check=True)
    source = "".join(f"int {name}(void) {{ return 0; }}\n" for name in re.findall(r"\b(cu[A-Z]\w+)", listed.stdout))
    (folder / "driver.c").write_text(source)
    library = ["-Wl,-soname,libcuda.so.1", "-o", str(folder / "libcuda.so.1")]
    subprocess.run(["gcc", "-shared", "-fPIC", str(folder / "driver.c"), *library], check=True)
    return folder


def _load(folder: Path, driver: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """As in an image: nothing on the path, a cache that is empty."""
    places = {"PATH": str(cache), "TRITON_CACHE_DIR": str(cache), "TRITON_LIBCUDA_PATH": str(driver)}
    environment = {k: v for k, v in os.environ.items() if k != "CC"} | places
    environment |= {"LD_LIBRARY_PATH": str(driver), "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", LOAD, str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_triton_loads_it_where_there_is_no_compiler(built: Path, driver: Path, tmp_path: Path) -> None:
    done = _load(built.parent, driver, tmp_path)

    assert done.stdout.split() == ["launch"], done.stderr


def test_without_it_triton_asks_for_a_compiler(driver: Path, tmp_path: Path) -> None:
    done = _load(tmp_path, driver, tmp_path)

    assert done.returncode
    assert "C compiler" in done.stderr


def test_the_image_puts_it_where_it_is_looked_for() -> None:
    container = (ROOT / "images" / "app.Containerfile").read_text()
    ((pattern, folder),) = re.findall(r"cp /opt/readapt/wheel/(cuda\S+) (\S+)", container)

    assert fnmatch(module_file(), pattern.replace("$suffix", sysconfig.get_config_var("EXT_SUFFIX")))
    assert folder.endswith("/site-packages/readapt_kernels/")
