"""Heads, channels and decoder blocks removed for good: a smaller model that is faster in every runtime.

`parts` finds heads and channels in decoder blocks, and `problem` is the mathematics of one output projection. `methods`
chooses the units to remove, `survey` prices them, and `plan` sets the number in each block. `slimming` walks the
network. `configuration` cuts it and knows which shapes a configuration can express.
"""
