"""One weight matrix: tensors in, tensors out. No files, no models, no UI, no printing.

Read in this order: `pattern` (what share goes), `statistics` (H = XᵀX), `hessian` (H damped, H⁻¹ = UᵀU), `loss`
(pre-pruning), `order`, `prices`, `sweep`, `forecast`, `error`, `least_squares` (the best kept weights of a mask),
`methods` (the registry, and a file for each family). `target` makes the weight of the dense target, `grid` and
`rounding` few bits, `basis` rotated heads. `solvers`, `compensation`, `paper` and `columnar` serve plots; `checks`,
`agreement` and `change` judge a layer.
"""
