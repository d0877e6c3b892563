"""Runs the SlimLLM authors' program on a tiny LLaMA and keeps its numbers: python -m tests.structured.golden CLONE.

CLONE is a clone of github.com/guojialong1/Slimllm. Writes tests/fixtures/slimllm.npz: the dense weights, the tokens,
what their program keeps in each decoder block with its scores, and the logits of the model that it leaves. It asks for
CUDA whatever the device; here that request does nothing.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

FIXTURE = Path(__file__).parent.parent / "fixtures" / "slimllm.npz"
RATIOS = (0.25, 0.5)  # of the two decoder blocks
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": len(RATIOS),
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 64,
}


def tiny_llama() -> LlamaForCausalLM:
    """Random weights, large enough that every part does something."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(20 if "embed" in name else 10)
                parameter.copy_(parameter.half().float())  # so that the file can keep half of the bits
    return model


def sorted_scores(seen: list[Tensor]) -> Any:
    """`torch.sort`, which their program calls once on the scores of each part, and a record of what it was given."""
    plain = torch.sort

    def watched(values: Tensor, *args: Any, **options: Any) -> Any:
        seen.append(values.clone())
        return plain(values, *args, **options)

    return watched


@torch.no_grad()
def run_theirs(clone: Path, dense: LlamaForCausalLM, tokens: Tensor) -> dict[str, np.ndarray]:
    sys.path.insert(0, str(clone))
    theirs: Any = importlib.import_module("LLMPruner.models.hf_llama.modeling_llama")
    Tensor.cuda = lambda self, *_args, **_options: self  # type: ignore[method-assign]
    blocks = nn.ModuleList([theirs.LlamaDecoderLayer(dense.config) for _ in RATIOS])
    blocks.load_state_dict(dense.model.layers.state_dict(), strict=False)
    length = tokens.shape[1]
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1).expand(len(tokens), 1, -1, -1)
    where = {"attention_mask": mask, "position_ids": torch.arange(length)[None].expand(len(tokens), -1)}
    hidden = dense.model.embed_tokens(tokens)
    arrays: dict[str, np.ndarray] = {}
    for index, (block, ratio) in enumerate(zip(blocks, RATIOS, strict=True)):
        seen: list[Tensor] = []
        plain, torch.sort = torch.sort, sorted_scores(seen)
        before = {name: value.clone() for name, value in block.state_dict().items()}
        hidden = block.prune(hidden, prune_ratio=ratio, **where)[0]
        torch.sort = plain
        arrays[f"{index}/head_scores"], arrays[f"{index}/channel_scores"] = (x.numpy() for x in seen)
        for part, name in (("heads", "self_attn.q_proj"), ("channels", "mlp.gate_proj")):
            rows = block.get_submodule(name).weight
            kept_rows = (before[f"{name}.weight"][:, None] == rows[None]).all(2).any(1)
            arrays[f"{index}/{part}"] = kept_rows.view(-1, 4).all(1).numpy() if part == "heads" else kept_rows.numpy()
    arrays["logits"] = dense.lm_head(dense.model.norm(hidden))[:2].numpy()
    return arrays


def main() -> None:
    dense = tiny_llama()
    tokens = torch.randint(0, SIZES["vocab_size"], (8, 32), generator=torch.Generator().manual_seed(1))
    arrays = run_theirs(Path(sys.argv[1]), dense, tokens)
    weights = {f"dense/{name}": value.half().numpy() for name, value in dense.state_dict().items()}
    np.savez_compressed(FIXTURE, **weights, **arrays, tokens=tokens.numpy().astype(np.int16))
    print(f"{FIXTURE}: {FIXTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
