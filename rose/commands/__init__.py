"""The commands of the command line, one file each: its parser and its work.

A file has `add_parser`, which adds the command to the parser and names the function that does its work, given the
options and the console for progress and remarks; results go to standard output. A new command is a new file, and a word
in `COMMANDS`. What several commands share is in `options`, `terminal` and `checkpoints`.
"""

from rose.commands import (
    analyze,
    app,
    check,
    compare,
    damage,
    diffuse,
    evaluate,
    export,
    models,
    pack,
    prune,
    report,
    slim,
    tune,
)

# As listed by `rose --help`.
COMMANDS = (models, analyze, prune, slim, tune, compare, damage, check, evaluate, report, pack, export, diffuse, app)
