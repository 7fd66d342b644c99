"""Build of matconv_fast: the import mapping kernels/ -> matconv_fast.kernels, and the CPU extension.

The extension is built against the installed PyTorch (``pip install --no-build-isolation .``). Without PyTorch at build
time or without a working C++ compiler the package still installs and runs on its PyTorch reference; the build says so
here, and ``python -m matconv_fast info`` says so later.
"""

from pathlib import Path

from setuptools import setup

SOURCES = [
    "bindings",
    "bindings_advance",
    "bindings_direct",
    "bindings_distance",
    "bindings_loss",
    "bindings_run",
    "bindings_step",
]
SOURCES += ["finish_chunk", "isa_generic", "isa_avx2", "isa_avx512"]
# -fno-math-errno: square roots become vector instructions.
FLAGS = ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wno-psabi"]
NOT_BUILT = "matconv_fast: CPU kernels NOT built ({}); solves on the CPU will run on the PyTorch reference."


def extension_options() -> dict:
    """Options of `setup` that build the extension; none where PyTorch is missing."""
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension, is_ninja_available
    except ImportError as error:
        print(NOT_BUILT.format(f"{error}; use pip install --no-build-isolation, with torch installed"))
        return {}

    class OptionalBuild(BuildExtension):
        """A failed compilation leaves a package without kernels, not a failed installation."""

        def run(self):
            try:
                super().run()
            except Exception as error:
                print(NOT_BUILT.format(f"{type(error).__name__}: {error}"))

    extension = CppExtension(
        "matconv_fast.kernels.cpu._C",
        [f"kernels/cpu/{name}.cpp" for name in SOURCES],
        depends=sorted(map(str, Path("kernels/cpu").glob("*.h"))),
        # 2.10 is the first torch with parallel_for in the stable ABI.
        define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000ULL")],
        extra_compile_args=FLAGS,
        py_limited_api=True,
    )
    return {
        "ext_modules": [extension],
        # ninja compiles the files in parallel: 73 s instead of 120 on two cores
        "cmdclass": {"build_ext": OptionalBuild.with_options(use_ninja=is_ninja_available())},
        # the extension uses no Python API at all: one wheel serves every CPython from 3.10 on
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(
    packages=[
        "matconv_fast",
        "matconv_fast._ops",
        "matconv_fast._reference",
        "matconv_fast.solve",
        "matconv_fast.solvers",
        "matconv_fast.kernels",
        "matconv_fast.kernels.cpu",
        "matconv_fast.kernels.gpu",
    ],
    package_dir={"matconv_fast.kernels": "kernels"},
    package_data={"matconv_fast": ["py.typed"], "matconv_fast.kernels.cpu": ["*.cpp", "*.h"]},
    **extension_options(),
)
