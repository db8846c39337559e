"""What pyproject.toml can't express: `migrations` and `examples` are installed as folders of `app`."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["app*", "worker*"]),
        "app.migrations",
        "app.migrations.versions",
        "app.examples",
    ],
    package_dir={"app.migrations": "migrations", "app.examples": "examples"},
)
