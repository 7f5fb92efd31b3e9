"""What every part of the training shares: its time, a stop that loses nothing, a checkpoint, CUDA graphs."""

import itertools
import signal
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.tiny.muon import Muon

EMA_DECAY = 0.9993
REPORT_SECONDS, SAVE_SECONDS = 5.0, 120.0
WARMUP = 0.03
"""Share of a part's time in which the rate rises."""
LEVEL = 0.5
"""Share of a part's time at the end of which the rate begins to fall, to nothing."""
GRAPH_WARMUPS = 3


class Stop:
    """Ctrl-C or SIGTERM asks for an end after the step and prints `saying`; a second one ends at once.

    As a context, it gives the signals back at its end.
    """

    def __init__(self, saying: str = "stopping after this step; the checkpoint is kept") -> None:
        self.asked, self._saying = False, saying
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def __enter__(self) -> "Stop":
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print(self._saying, flush=True)


class Trainee:
    """A module, its optimizers and its moving average, with a checkpoint of all of them.

    `matrices` are those of its parameters that Muon updates; all others are AdamW's.
    """

    def __init__(
        self,
        module: nn.Module,
        rate: float,
        path: Path,
        matrices: Sequence[nn.Parameter] = (),
    ):
        self.module, self.rate, self.path = module, rate, path
        self.average = deepcopy(module).eval().requires_grad_(False)
        chosen = {id(matrix) for matrix in matrices}
        others = [p for p in module.parameters() if p.requires_grad and id(p) not in chosen]
        device = others[0].device
        options = {"fused": True, "capturable": True} if device.type == "cuda" else {}

        def start() -> float | Tensor:
            return torch.tensor(0.0, device=device) if options else 0.0

        self._optimizers = [torch.optim.AdamW(others, start(), betas=(0.9, 0.98), weight_decay=0.01, **options)]
        self._optimizers += [Muon(matrices, start())] if matrices else []
        self._decay = torch.zeros((), device=device)
        self.spent = 0.0
        self.steps = 0
        if path.exists():
            self._load()
        self.hold()

    def hold(self) -> None:
        """Until prepare() steps change neither module nor average: recording a graph makes some, and a few at the full
        rate from an optimizer that knows nothing yet undo what the module has learnt before."""
        self._set_rate(0.0)
        self._decay.fill_(1.0)

    def prepare(self, share: float) -> None:
        """Before a step: the rate for `share` of the time gone (up, level, down), and the average's reach."""
        self._set_rate(self.rate * min(1.0, share / WARMUP + 0.01, (1 - share) / (1 - LEVEL) + 0.005))
        self._decay.fill_(min(EMA_DECAY, (1 + self.steps) / (10 + self.steps)))
        self.steps += 1

    def _set_rate(self, rate: float) -> None:
        for group in itertools.chain.from_iterable(optimizer.param_groups for optimizer in self._optimizers):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def update(self, loss: Tensor) -> None:
        """One step of the optimizer and the average; nothing here is decided on the host, so a graph may hold it."""
        update_together(loss, self)

    @torch.no_grad()
    def apply(self) -> None:
        """The optimizer's step with the gradients that are there."""
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
        average = list(self.average.parameters())
        ahead = torch._foreach_sub(list(self.module.parameters()), average)
        torch._foreach_mul_(ahead, 1 - self._decay)
        torch._foreach_add_(average, ahead)

    def save(self, spent: float) -> None:
        state = {
            "module": self.module.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "spent": spent,
            "steps": self.steps,
        }
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.path)

    def _load(self) -> None:
        state = torch.load(self.path, map_location=self._decay.device, weights_only=True)
        own = [optimizer.state_dict() for optimizer in self._optimizers]
        if _sizes(state["optimizers"]) != _sizes(own) or _shapes(state["module"]) != _shapes(self.module.state_dict()):
            raise ValueError(
                f"{self.path} is of another version, with other layers or optimizers; another --out begins anew, with "
                f"--begin-with {self.path.parent / 'weights'} from the weights that were reached there"
            )
        self.module.load_state_dict(state["module"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved, here in zip(self._optimizers, state["optimizers"], own, strict=True):
            # Whether a graph may hold it is this device's matter, not that of the one that it was saved on.
            optimizer.load_state_dict(saved | {"param_groups": here["param_groups"]})
        self.spent, self.steps = state["spent"], state["steps"]
        print(f"{self.path.name}: going on after {self.spent:.1f} min", flush=True)


class Progress:
    """How much of a part's minutes is gone, those of earlier runs included; prints a line now and then.

    What its `learners` have learnt is kept every SAVE_SECONDS, so that a run that dies loses no more.
    """

    def __init__(self, name: str, minutes: float, stop: Stop, *learners: Trainee) -> None:
        self.minutes, self._name, self._stop, self._learners = minutes, name, stop, learners
        self.steps, self.spent = 0, learners[0].spent
        self._begun = self._reported = self._saved = time.monotonic()
        self._losses: list[Tensor] = []

    @property
    def elapsed(self) -> float:
        """Minutes."""
        return self.spent + (time.monotonic() - self._begun) / 60

    @property
    def share(self) -> float:
        return min(1.0, self.elapsed / self.minutes) if self.minutes > 0 else 1.0

    @property
    def goes_on(self) -> bool:
        """Until the time is over or Ctrl-C; a part with any minutes that never made a step makes one."""
        if self._stop.asked or self.minutes == 0:
            return False
        return self.share < 1 or not (self.steps or self.spent)

    def step(self, loss: Tensor) -> None:
        self.steps += 1
        self._losses.append(loss.detach().clone())  # a graph writes the next one to the same place
        if time.monotonic() - self._reported > REPORT_SECONDS:
            self.report()
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def report(self) -> None:
        """Print the mean loss since the last report. The GPU is waited for, so that time counts its work."""
        loss = float(torch.stack(self._losses).mean()) if self._losses else float("nan")
        left = max(0.0, self.minutes - self.elapsed)
        print(f"{self._name}: step {self.steps}, loss {loss:.4f}, {left:.1f} min left", flush=True)
        self._reported, self._losses = time.monotonic(), []

    def save(self) -> None:
        for learner in self._learners:
            learner.save(self.elapsed)
        self._saved = time.monotonic()


def _sizes(optimizers: list[dict]) -> list[list[int]]:
    return [[len(group["params"]) for group in optimizer["param_groups"]] for optimizer in optimizers]


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def update_together(loss: Tensor, *trainees: Trainee) -> None:
    """One step of each, on the same loss; what else it goes through is left as it is."""
    for trainee in trainees:
        trainee.module.zero_grad(set_to_none=True)
    loss.backward(inputs=[p for each in trainees for p in each.module.parameters() if p.requires_grad])
    for trainee in trainees:
        trainee.apply()


def forget(folder: Path, *patterns: str) -> None:
    """Delete checkpoints that were made from what has just changed."""
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink()


def have_trained_again(path: Path) -> None:
    """What is kept there has all its minutes before it again, as what it learns from has changed."""
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
        torch.save(state | {"spent": 0.0}, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)


class Graphed:
    """A function of tensors as one CUDA graph: small models are bound by launches, this one by a factor of three.

    On a CPU it is the function itself. What it returns is overwritten by the next call. The function is run a few
    times before it is recorded.
    """

    def __init__(self, function: Callable[..., Tensor], *examples: Tensor):
        self._function = function
        self._inputs = [example.clone() for example in examples]
        self._graph = None
        if examples[0].is_cuda:
            self._record()

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self._graph is None:
            return self._function(*inputs)
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._result

    def _record(self) -> None:
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(GRAPH_WARMUPS):
                self._function(*self._inputs)
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = self._function(*self._inputs)
