"""Tiny random diffusion pipelines of five families, built from diffusers' own classes: no file, no network."""

from typing import Any

import diffusers
import torch
from torch import Tensor

Family = tuple[Any, list[Any]]  # a pipeline, and conditions for it
SIZES: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "num_layers": 2, "sample_size": 8,
    "patch_size": 2,
}  # fmt: skip
JOINT: dict[str, Any] = {"joint_attention_dim": 12, "pooled_projection_dim": 10}


def garments() -> Family:
    """The packaged architecture, narrow and with random weights that do something: modulation starts at zero."""
    from rose.diffusion.garment_pipeline import GarmentPipeline  # here, as every worker of pytest reads this file
    from tests.benchmarks.garments import DENOISER, SCHEDULER

    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(**{**DENOISER, "attention_head_dim": 8, "num_layers": 2})
    return GarmentPipeline(_stirred(model), diffusers.DDIMScheduler(**SCHEDULER)), [0, 1, 2]


def dit() -> Family:
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(**SIZES, out_channels=4, num_embeds_ada_norm=1000)
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    return diffusers.DiTPipeline(_stirred(model), vae, diffusers.DDIMScheduler()), [3, 4]


def pixart() -> Family:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"cross_attention_dim": 16, "caption_channels": 12, "norm_num_groups": 2}
    model = diffusers.PixArtTransformer2DModel(**SIZES, **sizes, out_channels=8, use_additional_conditions=False)
    pipeline = diffusers.PixArtAlphaPipeline(None, None, None, _stirred(model), diffusers.DDIMScheduler())
    mask = torch.ones(2, 5, dtype=torch.int64)
    conditions = {
        "prompt_embeds": _noise(2, 5, 12), "prompt_attention_mask": mask, "use_resolution_binning": False,
        "negative_prompt": None, "negative_prompt_embeds": _noise(2, 5, 12), "negative_prompt_attention_mask": mask,
    }  # fmt: skip
    return pipeline, [conditions]


def sd3() -> Family:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"out_channels": 4, "pos_embed_max_size": 8, "caption_projection_dim": 16}
    model = diffusers.SD3Transformer2DModel(**SIZES, **JOINT, **sizes)
    pipeline = diffusers.StableDiffusion3Pipeline(
        _stirred(model), diffusers.FlowMatchEulerDiscreteScheduler(), *[None] * 7
    )
    prompts = {"prompt_embeds": _noise(2, 5, 12), "pooled_prompt_embeds": _noise(2, 10)}
    return pipeline, [prompts | {f"negative_{name}": value for name, value in prompts.items()}]


def flux() -> Family:
    torch.manual_seed(0)
    own_sizes: dict[str, Any] = {"patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 2}
    sizes = {name: value for name, value in SIZES.items() if name != "sample_size"} | JOINT | own_sizes
    model = diffusers.FluxTransformer2DModel(**sizes, guidance_embeds=False, axes_dims_rope=(2, 2, 4))
    pipeline = diffusers.FluxPipeline(diffusers.FlowMatchEulerDiscreteScheduler(), *[None] * 5, _stirred(model))
    prompts = {"prompt_embeds": _noise(2, 5, 12), "pooled_prompt_embeds": _noise(2, 10)}
    return pipeline, [{**prompts, "height": 64, "width": 64}]


def unet() -> Family:
    torch.manual_seed(0)
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    sizes: dict[str, Any] = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16)}
    sizes |= {"layers_per_block": 1, "attention_head_dim": 8, "norm_num_groups": 2}
    model = diffusers.UNet2DModel(**sizes, down_block_types=down, up_block_types=up)
    return diffusers.DDIMPipeline(_stirred(model), diffusers.DDIMScheduler()), [{"batch_size": 3}]


FAMILIES = {"garments": garments, "dit": dit, "pixart": pixart, "sd3": sd3, "flux": flux, "unet": unet}


def _stirred(model: Any) -> Any:
    """Modulation that starts at zero, as these models do before training, would hide what layers put out."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model.eval().requires_grad_(False)


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))
