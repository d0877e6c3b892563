"""Defaults and choices of slimming, without torch."""

WHOLE_BLOCKS = "depth"  # the method that drops decoder blocks as they are
RATIO = 0.2
MULTIPLE = 32  # kept channels are a multiple of this, the blocks of q4_0 and q8_0 in GGUF files
PARTS = ("heads", "channels")
ALLOCATIONS = {
    "uniform": "the same shape in every decoder block; heads and channels share by cost per parameter",
    "similarity": "decoder blocks whose output is like their input give more (SlimLLM); heads and channels alike",
    "cost": "wherever a parameter costs least",
}
