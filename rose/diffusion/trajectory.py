"""A pipeline's walk from noise to pictures, watched at its denoiser; nothing of a particular pipeline is assumed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from rose.diffusion.denoiser import denoiser_of
from rose.diffusion.steps import STEPS, check_steps
from rose.errors import RoseError
from rose.given import is_whole

Conditions = Sequence[int] | Sequence[str] | Sequence[Mapping[str, Any]]
# Called before the denoiser, with the number of the batch, the step, and the denoiser's input x_t.
Watch = Callable[[int, int, Tensor], None]
INPUT_NAMES = ("hidden_states", "sample")


@dataclass(frozen=True)
class Batch:
    """Pictures that are drawn together, by these arguments of the pipeline's call.

    `first` is the index of the first picture, or of the batch where its pictures cannot be counted: `count` is None.
    """

    arguments: Mapping[str, Any]
    first: int
    count: int | None


@dataclass(frozen=True)
class Trajectory:
    """What was seen on the way.

    Attributes:
        states: x_t before each step, (steps, n, ...) float32. A pipeline whose denoiser is asked several times a step
            is seen at the first. Where guidance gives every picture twice, it is kept once if the pictures can be
            counted.
        times: t of each step, as the scheduler counts it.
        pictures: what the pipeline put out, (n, ...) float32: pixels or latents.
    """

    states: Tensor
    times: tuple[float, ...]
    pictures: Tensor


def make_batches(pipeline: Any, conditions: Conditions, size: int) -> list[Batch]:
    """Cuts what is to be drawn into batches of `size` pictures; raises RoseError for nothing, a mixture, or what the
    pipeline does not take.

    `conditions`: classes (whole numbers), prompts (texts), or keyword arguments of the pipeline, one mapping for each
    batch.
    """
    if not is_whole(size) or size < 1:
        raise RoseError(f"A batch must hold at least one picture, not {size!r}.")
    given: list[Any] = [] if isinstance(conditions, (str, Mapping)) else list(conditions)
    whole = all(map(is_whole, given))
    if not given:
        raise RoseError("Say what to draw: a list of classes, of prompts, or of keyword arguments for the pipeline.")
    if all(isinstance(one, Mapping) for one in given):
        batches = [Batch(dict(one), number, None) for number, one in enumerate(given)]
    elif whole or all(isinstance(one, str) for one in given):
        name = "class_labels" if whole else "prompt"
        values = [int(one) for one in given] if whole else given
        parts = [(first, values[first : first + size]) for first in range(0, len(values), size)]
        batches = [Batch({name: part}, first, len(part)) for first, part in parts]
    else:
        raise RoseError("Classes, prompts and keyword arguments cannot be mixed; give a list of one kind.")
    taken = inspect.signature(pipeline.__call__).parameters
    for name in {name for batch in batches for name in batch.arguments} - taken.keys():
        raise RoseError(f"{type(pipeline).__name__} takes no {name}; it takes {', '.join(list(taken)[:6])} and more.")
    known: Any = getattr(denoiser_of(pipeline).config, "num_embeds_ada_norm", None)
    labels = [batch.arguments.get("class_labels", ()) for batch in batches] if known is not None else []
    for label in chain.from_iterable([one] if isinstance(one, int) else one for one in labels):
        if not 0 <= int(label) < known:
            raise RoseError(f"There is no class {label}; this model knows 0 to {known - 1}.")
    return batches


class DrawOptions(TypedDict, total=False):
    """How pictures are drawn; see `Trajectories`."""

    steps: int
    seed: int
    guidance: float | None
    batch: int


class Trajectories:
    """Pictures to draw with a pipeline, batch by batch; every picture has noise of its own, the same for every model
    and every batch size.

    `conditions`: see `make_batches`. `seed` is that of the noise, `guidance` the `guidance_scale` of the pipeline (None
    leaves its default), and `batch` the number of pictures drawn together.
    """

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
        """Which of the `steps` asked for a step belongs to, while a batch is drawn: some schedulers visit more times
        than that, such as KDPM2, which adds one between any two."""
        visited = max(self.steps, len(self.pipeline.scheduler.timesteps.unique_consecutive()))
        return min(step * self.steps // visited, self.steps - 1)

    def draw(
        self,
        watch: Watch = lambda _batch, _step, _x: None,
        tick: Callable[[float], Any] | None = None,
        output: str = "latent",
    ) -> Iterator[Tensor]:
        """Draws the batches in turn, and yields what the pipeline puts out for each, float32 on the CPU.

        `tick` is called at every step with the share done; it and `watch` may raise to stop. `output` is the pipeline's
        `output_type`: "latent" (or pixels where it knows no latents), "pt" for pixels.
        """
        for number, batch in enumerate(self.batches):
            arguments = {"num_inference_steps": self.steps, "output_type": output, "return_dict": False}
            arguments |= {**batch.arguments, "generator": _generators(batch, self.seed)}
            if self.guidance is not None:
                arguments["guidance_scale"] = self.guidance

            def seen(step: int, steps: int, x: Tensor, number: int = number) -> None:
                watch(number, step, x)
                if tick is not None:
                    tick((number + (step + 1) / steps) / len(self.batches))

            with _watched(self.pipeline, seen), torch.no_grad():
                drawn = self.pipeline(**arguments)[0]
            yield torch.as_tensor(drawn).float().cpu()


def _generators(batch: Batch, seed: int) -> torch.Generator | list[torch.Generator]:
    """One for each picture where they can be counted, so that noise does not depend on the batch size."""

    def generator(number: int) -> torch.Generator:
        return torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)

    if batch.count is None:
        return generator(batch.first)
    return [generator(batch.first + number) for number in range(batch.count)]


@contextmanager
def _watched(pipeline: Any, watch: Callable[[int, int, Tensor], None]) -> Iterator[None]:
    """Calls `watch` with the step, how many there are, and x_t before every call of the denoiser. A step begins where
    t changes, so that a pipeline may ask its denoiser twice at one t, as some do for guidance."""
    times: list[float] = []

    def before(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        x, t = _read_input(args, kwargs)
        if not times or times[-1] != t:
            times.append(t)
        steps = max(len(pipeline.scheduler.timesteps), len(times))
        watch(len(times) - 1, steps, x)

    with denoiser_of(pipeline).register_forward_pre_hook(before, with_kwargs=True):
        yield


def _read_input(args: tuple, kwargs: Mapping[str, Any]) -> tuple[Tensor, float]:
    """x_t and t, from the arguments of a denoiser's call."""
    x = args[0] if args else next(kwargs[name] for name in INPUT_NAMES if name in kwargs)
    t = kwargs["timestep"] if "timestep" in kwargs else args[1]
    return x, float(t.flatten()[0] if isinstance(t, Tensor) else t)


def record_trajectory(
    pipeline: Any,
    conditions: Conditions,
    *,
    tick: Callable[[float], Any] | None = None,
    **options: Unpack[DrawOptions],
) -> Trajectory:
    """Draws pictures and keeps x_t before every step; two models with the same seed start from the same noise.

    Args:
        pipeline, conditions, options: see `Trajectories`.
        tick: called with the share done, 0 to 1; may raise to stop.

    Raises:
        RoseError: bad input, before any work.
    """
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


def draw_pictures(
    pipeline: Any,
    conditions: Conditions,
    *,
    tick: Callable[[float], Any] | None = None,
    **options: Unpack[DrawOptions],
) -> Tensor:
    """Pictures, (n, channels, height, width) float32 between −1 and 1; arguments as for `record_trajectory`.

    Raises:
        RoseError: bad input, before any work.
    """
    drawn = Trajectories(pipeline, conditions, **options).draw(tick=tick, output="pt")
    return torch.cat([pictures * 2 - 1 for pictures in drawn])
