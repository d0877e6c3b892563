"""`rose smaller`: from a checkpoint to a table of smaller copies, measured on this machine, and to the best of them.

1. `ways`: what can be made of a model, each way a recipe; its size, time, memory and perplexity before it is made.
2. `table`: a row of the table, and the folder that keeps measured rows; programs that use zeros or N:M.
3. `measure`: copies made and measured; which way comes next.

`rose.verdicts.smaller` recommends rows.
"""

from rose.smaller.measure import Bench
from rose.smaller.table import Row, read_rows
from rose.smaller.ways import Way, ways_of

__all__ = ["Bench", "Row", "Way", "read_rows", "ways_of"]
