"""Attention in blocks gives what dense attention gives."""

from __future__ import annotations

import pytest
import torch
from support.scoring import exam
from torch.nn.functional import scaled_dot_product_attention

from prunescope.evaluate.scoring import blocks
from prunescope.evaluate.scoring.blocks import BlockedAttention, cut_blocks
from prunescope.evaluate.scoring.masks import MaskForm, row_inputs
from prunescope.evaluate.scoring.trees import Inputs, Request, lay_out, plan

CPU = torch.device("cpu")


@pytest.mark.parametrize("prompt", [0, 70])
@pytest.mark.parametrize("call_cost", [0, 1500, 10**9])
@pytest.mark.parametrize("window", [None, 8])
def test_blocks_give_the_result_of_dense_attention(
    prompt: int, call_cost: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "CALL_COST", call_cost)
    monkeypatch.setattr(blocks, "COPY_COST", min(call_cost, 8))
    monkeypatch.setattr(blocks, "PIECE", 16)
    pairs = exam(1, prompt=prompt, documents=12)
    inputs = Inputs(Request.encoded(i, *pair, 1000) for i, pair in enumerate(pairs))
    group = plan(inputs, 200, sequential=True)[0]
    offset = len(group.prefix)
    assert offset == prompt
    layout = lay_out(inputs, group.rows[0], offset)
    batch = row_inputs([layout], offset, MaskForm({"layer": window}), CPU, torch.float32)
    cut = cut_blocks(layout, offset)
    width = len(layout.tokens)
    query = torch.randn(1, 3, width, 8)
    key, value = torch.randn(2, 1, 3, offset + width, 8)
    mask = batch.attention_mask
    assert isinstance(mask, torch.Tensor)
    dense = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    calls = 0

    class Counted(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += func is scaled_dot_product_attention
            return func(*args, **(kwargs or {}))

    with Counted(), BlockedAttention(cut, offset, [mask]):
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        elsewhere = scaled_dot_product_attention(query, key, value, attn_mask=mask.clone())
        short = scaled_dot_product_attention(query[:, :, :1], key, value)
    torch.testing.assert_close(found, dense, rtol=0, atol=1e-5)
    torch.testing.assert_close(elsewhere, dense, rtol=0, atol=1e-5)
    assert short.shape[2] == 1
    assert calls == 2 * len(cut) + 1
    if call_cost == 0:
        assert len(cut) > 12


def test_blocks_look_at_few_keys_where_documents_share_nothing() -> None:
    pairs = exam(1, prompt=0, documents=30)
    inputs = Inputs(Request.encoded(i, *pair, 1000) for i, pair in enumerate(pairs))
    (group,) = plan(inputs, 10_000, sequential=True)
    layout = lay_out(inputs, group.rows[0], 0)
    cut = cut_blocks(layout, 0)
    width = len(layout.tokens)
    looked_at = sum((b.stop - b.start) * (len(b.ancestors) + b.stop - b.start) for b in cut)
    assert looked_at < 0.25 * width**2
