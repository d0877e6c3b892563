"""One weight matrix: tensors in, tensors out. No files, no models, no UI, no printing.

Read in this order: `pattern` (sparsity and bits), `statistics` (H = XᵀX), `hessian` (damping, H⁻¹ = UᵀU, least squares
for the kept weights), `loss` (pre-pruning), `order`, `sweep`, `rounding`, `error`, `methods` (declared in `registry`,
one file per family). `forecast` prices columns and sweeps, `target` corrects weights towards the dense target, `basis`
rotates heads. `solvers` and `columnar` serve plots; `checks`, `change` and `agreement` judge a layer.
"""
