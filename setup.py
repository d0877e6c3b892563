"""Finds the packages of the wheel; everything else about it is in pyproject.toml."""

from setuptools import find_packages, setup

# The app goes along as rose_explorer.app: a package named `app` at the top of site-packages would be in others' way.
app = [f"rose_explorer.{name}" for name in find_packages(include=["app", "app.*"])]
setup(packages=find_packages(include=["rose", "rose.*"]) + app, package_dir={"rose_explorer.app": "app"})
