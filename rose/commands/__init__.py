"""The commands of the command line, one file each: its work, and what it prints.

`rose.recipe` declares what each can be asked for, and so its options; `run` of a file here does it, given that and the
console for progress and remarks; results go to standard output. What several commands share is in `shared`, `terminal`
and `saving`.
"""
