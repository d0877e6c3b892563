"""One declared specification for each command: its fields, limits, help and file format; needs no torch.

`rose.spec` says what a specification is: fields with type, limits, unit and help, as options of the command line, too.

1. `parts`: the fields that several specifications share.
2. `steps`, `tools`: the specifications, one for each command.
3. `file`: recipes as files.
"""

from rose.recipe.file import Recipe
from rose.spec import Spec

__all__ = ["Recipe", "Spec"]
