"""The packaged tiny model as a diffusers pipeline. Importing this needs diffusers; `rose.diffusion.loading` does."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DiTTransformer2DModel, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from rose.diffusion.loading import ANY
from rose.diffusion.steps import STEPS


class GarmentPipeline(DiffusionPipeline):
    """Draws garments from noise, in pixel space, by DDIM (Song et al. 2021) with classifier-free guidance."""

    def __init__(self, transformer: DiTTransformer2DModel, scheduler: DDIMScheduler) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        guidance_scale: float = 2.0,
        num_inference_steps: int = STEPS,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Pictures of these classes.

        Args:
            class_labels: indices into `GARMENTS`; `ANY` for no class in particular.
            guidance_scale: v = v_none + scale · (v_class − v_none); 1 asks the model once a step, not twice.
            num_inference_steps: denoising steps.
            generator: one, or one for each picture.
            output_type: "pil", "np", "pt", or "latent": as the model has them, (n, 1, 28, 28), between −1 and 1.
            return_dict: an `ImagePipelineOutput`, or a tuple.
        """
        model, device = self.transformer, self._execution_device
        count, side = len(class_labels), model.config.sample_size
        classes = torch.tensor(list(class_labels), device=device)
        guided = guidance_scale != 1
        if guided:
            classes = torch.cat([classes, torch.full_like(classes, ANY)])
        x = randn_tensor((count, model.config.in_channels, side, side), generator, device, model.dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        for t in self.progress_bar(self.scheduler.timesteps):
            both = torch.cat([x, x]) if guided else x
            v: Tensor = model(both, timestep=t.expand(len(both)), class_labels=classes).sample
            if guided:
                conditional, unconditional = v.chunk(2)
                v = unconditional + guidance_scale * (conditional - unconditional)
            x = self.scheduler.step(v, t, x).prev_sample
        processor = VaeImageProcessor()
        pictures = processor.postprocess(x if output_type == "latent" else x.float(), output_type=output_type)
        return ImagePipelineOutput(images=pictures) if return_dict else (pictures,)
