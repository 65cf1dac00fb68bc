"""AQuant: the border between rounding down and up is learned, as a function of the activation.

Rounding an activation up is right for a product w·x, in place of which wq·q is computed, iff

    frac(x) > B(x) = 1/2 + (wq - w)/wq · x           x in steps

A border a channel, shared by all weights that it meets, is a mixture of such lines, and errors of earlier layers bend it. So

    q = saturate(floor(v - (b2·v + b1)·v - b0 + 1) + zero)      v = x / scale       b0 = 1/2, b1 = b2 = 0: to the nearest

is learned for each channel by gradient descent (Adam; straight through the floor) on the products' squared output errors against the float
network, the input being that of the quantized network so far: layer by layer, not by blocks of layers. What is learned is kept only if it
lowers the error on samples that were held out. The weights' rounding can be learned along with it (AdaRound's rectified sigmoid), under
the same guard.

A layer is learned from sampled windows, so that a step of descent is two matrix products:

    x [N, C, taps] → q → x̂ · w [C·taps, O] → y [N, O]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..ir import Array

NEAREST = (0.5, 0.0, 0.0)


@dataclass(frozen=True)
class Grid:
    """The integers that an activation is rounded to."""

    scale: float
    zero: int
    low: int
    high: int

    def round(self, x: Array, border: Array) -> Array:
        """Integers for x [..., C, taps] by borders [3, C]; in float32, in the order of QuantizeLinear's."""
        return np.clip(self._unclipped(x, border), self.low, self.high)

    def _unclipped(self, x: Array, border: Array) -> Array:
        v = x / np.float32(self.scale)
        b0, b1, b2 = (b[:, None] for b in border.astype(np.float32))
        whole: Array = np.floor(v - (b2 * v + b1) * v - b0 + np.float32(1)) + np.float32(self.zero)
        return whole

    def real(self, q: Array) -> Array:
        """What integers stand for."""
        found: Array = (q - np.float32(self.zero)) * np.float32(self.scale)
        return found


