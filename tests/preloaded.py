"""The process that forks one for each notebook imports this: in all of them the packaged model is loaded already."""

import gc
from functools import cache

import torch

import rose
from rose.model.load import tokens

torch.set_num_threads(1)  # before any product, as threads of OpenMP do not live on in forked processes
loaded, load = rose.load_model("smollm2-135m"), rose.load_model
rose.load_model = lambda name: loaded if name == "smollm2-135m" else load(name)
tokens._encode = cache(tokens._encode)
tokens._encode(loaded[1], tokens.packaged_text())
gc.freeze()  # or collections in each forked process would copy what is here
