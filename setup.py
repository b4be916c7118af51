"""The compiled part of the package; everything else is in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "regionhash.search._scan",
            ["src/regionhash/search/_scan.c"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],  # Python 3.11
            extra_compile_args=["-O3"],
            py_limited_api=True,
            optional=True,  # without a compiler NumPy searches, see search/scan.py
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