@dataclass(frozen=True, eq=False)
class Task:
    """One product of the activation: windows x [N, C, taps] of the quantized network, what they should give y [N, O].

    `inside` is False where a window is padding; `w` [O, C/group, taps] are the rounded weights; `clip` is what an activation does behind,
    after adding `bias` [O].
    """

    x: Array
    y: Array
    w: Array
    inside: Array | None = None
    group: int = 1
    clip: tuple[float, float] = (-np.inf, np.inf)
    bias: Array | None = None

    def part(self, rows: Array | slice) -> Task:
        """Some of the samples."""
        inside = None if self.inside is None else self.inside[rows]
        return replace(self, x=self.x[rows], y=self.y[rows], inside=inside)

    @property
    def matrix(self) -> Array:
        """The weights, [group, K, O/group]."""
        o = len(self.w)
        return self.w.reshape(self.group, o // self.group, -1).transpose(0, 2, 1)

    def product(self, real: Array, matrix: Array) -> Array:
        """[N, O] of rounded windows."""
        n = len(real)
        made: Array = (self.columns(real) @ matrix).transpose(1, 0, 2).reshape(n, -1)
        return made if self.bias is None else made + self.bias

    def columns(self, real: Array) -> Array:
        """Windows as [group, N, K]."""
        return real.reshape(len(real), self.group, -1).transpose(1, 0, 2)

    def rounded(self, grid: Grid, border: Array) -> Array:
        """The windows after rounding; padding stays zero."""
        real = grid.real(grid.round(self.x, border))
        return real if self.inside is None else real * self.inside

    def error(self, grid: Grid, border: Array, matrix: Array | None = None) -> float:
        """Mean squared error of the outputs behind the activation."""
        y = self.product(self.rounded(grid, border), self.matrix if matrix is None else matrix)
        return float(np.square(np.clip(y, *self.clip) - np.clip(self.y, *self.clip)).mean())


@dataclass(frozen=True)
class Options:
    """How to learn. `degree` is that of the border; a quarter of the samples, `held`, is for the guard."""

    steps: int = 600
    batch: int = 256
    rate: float = 1e-2
    degree: int = 2
    held: float = 0.25
    seed: int = 0
    weights: bool = False
    pressure: float = 300.0


@dataclass(frozen=True, eq=False)
class Learned:
    """A border [3, C], or None where the nearest is as good; held-out errors before and after; the tasks' weights where these were learned."""

    border: Array | None
    before: float
    after: float
    rounding: tuple[Array, ...] = field(default=())

    @property
    def ratio(self) -> float:
        return self.after / self.before if self.before else 1.0


def nearest(channels: int) -> Array:
    """The border of rounding to the nearest."""
    return np.repeat(np.array(NEAREST, np.float32)[:, None], channels, 1)


def learn(
    tasks: Sequence[Task],
    grid: Grid,
    options: Options = Options(),
    rounding: Sequence[Rounding] = (),
) -> Learned:
    """The border for an activation that some products read; with `rounding` their weights as well."""
    rng = np.random.default_rng(options.seed)
    start = nearest(tasks[0].x.shape[1])
    train, held = zip(*(_split(t, options.held, rng) for t in tasks), strict=True)
    descent = _Descent(train, grid, options, rounding if options.weights else (), rng)
    border = descent.run(start)
    before = sum(t.error(grid, start) for t in held)
    found: list[tuple[float, Array | None, tuple[Array, ...]]] = [(before, None, ())]
    learned = tuple(r.hard() for r in descent.rounding)
    matrices = (
        [replace(t, w=w).matrix for t, w in zip(held, learned, strict=True)]
        if learned
        else [None] * len(held)
    )
    after = sum(t.error(grid, border, m) for t, m in zip(held, matrices, strict=True))
    found.append((after, border, learned))
    if learned:
        after = sum(t.error(grid, start, m) for t, m in zip(held, matrices, strict=True))
        found.append((after, None, learned))
    error, kept, weights = min(found, key=lambda f: f[0])
    return Learned(kept, before, error, weights)


def _split(t: Task, held: float, rng: np.random.Generator) -> tuple[Task, Task]:
    order = rng.permutation(len(t.x))
    cut = max(1, round(len(order) * held))
    return t.part(order[cut:]), t.part(order[:cut])


class Rounding:
    """Weights [O, C/group, taps] between the two integers around them: floor + h, h = clip(1.2·sigmoid(v) - 0.1, 0, 1), learned."""

    def __init__(self, w: Array, scale: Array, zero: Array, low: int, high: int) -> None:
        self.scale, self.zero = (a.astype(np.float32)[:, None, None] for a in (scale, zero))
        self.low, self.high = low, high
        x = w.astype(np.float32) / self.scale + self.zero
        self.floor = np.floor(x)
        part = np.clip(x - self.floor, 0.01, 0.99)
        self.v = -np.log(1.2 / (part + 0.1) - 1)

    def soft(self) -> tuple[Array, Array]:
        """(weights now, their derivative by v)."""
        s = 1 / (1 + np.exp(-self.v))
        h = np.clip(1.2 * s - 0.1, 0, 1)
        x = self.floor + h
        free = (h > 0) & (h < 1) & (x > self.low) & (x < self.high)
        return self._real(x), 1.2 * s * (1 - s) * free * self.scale

    def pressure(self, beta: float) -> Array:
        """The derivative by v of mean(1 - |2h - 1|^beta), which drives h to 0 or 1."""
        s = 1 / (1 + np.exp(-self.v))
        h = np.clip(1.2 * s - 0.1, 0, 1)
        d = 2 * h - 1
        made: Array = (
            -2 * beta * np.sign(d) * np.abs(d) ** (beta - 1) * 1.2 * s * (1 - s) / self.v.size
        )
        return made

    def integers(self) -> Array:
        """The integers that were chosen."""
        q: Array = np.clip(self.floor + (self.v > 0), self.low, self.high)
        return q

    def hard(self) -> Array:
        """The weights that the integers stand for."""
        return self._real(self.integers())

    def _real(self, x: Array) -> Array:
        real: Array = (np.clip(x, self.low, self.high) - self.zero) * self.scale
        return real


class _Descent:
    """Adam on the borders' coefficients, in units of the grid's width so that all three are alike, and on the weights' roundings."""

    def __init__(
        self,
        tasks: Sequence[Task],
        grid: Grid,
        options: Options,
        rounding: Sequence[Rounding],
        rng: np.random.Generator,
    ) -> None:
        self.tasks, self.grid, self.options, self.rounding, self.rng = (
            tasks,
            grid,
            options,
            rounding,
            rng,
        )
        self.width = np.float32(max(grid.high - grid.zero, grid.zero - grid.low, 1))
        self.unit = np.array([1, 1 / self.width, 1 / self.width**2], np.float32)[:, None]

    def run(self, start: Array) -> Array:
        """Learn; the border of the last step."""
        o = self.options
        c = start / self.unit
        adam = Adam()
        scale = [max(t.error(self.grid, start), 1e-20) for t in self.tasks]
        for step in range(o.steps):
            rate = o.rate * 0.5 * (1 + np.cos(np.pi * step / o.steps))
            total = np.zeros_like(c)
            for k, t in enumerate(self.tasks):
                rows = self.rng.integers(0, len(t.x), min(o.batch, len(t.x)))
                total += self._step(t.part(rows), c * self.unit, scale[k], k, adam, step)
            total[o.degree + 1 :] = 0
            c = c - adam(("border", 0), total * self.unit, rate)
        learned: Array = (c * self.unit).astype(np.float32)
        return learned

    def _step(self, t: Task, border: Array, scale: float, k: int, adam: Adam, step: int) -> Array:
        """The derivative of a task's error, in units of its first one, by the border [3, C]; moves the weights' roundings."""
        v = t.x / np.float32(self.grid.scale)
        free = self.grid._unclipped(t.x, border)
        q = np.clip(free, self.grid.low, self.grid.high)
        real = self.grid.real(q)
        real = real if t.inside is None else real * t.inside
        soft = self.rounding[k].soft() if self.rounding else (t.w, t.w)
        matrix = replace(t, w=soft[0]).matrix
        y = t.product(real, matrix)
        low, high = t.clip
        seen = ((y > low) & (y < high)) | ((t.y > low) & (t.y < high))
        d = (
            (np.clip(y, low, high) - np.clip(t.y, low, high))
            * seen
            * np.float32(2 / (y.size * scale))
        )
        d = d.reshape(len(y), t.group, -1).transpose(1, 0, 2)  # [group, N, O/group]
        if self.rounding:
            slope = (t.columns(real).transpose(0, 2, 1) @ d).transpose(0, 2, 1).reshape(t.w.shape)
            self._press(k, slope * soft[1], adam, step)
        dx = (d @ matrix.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(t.x.shape)
        moves = (
            -dx * np.float32(self.grid.scale) * ((free >= self.grid.low) & (free <= self.grid.high))
        )
        moves = moves if t.inside is None else moves * t.inside
        made: Array = np.stack(
            [moves.sum((0, 2)), (moves * v).sum((0, 2)), (moves * v * v).sum((0, 2))]
        )
        return made

    def _press(self, k: int, slope: Array, adam: Adam, step: int) -> None:
        """Move the weights of a task; behind a fifth of the steps they are driven to integers, ever harder."""
        o, r = self.options, self.rounding[k]
        done = (step / o.steps - 0.2) / 0.8
        if done > 0:
            slope = slope + o.pressure * r.pressure(20 - 18 * done)
        r.v = r.v - adam(("weights", k), slope, 2 * o.rate)


class Adam:
    """Steps of Adam for several arrays."""

    def __init__(self) -> None:
        self.state: dict[object, tuple[int, Array, Array]] = {}

    def __call__(self, key: object, slope: Array, rate: float) -> Array:
        """What to subtract."""
        n, m, s = self.state.get(key, (0, np.zeros_like(slope), np.zeros_like(slope)))
        n, m, s = n + 1, 0.9 * m + 0.1 * slope, 0.999 * s + 0.001 * slope**2
        self.state[key] = (n, m, s)
        made: Array = rate * (m / (1 - 0.9**n)) / (np.sqrt(s / (1 - 0.999**n)) + 1e-12)
        return made
