"""Builds the optional CPU kernels: plain C++ without torch's headers, so one build serves every version of torch."""

import ctypes
import platform
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("geoattn/ops/backends/csrc")
X86 = platform.machine().lower() in ("x86_64", "amd64")
# simd_*.cpp are compiled once per instruction set; which one runs is decided when the library is loaded.
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mprefer-vector-width=512"]
INSTRUCTION_SETS = {
    "base": [],
    # From the lowest up: where two objects hold the same inline function, the linker takes the first.
    **({"avx2": AVX2, "avx512": AVX512} if X86 else {}),
}


class BuildKernels(build_ext):
    """`build_ext` that compiles one source with several sets of flags."""

    def build_extension(self, ext: Extension) -> None:
        """Compile and link the kernels, or take those of an earlier editable install if nothing has changed."""
        earlier = Path(self.get_ext_filename(ext.name))
        if self.editable_mode and not self.force and is_up_to_date(earlier, ext):
            Path(self.get_ext_fullpath(ext.name)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(earlier, self.get_ext_fullpath(ext.name))
            return

        def compile_for(name: str) -> list[str]:
            return self.compiler.compile(
                [str(path) for path in sorted(CSRC.glob("simd_*.cpp"))],
                output_dir=str(Path(self.build_temp) / name),
                macros=[("GEOATTN_ISA", name)],
                extra_postargs=ext.extra_compile_args + INSTRUCTION_SETS[name],
                depends=ext.depends,
            )

        with ThreadPoolExecutor() as pool:
            ext.extra_objects = [path for objects in pool.map(compile_for, INSTRUCTION_SETS) for path in objects]
        super().build_extension(ext)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """None: the library is loaded by ctypes and has no module initialiser."""
        return []


def is_up_to_date(library: Path, ext: Extension) -> bool:
    """Whether a library was built from what is here, for this machine."""
    try:
        built = library.stat().st_mtime
        ctypes.CDLL(str(library.resolve()))
    except OSError:
        return False
    return all(Path(source).stat().st_mtime <= built for source in [*ext.depends, __file__])


setup(
    ext_modules=[
        Extension(
            "geoattn.ops.backends._cpu",
            sources=[str(path) for path in sorted(CSRC.glob("*.cpp")) if not path.name.startswith("simd_")],
            depends=[str(path) for path in sorted(CSRC.glob("*"))],
            # No -ffast-math: linked with it, gcc's start-up code makes the whole process flush denormals to zero.
            extra_compile_args=["-std=c++17", "-O3", "-g0", "-fno-math-errno", "-fvisibility=hidden"],
            extra_link_args=["-s"] if sys.platform == "linux" else [],
            optional=True,
            py_limited_api=True,
        )
    ]
    if sys.platform != "win32"
    else [],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},  # the library holds no Python: one wheel serves every version
)
