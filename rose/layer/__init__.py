"""One weight matrix: tensors in, tensors out. No files, no models, no UI, no printing.

The mathematics, in the order in which to read it:

1. `pattern`: what share of the weights goes, and which are the smallest.
2. `statistics`: H = XᵀX and the mean of a layer's inputs, batch by batch.
3. `hessian`: H damped and factorized, H⁻¹ = UᵀU.
4. `loss`: importance, and what pre-pruning says each column and block would lose.
5. `order`: from losses to the order in which columns are pruned; whether a layer is columnar, and in `columnar` why.
6. `sweep`: masks and compensation, block by block.
7. `error`: three ways to measure what pruning did.
8. `least_squares`: the best kept weights of a fixed mask.
9. `methods`: the registry, what methods are made of (`methods.toolkit`), and a file for each method or family.
10. `target`: the weight to prune where a layer aims at the dense model's output.
11. `grid` and `rounding`: weights of few bits, and sweeps that round to them.
12. `basis`: rotations of the heads that a layer reads.
13. `solvers`, `compensation` and `paper`: what becomes of a layer on the way, for plots.
14. `checks`: whether the numbers of a layer can be trusted.
15. `change`: what somebody else has done to a weight.
16. `defaults`: what is usual where nobody says otherwise.
"""
