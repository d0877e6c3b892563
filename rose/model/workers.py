"""One run over several processes: samples divided, statistics summed, a decoder block's layers divided.

Every process calls the same function with the same arguments, as `torchrun` makes them do. The process group of
`torch.distributed` tells how many there are, and `Workers.here()` describes it. A single process is one worker, whose
sums are its own. docs/large-models.md derives the traffic.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rose.environment import is_launched
from rose.errors import RoseError
from rose.layer.statistics import InputStatistics
from rose.layer.target import InputGap, OutputGap
from rose.model.network.layers import PrunableLayer
from rose.model.network.network import Network
from rose.model.network.precision import Precision
from rose.model.network.residence import pick_device

T = TypeVar("T")
PATIENCE = timedelta(days=2)  # others wait while the first process measures a perplexity or writes a model


def choose_gpu() -> None:
    """Gives every process of a launcher a GPU of its own, as far as there are GPUs."""
    if is_launched() and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the processes of a launcher, over nccl with GPUs, else over gloo; does nothing without a launcher."""
    if not is_launched() or dist.is_initialized():
        yield
        return
    choose_gpu()
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _to_send(problem: Exception) -> Exception:
    """An exception that other processes can read, so that they fail too and do not wait for this one."""
    try:
        pickle.loads(pickle.dumps(problem))
    except Exception:
        return RuntimeError(f"{type(problem).__name__}: {problem}")
    return problem


@dataclass(frozen=True)
class Workers:
    """The processes that share the work of one run: their number, and this one's place; the first writes files."""

    count: int = 1
    place: int = 0

    @classmethod
    def here(cls) -> Workers:
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_world_size(), dist.get_rank())
        return cls()

    def gather(self, value: T) -> list[T]:
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def from_first(self, work: Callable[[], T]) -> T:
        """The result of `work` in the first process, or the exception that it raises there, in all processes."""
        if self.count == 1:
            return work()
        sent: list[Any] = [None, None]
        if self.place == 0:
            try:
                sent[0] = work()
            except Exception as problem:
                dist.broadcast_object_list([None, _to_send(problem)])
                raise
        dist.broadcast_object_list(sent)
        if sent[1] is not None:
            raise sent[1]
        return sent[0]

    def precision(self, compute: str, network: Network, dtype: torch.dtype | None = None) -> Precision:
        """The first process's number formats, by default for weights in the network's own format."""
        return self.from_first(partial(Precision.of, compute, dtype or network.dtype, network.device))

    def all_agree(self, value: Any) -> bool:
        return all(other == value for other in self.gather(value))

    def smallest(self, number: int | None) -> int | None:
        """The smallest number in any process; None if all have None."""
        return min((other for other in self.gather(number) if other is not None), default=None)

    def my_samples(self, tokens: Tensor, name: str) -> Tensor:
        """This process's part of (samples, length) tokens; raises RoseError for fewer samples than processes."""
        if len(tokens) < self.count:
            raise RoseError(f"{len(tokens)} {name} samples cannot be divided over {self.count} processes; take more.")
        return tokens.tensor_split(self.count)[self.place]

    def sum_tensor(self, values: Tensor) -> None:
        if self.count > 1:
            dist.all_reduce(values)

    def sum_statistics(
        self, statistics: dict[str, InputStatistics], where: str = "", routed: Sequence[str] = ()
    ) -> None:
        """Sums the statistics of all processes in place, shared objects once.

        Adds `routed` layers that only other processes' samples have reached. `where` is the position in the model if
        the names do not tell it. Raises RoseError if the processes have not reached the same layers together.
        """
        if self.count == 1:
            return
        if routed:
            seen = {name: (id(statistics[name]), statistics[name].columns) for name in routed if name in statistics}
            device = pick_device()
            for other in self.gather(seen):
                groups: dict[int, InputStatistics] = {}
                for name, (group, columns) in other.items():
                    if name not in statistics:
                        statistics[name] = groups.setdefault(group, InputStatistics(columns, device))
        names = sorted(statistics)
        shared = [next(other for other in names if statistics[other] is statistics[name]) for name in names]
        if not self.all_agree((where, names, shared)):
            raise RoseError(
                "The samples of different processes did not reach the same layers, as happens with routed experts; "
                "prune this model in one process."
            )
        for each in {id(statistics[name]): statistics[name] for name in names}.values():
            each.sum_over(dist.all_reduce)

    def sum_gaps(self, gaps: Mapping[str, InputGap | OutputGap], where: str) -> None:
        """Sums the gaps of one layer over all processes, in place; raises RoseError if their streams differ."""
        if self.count == 1:
            return
        if not self.all_agree((where, sorted(gaps))):
            raise RoseError(
                "The processes know different parts of the dense targets, as happens with routed experts; prune this "
                "model in one process, or with target layer."
            )
        for stream in sorted(gaps):
            gaps[stream].sum_over(dist.all_reduce)

    def divide(self, layers: Sequence[PrunableLayer], statistics: Mapping[str, InputStatistics]) -> list[int]:
        """The process that prunes each layer: the costliest layers first, each to the process that finishes it soonest.

        A sweep costs rows · columns², and a factorization columns³, once in each process with a layer of the group.
        """
        loads = [0] * self.count
        groups: list[set[int]] = [set() for _ in loads]
        owners = [0] * len(layers)

        def cost(number: int) -> int:
            return layers[number].weight.numel() * layers[number].weight.shape[1]

        for number in sorted(range(len(layers)), key=cost, reverse=True):
            group, columns = id(statistics.get(layers[number].name)), layers[number].weight.shape[1]
            factoring = (columns**3 * (group not in factored) for factored in groups)
            ends = [load + cost(number) + factoring_cost for load, factoring_cost in zip(loads, factoring, strict=True)]
            owner = ends.index(min(ends))
            owners[number], loads[owner] = owner, ends[owner]
            groups[owner].add(group)
        return owners

    def exchange(self, owners: Sequence[int], work: Callable[[int], T]) -> list[T]:
        """`work(number)` for every number, done by its owner: the results, or the exception, in all processes."""
        if self.count == 1:
            return [work(number) for number in range(len(owners))]
        mine: dict[int, T] = {}
        failure: Exception | None = None
        problems: dict[int, Exception] = {}
        for number in (number for number, owner in enumerate(owners) if owner == self.place):
            try:
                mine[number] = work(number)
            except Exception as problem:
                failure, problems[number] = problem, _to_send(problem)
                break
        parts = self.gather((mine, problems))
        if problems := {number: problem for _, of_process in parts for number, problem in of_process.items()}:
            raise problems[min(problems)] from failure  # which a single process would meet first
        results = {number: value for part, _ in parts for number, value in part.items()}
        return [results[number] for number in range(len(owners))]

    def send_weights(self, layers: Sequence[PrunableLayer], owners: Sequence[int]) -> None:
        """Brings every layer's weight from its owner into the models of all processes."""
        if self.count == 1:
            return
        for layer, owner in zip(layers, owners, strict=True):
            weight = layer.weight.contiguous()
            dist.broadcast(weight.view(torch.uint8), owner)  # bytes: not every backend knows every dtype
            if owner != self.place:
                layer.write(weight)
