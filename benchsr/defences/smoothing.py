"""Median randomized smoothing (paper, section 4; Chiang et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchsr.base.errors import InputError
from benchsr.base.inference import MOST_DRAWS, draw_slices
from benchsr.base.rng import Randomised, generator

AT_ONCE = 2**18
"""Draws whose median is taken together; bounds what torch.median copies to a few MB."""


class Smoothed(Randomised):
    """q_0.5: the per-pixel median of `network` over `n` draws of x + N(0, sigma^2 I) (paper, Lemma 4.1 with p = 0.5).

    `sigma` is in [0, 1] pixel units. `ids` given to `forward` (default "0", "1", ...), `purpose` and `seed` fix each
    image's draws. The noisy input is not clipped: the certificate is about Gaussian noise. For even n the median is the
    lower of the two middle draws. Raises InputError unless sigma > 0 and n >= 1.

    Memory beyond one forward pass of one chunk of draws: the n outputs of one image, 4 bytes an element, and a few MB.
    Each output element's gradient, by the input and by parameters that require it, flows through the draw that was its
    median. Where the draws are more than one chunk it costs one more pass and no more memory: they are made again, one
    chunk at a time.
    On the CPU the chunks are those of `draw_slices`, the same for everyone; on a GPU `draws_at_once` go together, which
    changes rounding at most.
    """

    def __init__(
        self, network: nn.Module, sigma: float, n: int = 21, seed: int = 0, draws_at_once: int = MOST_DRAWS
    ) -> None:
        if not sigma > 0 or n < 1:
            raise InputError(f"smoothing needs sigma > 0 and n >= 1; got sigma={sigma}, n={n}")
        super().__init__()
        self.network = network
        self.sigma = sigma
        self.n = n
        self.seed = seed
        self.draws_at_once = draws_at_once

    def noisy(self, x: Tensor, sample_id: str, purpose: str) -> Iterator[tuple[slice, Tensor]]:
        """The n noisy copies of one image `x` (3, h, w), in chunks (k, 3, h, w) with the numbers of their draws."""
        gen = generator(self.seed, sample_id, purpose)
        for rows in draw_slices(self.n, x, self.draws_at_once):
            noise = torch.stack([torch.randn(x.shape, generator=gen) for _ in range(rows.start, rows.stop)])
            yield rows, x + self.sigma * noise.to(x)

    @torch.no_grad()
    def draws(self, x: Tensor, sample_id: str, purpose: str = "evaluation-0") -> Tensor:
        """The network's n outputs (n, 3, sh, sw) for one image `x` (3, h, w), without gradient."""
        stored = x.new_empty(0)
        for rows, noisy in self.noisy(x, sample_id, purpose):
            sr = self.network(noisy)
            if rows.start == 0:
                stored = sr.new_empty(self.n, *sr.shape[1:])
            stored[rows] = sr
        return stored

    def forward(self, x: Tensor, ids: Sequence[str] | None = None, purpose: str = "evaluation-0") -> Tensor:
        """Median SR (N, 3, sh, sw), unclamped, of `x` (N, 3, h, w) in [0, 1]."""
        ids = [str(i) for i in range(len(x))] if ids is None else ids
        return torch.stack([self._image(image, i, purpose) for image, i in zip(x, ids, strict=True)])

    def _image(self, x: Tensor, sample_id: str, purpose: str) -> Tensor:
        if len(list(draw_slices(self.n, x, self.draws_at_once))) == 1:  # backward holds one chunk anyway
            draws = self.network(next(self.noisy(x, sample_id, purpose))[1])
            median: Tensor = draws.gather(0, _median(draws.detach())[1][None])[0]
            return median
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        median = _Median.apply(self, sample_id, purpose, x, *parameters)
        return median


def _median(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Median over the draws (n, 3, H, W), and which draw it was; in parts, as torch copies all that it is given."""
    parts = [part.median(dim=0) for part in draws.flatten(1).split(max(1, AT_ONCE // len(draws)), dim=1)]
    values, indices = (torch.cat(column) for column in zip(*parts, strict=True))
    return values.view(draws.shape[1:]), indices.view(draws.shape[1:])


class _Median(torch.autograd.Function):
    """Median over draws of one image; see `Smoothed` for what its gradient is and costs."""

    @staticmethod
    def forward(ctx: Any, smoothed: Smoothed, sample_id: str, purpose: str, x: Tensor, *parameters: Tensor) -> Tensor:
        median, chosen = _median(smoothed.draws(x, sample_id, purpose))
        ctx.draw = smoothed, sample_id, purpose
        ctx.save_for_backward(chosen, x, *parameters)
        return median

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        smoothed, sample_id, purpose = ctx.draw
        chosen, x, *parameters = ctx.saved_tensors
        x = x.detach().requires_grad_(ctx.needs_input_grad[3])
        wanted = [t for t in (x, *parameters) if t.requires_grad]
        sums = [torch.zeros_like(t) for t in wanted]
        with torch.enable_grad():
            for rows, noisy in smoothed.noisy(x, sample_id, purpose):
                draw = torch.arange(rows.start, rows.stop, device=x.device).view(-1, 1, 1, 1)
                gradient = grad * (chosen == draw)
                parts = torch.autograd.grad(smoothed.network(noisy), wanted, gradient, materialize_grads=True)
                for total, part in zip(sums, parts, strict=True):
                    total += part
        found = iter(sums)
        return None, None, None, *(next(found) if t.requires_grad else None for t in (x, *parameters))


def smooth(model: nn.Module, sigma: float, n: int = 21, seed: int = 0) -> Smoothed:
    """The median-smoothed version of `model`; see `Smoothed`. Raises InputError unless sigma > 0 and n >= 1.

    Examples:
        >>> import benchsr, torch
        >>> smoothed = benchsr.smooth(benchsr.load_model("bicubic"), sigma=0.06)
        >>> smoothed(torch.full((1, 3, 16, 16), 0.5), ids=["grey"]).shape
        torch.Size([1, 3, 64, 64])
    """
    return Smoothed(model, sigma, n, seed)
