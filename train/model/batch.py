"""A batch of training examples."""

from __future__ import annotations

from torch import Tensor

Batch = dict[str, Tensor]
