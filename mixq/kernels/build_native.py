"""Builds the native kernels when mixq is installed; used by setuptools alone, never at run time.

Contract: without a compiler, or with one that fails, the installation goes on, and what the compiler said is kept in
native_build.txt beside the library, where `mixq doctor` finds it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

# No -march: every file compiles each kernel for several instruction sets by itself and asks the CPU. No contraction of
# a * b + c: a sum must not depend on what the compiler makes of the code around it.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-pthread",
)


class BuildNative(build_ext):
    """build_ext that compiles the sources side by side and keeps the compiler's words."""

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        log = library.with_name("native_build.txt")
        library.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        try:
            self._build(ext, library)
        except (OSError, subprocess.CalledProcessError, BaseError, CCompilerError) as error:
            said = getattr(error, "stderr", "") or str(error)
            log.write_text(said[-4000:], encoding="utf-8")
            print(f"mixq: the native kernels were not built; torch's will be used. {said[-400:]}", file=sys.stderr)

    def _build(self, ext: Extension, library: Path) -> None:
        if sys.platform == "win32":
            raise OSError("On Windows mixq uses torch's kernels.")
        compiler = os.environ.get("CXX", "c++").split()
        objects = Path(self.build_temp) / "native"
        objects.mkdir(parents=True, exist_ok=True)
        extra = os.environ.get("CXXFLAGS", "").split()

        def compile_one(source: Path) -> str:
            target = objects / f"{source.stem}.o"
            _run([*compiler, *FLAGS, *extra, "-c", str(source), "-o", str(target)])
            return str(target)

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            sources = sorted(Path(ext.sources[0]).parent.glob("*.cpp"))
            made = list(pool.map(compile_one, sources))
        _run([*compiler, "-shared", "-pthread", *extra, *made, "-o", str(library)])

    def copy_extensions_to_source(self) -> None:
        """Editable installs: put the library, or the reason for having none, beside native.py."""
        build_py = self.get_finalized_command("build_py")
        for ext in self.extensions:
            package = Path(build_py.get_package_dir(ext.name.rpartition(".")[0]))
            built = Path(self.build_lib) / self.get_ext_filename(ext.name)
            target = package / built.name
            for source, place in ((built, target), (built.with_name("native_build.txt"), package / "native_build.txt")):
                place.unlink(missing_ok=True)
                if source.exists():
                    self.copy_file(str(source), str(place))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, stderr=done.stderr or done.stdout)
    if done.stderr:
        print(done.stderr, file=sys.stderr)
