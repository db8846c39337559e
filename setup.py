"""What pyproject.toml can't express: the folder `migrations` is installed as `app/migrations`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["app*", "worker*"]), "app.migrations", "app.migrations.versions"],
    package_dir={"app.migrations": "migrations"},
)
