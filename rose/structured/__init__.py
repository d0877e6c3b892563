"""Heads, channels and decoder blocks removed for good: a smaller model that is faster in every runtime.

`parts` finds heads and channels in decoder blocks, `problem` is the mathematics of one output projection, `methods`
chooses what goes, `survey` prices it, `plan` says how much goes where, `slimming` walks the network, and
`configuration` cuts it and knows what a cut model's configuration can say.
"""
