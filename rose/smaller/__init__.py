"""`rose smaller`: from a checkpoint to a table of smaller copies, measured on this machine, and to the best of them.

1. `ways`: what can be made of a model, each way a recipe.
2. `table`: a row of the table, and the folder that keeps measured rows.
3. `estimate`: sizes, time and memory of a way before it is made, and the range of its perplexity.
4. `measure`: copies made and measured; which way comes next.
5. `runtimes`: programs that use zeros or N:M, checked against this machine.

`rose.verdicts.smaller` recommends rows.
"""

from rose.smaller.measure import Bench
from rose.smaller.table import Row, read_rows
from rose.smaller.ways import Way, ways_of

__all__ = ["Bench", "Row", "Way", "read_rows", "ways_of"]
