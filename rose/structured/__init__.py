"""Heads, channels and decoder blocks removed for good: a smaller model that is faster in every runtime.

`anatomy` finds the parts of a decoder block, `problem` is the mathematics of one output projection, `methods` chooses
what goes, `survey` and `shapes` say how much goes where, `pipeline` walks the network, `surgery` cuts it.
"""
