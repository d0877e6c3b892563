"""`rose smaller`: from a checkpoint to a table of smaller copies, measured on this machine, and to the best of them.

`ways` are sequences of steps, and estimates; `table` has a row; `measure` makes and measures copies and keeps them in a
folder.
`rose.verdicts.smaller` recommends rows.
"""

from rose.smaller.measure import Bench
from rose.smaller.table import Row, read_rows
from rose.smaller.ways import Way, ways_of

__all__ = ["Bench", "Row", "Way", "read_rows", "ways_of"]
