"""One weight matrix: tensors in, tensors out. No files, no models, no UI, no printing.

Every module of this folder is imported, so a file with `@register` in it is all that a new method takes.
"""

import pkgutil
from importlib import import_module

_FIRST = "plain"  # its methods come first in every list
for _name in (_FIRST, *(_module.name for _module in pkgutil.iter_modules(__path__))):
    import_module(f"{__name__}.{_name}")
