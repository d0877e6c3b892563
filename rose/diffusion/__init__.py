"""Diffusion models: trajectories instead of decoder blocks, and the packaged tiny model.

A peer of `rose.model`; the layers are pruned by the same engine, `rose.layer`.
"""
