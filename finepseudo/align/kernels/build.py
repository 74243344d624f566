"""How the CPU kernel is compiled when the package is installed; named in pyproject.toml, read by setuptools.

The kernel needs the very torch that it will run with, so the package is installed with --no-build-isolation. Without
torch or a compiler the package still installs, and alignment runs in plain torch, which it says in the log.
"""

from __future__ import annotations

import sys
from pathlib import Path
from runpy import run_path

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# No -ffast-math: NaN must stay NaN, and the rounding of an added constant is what 2^n is made with.
COMPILE = ("-O3", "-g0", "-std=c++17", "-fopenmp", "-DAT_PARALLEL_OPENMP=1", "-fno-math-errno", "-fno-trapping-math")
QUIET = ("-Wno-psabi", "-Wno-ignored-attributes")
HERE = Path(__file__).parent


class BuildKernel(build_ext):
    """Compile against the installed torch; its paths are known only when the build runs."""

    def build_extension(self, ext: Extension) -> None:
        """Raises what the compiler raises; setuptools reports it and goes on, since the extension is optional."""
        try:
            import torch
            from torch.utils import cpp_extension
        except ModuleNotFoundError as error:
            raise CompileError(
                "torch is not importable during the build: install with --no-build-isolation to have the CPU kernel"
            ) from error
        # by its file: the package cannot be imported while it is being built
        digest = run_path(str(HERE / "sources.py"))["source_digest"](HERE, torch.__version__)
        ext.define_macros.append(("FINEPSEUDO_SOURCE", f'"{digest}"'))
        ext.include_dirs += cpp_extension.include_paths()
        ext.library_dirs += cpp_extension.library_paths()
        ext.libraries += ["c10", "torch_cpu"]
        ext.extra_compile_args += [*COMPILE, *QUIET]
        ext.extra_link_args += ["-fopenmp", "-Wl,-s"] if sys.platform == "linux" else []
        super().build_extension(ext)
