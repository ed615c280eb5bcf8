"""Attention masks that let each token of a packed row see its own ancestors and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunescope.evaluate.scoring.trees import Layout

__all__ = ["MaskForm", "RowInputs", "find_mask_form", "row_inputs"]

ATTENTION_KINDS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class MaskForm:
    """How a model takes a ready-made attention mask."""

    windows: dict[str, int | None]
    """Kind of attention layer -> how many tokens back it sees, itself included; None: all."""

    @property
    def by_kind(self) -> bool:
        """Whether the model wants one mask for each kind of layer."""
        return len(self.windows) > 1


def find_mask_form(config: Any) -> MaskForm | None:
    """The form for a model's config; None where its layers are not plain or sliding attention."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if not getattr(text, "use_sliding_window", True):
        window = None
    kinds = set(getattr(text, "layer_types", None) or ())
    if not kinds:
        return MaskForm({"sliding_attention" if window else "full_attention": window})
    if not kinds <= ATTENTION_KINDS:
        return None
    windows = {"full_attention": None, "sliding_attention": getattr(text, "sliding_window", None)}
    return MaskForm({kind: windows[kind] for kind in sorted(kinds)})


@dataclass(frozen=True)
class RowInputs:
    """What a model is given for a batch of rows."""

    input_ids: Tensor
    """(rows, width)"""
    position_ids: Tensor
    """(rows, width)"""
    attention_mask: Tensor | dict[str, Tensor]
    """(rows, 1, width, prefix + width), 0 where a token may look and very negative elsewhere."""

    def arguments(self) -> dict[str, Any]:
        """As keyword arguments of a transformers model."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": self.attention_mask,
        }

    def masks(self) -> list[Tensor]:
        """The masks one by one."""
        mask = self.attention_mask
        return [*mask.values()] if isinstance(mask, dict) else [mask]


def row_inputs(
    layouts: Sequence[Layout], prefix: int, form: MaskForm, device: torch.device, dtype: torch.dtype
) -> RowInputs:
    """Rows, padded on the right to the longest, behind a cached prefix of ``prefix`` tokens."""
    width = max(len(layout.tokens) for layout in layouts)
    tokens = np.zeros((len(layouts), width), dtype=np.int64)
    depths = np.zeros((len(layouts), width), dtype=np.int64)
    allowed = np.zeros((len(layouts), width, prefix + width), dtype=bool)
    # Padding looks at itself, so that no softmax is over nothing.
    allowed[:, np.arange(width), prefix + np.arange(width)] = True
    for i, layout in enumerate(layouts):
        size = len(layout.tokens)
        tokens[i, :size] = layout.tokens
        depths[i, :size] = layout.depths
        allowed[i, :size, :prefix] = True
        for start, stop, ancestors in layout.branches:
            own = allowed[i, start:stop]
            own[:, np.asarray(ancestors, dtype=np.int64) + prefix] = True
            own[:, prefix + start : prefix + stop] = np.tri(stop - start, dtype=bool)
    visible = torch.from_numpy(allowed).to(device)
    masks = {}
    for kind, window in form.windows.items():
        seen = visible
        if window is not None:
            keys = np.concatenate([np.tile(np.arange(prefix), (len(layouts), 1)), depths], axis=1)
            near = depths[:, :, None] - keys[:, None, :] < window
            seen = visible & torch.from_numpy(near).to(device)
        mask = torch.zeros(seen.shape, dtype=dtype, device=device)
        masks[kind] = mask.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)
    return RowInputs(
        input_ids=torch.from_numpy(tokens).to(device),
        position_ids=torch.from_numpy(depths).to(device),
        attention_mask=masks if form.by_kind else next(iter(masks.values())),
    )
