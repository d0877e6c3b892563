"""One weight matrix: tensors in, tensors out. No files, no models, no UI, no printing.

Read in this order: `pattern` (what share goes, and few bits), `statistics` (H = XᵀX), `hessian` (H damped, H⁻¹ = UᵀU,
the best kept weights of a mask), `loss` (pre-pruning), `order`, `sweep`, `rounding`, `error`, `methods` (declared in
`registry`, a file for each family). `forecast` tells the price of a column and of a sweep, `target` makes the weight of
the dense target, `basis` rotates heads. `solvers` and `columnar` serve plots; `checks`, `change` and `agreement` judge
a layer.
"""
