"""A pipeline's trajectories from noise to pictures, observed at the denoiser of any pipeline."""

import inspect
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from rose.diffusion.steps import STEPS, check_steps
from rose.errors import RoseError, is_whole
from rose.output import write_file


def denoiser_of(pipeline: Any) -> nn.Module:
    """The component `transformer` or `unet` of a pipeline; raises RoseError where it has none, or several."""
    parts = [getattr(pipeline, name, None) for name in ("transformer", "unet")]
    denoisers = [part for part in parts if isinstance(part, nn.Module)]
    if len(denoisers) != 1:
        raise RoseError(
            f"{type(pipeline).__name__} has {len(denoisers) or 'no'} transformer or UNet; choose a pipeline with one."
        )
    if isinstance(getattr(pipeline, "transformer_2", None), nn.Module):
        raise RoseError(f"{type(pipeline).__name__} has two transformers, one after the other; choose one with one.")
    return denoisers[0]


def outermost_lists(denoiser: nn.Module) -> list[str]:
    """Names of the lists of blocks, such as "transformer_blocks", without lists inside blocks."""
    lists = [name for name, module in denoiser.named_modules() if isinstance(module, nn.ModuleList)]
    return [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]


def block_of(name: str, lists: Sequence[str]) -> str:
    """The block that contains a layer, such as "transformer_blocks.3"; "" outside all lists of blocks."""
    for prefix in lists:
        if name.startswith(f"{prefix}."):
            return f"{prefix}.{name.removeprefix(f'{prefix}.').partition('.')[0]}"
    return ""


Conditions = Sequence[int] | Sequence[str] | Sequence[Mapping[str, Any]]
# Called before the denoiser, with the number of the batch, the step, and the denoiser's input x_t.
Watch = Callable[[int, int, Tensor], None]
INPUT_NAMES = ("hidden_states", "sample")
GAP = 2  # pixels between the pictures of a sheet
SCALE = 4  # sheet pixels for each picture pixel, by side


@dataclass(frozen=True)
class Batch:
    """Pictures that are drawn together, by these arguments of the pipeline's call. `first` is the index of the first
    picture, or of the batch where its pictures cannot be counted: `count` is None."""

    arguments: Mapping[str, Any]
    first: int
    count: int | None


@dataclass(frozen=True)
class Trajectory:
    """A recorded trajectory.

    Attributes:
        states: x_t before each step, (steps, n, ...) float32; the first call of a step counts. If guidance gives every
            picture twice and pictures can be counted, a picture is kept once.
        times: t of each step, as the scheduler counts it.
        pictures: the pipeline's output, (n, ...) float32: pixels or latents.
    """

    states: Tensor
    times: tuple[float, ...]
    pictures: Tensor


def make_batches(pipeline: Any, conditions: Conditions, size: int) -> list[Batch]:
    """Divides conditions into batches of `size` pictures; raises RoseError for none, a mixture, or unknown arguments.
    `conditions`: classes (whole numbers), prompts (texts), or keyword arguments of the pipeline, one mapping per
    batch."""
    if not is_whole(size) or size < 1:
        raise RoseError(f"A batch must hold at least one picture, not {size!r}.")
    items: list[Any] = [] if isinstance(conditions, (str, Mapping)) else list(conditions)
    whole = all(map(is_whole, items))
    if not items:
        raise RoseError("Say what to draw: a list of classes, of prompts, or of keyword arguments for the pipeline.")
    if all(isinstance(item, Mapping) for item in items):
        batches = [Batch(dict(item), number, None) for number, item in enumerate(items)]
    elif whole or all(isinstance(item, str) for item in items):
        name = "class_labels" if whole else "prompt"
        values = [int(item) for item in items] if whole else items
        parts = [(first, values[first : first + size]) for first in range(0, len(values), size)]
        batches = [Batch({name: part}, first, len(part)) for first, part in parts]
    else:
        raise RoseError("Classes, prompts and keyword arguments cannot be mixed; give a list of one kind.")
    parameters = inspect.signature(pipeline.__call__).parameters
    for name in {name for batch in batches for name in batch.arguments} - parameters.keys():
        raise RoseError(
            f"{type(pipeline).__name__} takes no {name}; it takes {', '.join(list(parameters)[:6])} and more."
        )
    classes: Any = getattr(denoiser_of(pipeline).config, "num_embeds_ada_norm", None)
    labels = [batch.arguments.get("class_labels", ()) for batch in batches] if classes is not None else []
    for label in chain.from_iterable([item] if isinstance(item, int) else item for item in labels):
        if not 0 <= int(label) < classes:
            raise RoseError(f"There is no class {label}; this model knows 0 to {classes - 1}.")
    return batches


