"""ROSE: one-shot pruning of language models with reordered columns, and the analysis behind it.

The names of `__init__.pyi` are the public interface; the rest is private to its module. Each is imported when it is
first used: torch and transformers take seconds, and declarations do not need them.
"""

import os

import lazy_loader

from rose import interrupt

interrupt.guard()
if "OMP_WAIT_POLICY" not in os.environ:
    # Threads that have nothing to do give the processor back early: beside busy programs a run takes half as long.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is imported

__getattr__, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"  # pyproject.toml reads it here


def __dir__() -> list[str]:
    """Completion offers the public interface alone."""
    return [*__all__, "__version__"]
