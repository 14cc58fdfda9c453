"""Builds the native kernels when mixq is installed, never at run time; `make native` rebuilds them in place.

Contract: without a compiler, or if it fails, the installation continues, and the compiler's output is kept in
native_build.txt, for `mixq doctor`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

# No -march: every file compiles each kernel for several instruction sets, of which one is chosen at run time. No
# contraction of a * b + c: a sum must not depend on the compiler's choices for the code around it.
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
    """build_ext that compiles the sources in parallel and keeps the compiler's output."""

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        log = library.with_name("native_build.txt")
        library.parent.mkdir(parents=True, exist_ok=True)
        for left in (log, library):
            left.unlink(missing_ok=True)
        try:
            self._build(ext, library)
        except (OSError, subprocess.CalledProcessError, BaseError, CCompilerError) as error:
            said = getattr(error, "stderr", "") or str(error)
            log.write_text(said[-4000:], encoding="utf-8")
            print(f"mixq: the native kernels were not built; torch's will be used. {said[-400:]}", file=sys.stderr)

    def _build(self, ext: Extension, library: Path) -> None:
        if sys.platform == "win32":
            raise OSError("On Windows mixq uses torch's kernels.")
        build(Path(ext.sources[0]).parent, Path(self.build_temp) / "native", library)

    def copy_extensions_to_source(self) -> None:
        """For editable installs: copy the library, or the reason why there is none, into the package."""
        build_py = self.get_finalized_command("build_py")
        for ext in self.extensions:
            package = Path(build_py.get_package_dir(ext.name.rpartition(".")[0]))
            built = Path(self.build_lib) / self.get_ext_filename(ext.name)
            target = package / built.name
            for source, place in ((built, target), (built.with_name("native_build.txt"), package / "native_build.txt")):
                place.unlink(missing_ok=True)
                if source.exists():
                    self.copy_file(str(source), str(place))


def build(sources: Path, objects: Path, library: Path, *, again: bool = True) -> int:
    """Compile a folder's sources in parallel and link them; return how many were compiled.

    Args:
        again: compile all; else only files of which the source, an included file or the command has changed.

    Raises:
        OSError, subprocess.CalledProcessError: there is no compiler, or it fails.
    """
    compiler = os.environ.get("CXX", "c++").split()
    extra = os.environ.get("CXXFLAGS", "").split()
    objects.mkdir(parents=True, exist_ok=True)

    def compile_one(source: Path) -> bool:
        target = objects / f"{source.stem}.o"
        command = [*compiler, *FLAGS, *extra, "-MMD", "-c", str(source), "-o", str(target)]
        if not again and _is_current(target, command):
            return False
        _run(command)
        target.with_suffix(".command").write_text("\n".join(command), encoding="utf-8")
        return True

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        paths = sorted(sources.glob("*.cpp"))
        compiled = sum(pool.map(compile_one, paths))
    # Under another name first: a process that uses the library keeps the old file.
    linked = library.with_suffix(".new")
    made = [str(objects / f"{path.stem}.o") for path in paths]
    _run([*compiler, "-shared", "-pthread", *extra, *made, "-o", str(linked)])
    linked.replace(library)
    return compiled


def _is_current(target: Path, command: Sequence[str]) -> bool:
    """Whether the object file was compiled by this command from files that are older."""
    try:
        if target.with_suffix(".command").read_text(encoding="utf-8") != "\n".join(command):
            return False
        listed = target.with_suffix(".d").read_text(encoding="utf-8").replace("\\\n", " ").partition(": ")[2]
        made = target.stat().st_mtime_ns
        return all(Path(name).stat().st_mtime_ns <= made for name in listed.split())
    except OSError:
        return False


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, stderr=done.stderr or done.stdout)
    if done.stderr:
        print(done.stderr, file=sys.stderr)


def main() -> None:
    """Build the library of a checkout in place, or print the compiler's flags (--flags)."""
    if "--flags" in sys.argv[1:]:
        print(*FLAGS)
        return
    package = Path(__file__).resolve().parent
    library = package / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    try:
        compiled = build(package / "native", package.parents[1] / "build" / "native" / "library", library, again=False)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(getattr(error, "stderr", "") or str(error))
    (package / "native_build.txt").unlink(missing_ok=True)
    print(f"{library.name}: {compiled} of {len(list((package / 'native').glob('*.cpp')))} files compiled")


if __name__ == "__main__":
    main()