class DrawOptions(TypedDict, total=False):
    """How pictures are drawn; see `Trajectories`."""

    steps: int
    seed: int
    guidance: float | None
    batch: int


class Trajectories:
    """Pictures to draw with a pipeline, batch by batch. A picture's noise is the same for every model and batch size.
    `conditions`: see `make_batches`. `seed`: of the noise. `guidance`: the pipeline's `guidance_scale`; None leaves its
    default. `batch`: pictures drawn together."""

    def __init__(
        self,
        pipeline: Any,
        conditions: Conditions,
        steps: int = STEPS,
        seed: int = 0,
        guidance: float | None = None,
        batch: int = 32,
    ) -> None:
        check_steps(steps)
        if guidance is not None and "guidance_scale" not in inspect.signature(pipeline.__call__).parameters:
            raise RoseError(f"{type(pipeline).__name__} knows no guidance; leave it out.")
        self.pipeline, self.denoiser = pipeline, denoiser_of(pipeline)
        self.steps, self.seed, self.guidance = int(steps), seed, guidance
        self.batches = make_batches(pipeline, conditions, batch)

    def asked(self, step: int) -> int:
        """Which of the requested `steps` a visited step belongs to; some schedulers, such as KDPM2, visit more."""
        visited = max(self.steps, len(self.pipeline.scheduler.timesteps.unique_consecutive()))
        return min(step * self.steps // visited, self.steps - 1)

    def draw(
        self,
        watch: Watch = lambda _batch, _step, _x: None,
        tick: Callable[[float], Any] | None = None,
        output: str = "latent",
    ) -> Iterator[Tensor]:
        """Draws the batches in turn and yields the pipeline's output for each, float32 on the CPU. `tick` is called at
        every step with the share done; `tick` and `watch` may raise to stop. `output` is the pipeline's
        `output_type`."""

        def generator(number: int) -> torch.Generator:
            return torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)

        for number, batch in enumerate(self.batches):
            # One for each picture where pictures can be counted, so that noise does not depend on the batch size.
            generators = [generator(batch.first + k) for k in range(batch.count or 0)] or generator(batch.first)
            arguments = {"num_inference_steps": self.steps, "output_type": output, "return_dict": False}
            arguments |= {**batch.arguments, "generator": generators}
            if self.guidance is not None:
                arguments["guidance_scale"] = self.guidance

            def seen(step: int, steps: int, x: Tensor, number: int = number) -> None:
                watch(number, step, x)
                if tick is not None:
                    tick((number + (step + 1) / steps) / len(self.batches))

            with _watched(self.pipeline, seen), torch.no_grad():
                drawn = self.pipeline(**arguments)[0]
            yield torch.as_tensor(drawn).float().cpu()


