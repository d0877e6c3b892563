"""One weight matrix: tensors in, tensors out. No files, no models, no UI, no printing.

Read first what a layer's pruning is: `statistics` (H = XᵀX), `hessian` (damping, and U with H⁻¹ = UᵀU), `loss`
(pre-pruning), `order`, `sweep` (mask, error, compensate) and `error`. `methods` puts it together: a file per family,
declared in `registry`, with `pattern` (sparsity and bits), and `result`.

Files beside these make them fast or do more: `tiles`, `panels` and `budget` for a sweep, `trace`, `rounding`,
`least_squares` for the kept weights. `forecast` prices columns and sweeps, `target` corrects weights for a target,
`basis` rotates heads. `solvers` and `columnar` serve plots; `checks` judges a layer.
"""
