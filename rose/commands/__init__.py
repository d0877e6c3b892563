"""The commands, one file each; `shared`, `terminal` and `saving` serve several.

`run` takes the specification of `rose.recipe`, and the console for progress; results go to standard output.
"""