@contextmanager
def _watched(pipeline: Any, watch: Callable[[int, int, Tensor], None]) -> Iterator[None]:
    """Calls `watch` with the step, the number of steps, and x_t before every call of the denoiser. A step begins
    where t changes, as some pipelines call their denoiser twice at one t."""
    times: list[float] = []

    def before(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(kwargs[name] for name in INPUT_NAMES if name in kwargs)
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        t = float(timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep)
        if not times or times[-1] != t:
            times.append(t)
        watch(len(times) - 1, max(len(pipeline.scheduler.timesteps), len(times)), x)

    with denoiser_of(pipeline).register_forward_pre_hook(before, with_kwargs=True):
        yield


def record_trajectory(
    pipeline: Any, conditions: Conditions, *, tick: Callable[[float], Any] | None = None, **options: Unpack[DrawOptions]
) -> Trajectory:
    """Draws pictures and keeps x_t before every step; models with the same seed start from the same noise. Arguments as
    for `Trajectories`; `tick` is called with the share done, 0 to 1, and may raise to stop. Raises RoseError for bad
    input, before any work."""
    drawing = Trajectories(pipeline, conditions, **options)
    states: list[list[Tensor]] = [[] for _ in drawing.batches]

    def watch(number: int, step: int, x: Tensor) -> None:
        count = drawing.batches[number].count
        if step == len(states[number]):
            once = x[:count] if count is not None and len(x) == 2 * count else x
            states[number].append(once.detach().float().cpu())

    pictures = torch.cat(list(drawing.draw(watch, tick)))
    times = tuple(float(t) for t in pipeline.scheduler.timesteps)
    return Trajectory(torch.stack([torch.cat(parts) for parts in zip(*states, strict=True)]), times, pictures)


def trajectory_drift(pruned: Trajectory, dense: Trajectory) -> Tensor:
    """‖x_t − x_t dense‖ / ‖x_t dense‖ before each step and, last, of the pictures; mean over pictures, (steps + 1,).
    Raises RoseError for trajectories with different steps or pictures."""
    if pruned.states.shape != dense.states.shape or pruned.times != dense.times:
        raise RoseError("The two trajectories have different steps or pictures; draw both with the same numbers.")
    ways = zip([*pruned.states, pruned.pictures], [*dense.states, dense.pictures], strict=True)
    return torch.stack([distance(state, other) for state, other in ways])


def distance(pictures: Tensor, dense: Tensor) -> Tensor:
    """‖x − x_dense‖ / ‖x_dense‖, the mean over pictures (n, …)."""
    apart, size = (pictures - dense).flatten(1).norm(dim=1), dense.flatten(1).norm(dim=1)
    return (apart / size.clamp_min(torch.finfo(size.dtype).tiny)).mean()


def draw_pictures(
    pipeline: Any, conditions: Conditions, *, tick: Callable[[float], Any] | None = None, **options: Unpack[DrawOptions]
) -> Tensor:
    """Pictures, (n, channels, height, width) float32 between −1 and 1; arguments and errors as for
    `record_trajectory`."""
    drawn = Trajectories(pipeline, conditions, **options).draw(tick=tick, output="pt")
    return torch.cat([pictures * 2 - 1 for pictures in drawn])


def write_sheet(path: Path, rows: Sequence[Tensor]) -> None:
    """Writes a PNG file with one row of pictures for each tensor (n, channels, height, width) between −1 and 1, padded
    with white; one channel is grey. Raises RoseError where the file cannot be written."""
    from PIL import Image  # comes with diffusers

    parts = [torch.nn.functional.pad(row, (0, GAP, 0, GAP), value=1.0) for row in rows]
    lines = [torch.cat(list(part), dim=-1) for part in parts]
    widest = max(line.shape[-1] for line in lines)
    lines = [torch.nn.functional.pad(line, (0, widest - line.shape[-1]), value=1.0) for line in lines]
    sheet = torch.cat(lines, dim=-2).float().clamp(-1, 1)
    pixels = ((sheet + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    buffer = io.BytesIO()
    Image.fromarray(pixels.repeat(SCALE, 0).repeat(SCALE, 1)).save(buffer, format="png")
    write_file(path, buffer.getvalue())
