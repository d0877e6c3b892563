"""One weight matrix: tensors in, tensors out. No files, no models, no UI, no printing.

Read first `pattern` (sparsity and bits), `statistics` (H = XᵀX), `hessian` (damping, H⁻¹ = UᵀU, least squares for the
kept weights) and `loss` (pre-pruning). Then read `order`, `sweep`, `rounding`, `error` and `methods` (declared in
`registry`, a file per family). `forecast` prices columns and sweeps, `target` corrects weights for the target, `basis`
rotates heads. `solvers` and `columnar` serve plots; `checks`, `change` and `agreement` judge a layer.
"""
