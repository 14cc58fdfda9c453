"""The demo model's training network: Mixtral in plain torch, float32 weights, bfloat16 matrix products.

Hugging Face's Mixtral on the exported folder computes the same, up to bfloat16 rounding.
Axes: B rows, L positions, T = B * L tokens, D hidden, F ffn, E experts, A active experts, P expert rows with padding,
H heads, KV kv heads, d head size, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROW_BLOCK = 128  # an expert's rows are padded to a multiple: oneDNN compiles a kernel for each new shape


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """Mixtral's shape, small; the field names are Hugging Face's."""

    vocab_size: int = 1536
    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    router_aux_loss_coef: float = 0.01


class _Experts(torch.autograd.Function):
    """The mixture of experts, in bfloat16 except the mixing weights: tokens are sorted by expert, and each expert
    multiplies its rows once. The backward pass is written by hand: autograd would fill and add the gradient of all
    experts once per expert."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mixing: Tensor, w13: Tensor, w2: Tensor, topk_ids: Tensor) -> Tensor:
        # x: [T, D]   mixing, topk_ids: [T, A]   w13: [E, 2F, D]   w2: [E, D, F]
        active, ffn = topk_ids.shape[1], w2.shape[2]
        order = topk_ids.flatten().argsort(stable=True)  # [T A], token * A + slot
        counts = torch.bincount(topk_ids.flatten(), minlength=len(w2))
        padded = (counts + ROW_BLOCK - 1) // ROW_BLOCK * ROW_BLOCK
        shift = (padded - counts).cumsum(0) - (padded - counts)  # [E], padding before an expert's rows
        place = torch.arange(len(order)) + shift.repeat_interleave(counts)  # [T A], sorted rows among padding
        ends = padded.cumsum(0).tolist()
        spans = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        inverse = torch.empty_like(order).scatter_(0, order, place)
        # [P]: the token of each row and its weight; a row of padding is token 0 with weight 0
        source = torch.zeros(ends[-1], dtype=torch.long).scatter_(0, place, order // active)
        scale = mixing.new_zeros(ends[-1]).scatter_(0, place, mixing.flatten().index_select(0, order)).bfloat16()
        rows = x.index_select(0, source)  # [P, D]
        hidden, act, out = rows.new_empty(len(rows), 2 * ffn), rows.new_empty(len(rows), ffn), torch.empty_like(rows)
        for e, at in enumerate(spans):
            torch.mm(rows[at], w13[e].t(), out=hidden[at])
            torch.mul(F.silu(hidden[at, :ffn]), hidden[at, ffn:], out=act[at])
            torch.mm(act[at], w2[e].t(), out=out[at])
        by_token = out.index_select(0, inverse).view(len(x), active, -1)  # [T, A, D]
        ctx.save_for_backward(mixing, w13, w2, source, scale, inverse, rows, hidden, act, by_token)
        ctx.spans = spans
        return torch.bmm(mixing.bfloat16().unsqueeze(1), by_token).squeeze(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        mixing, w13, w2, source, scale, inverse, rows, hidden, act, by_token = ctx.saved_tensors
        active, ffn = mixing.shape[1], w2.shape[2]
        grad_mixing = torch.bmm(by_token, grad.unsqueeze(2)).squeeze(2).float()
        grad_out = grad.index_select(0, source).mul_(scale.unsqueeze(1))  # [P, D]
        grad_rows, grad_w13, grad_w2 = torch.empty_like(rows), torch.empty_like(w13), torch.empty_like(w2)
        for e, at in enumerate(ctx.spans):
            gate, up = hidden[at, :ffn], hidden[at, ffn:]
            grad_act = grad_out[at] @ w2[e]
            torch.mm(grad_out[at].t(), act[at], out=grad_w2[e])
            grad_hidden = torch.cat((torch.ops.aten.silu_backward(grad_act * up, gate), grad_act * F.silu(gate)), dim=1)
            torch.mm(grad_hidden, w13[e], out=grad_rows[at])
            torch.mm(grad_hidden.t(), rows[at], out=grad_w13[e])
        grad_x = grad_rows.index_select(0, inverse).view(len(grad), active, -1).sum(1)
        return grad_x, grad_mixing, grad_w13, grad_w2, None


def _matrix(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / math.sqrt(shape[-1]))


class Layer(nn.Module):
    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        c = self.config = config
        queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        residual = 1 / math.sqrt(2 * c.num_hidden_layers)
        self.input_layernorm = nn.Parameter(torch.ones(c.hidden_size))
        self.post_attention_layernorm = nn.Parameter(torch.ones(c.hidden_size))
        self.q, self.k, self.v = (_matrix(n, c.hidden_size) for n in (queries, keys, keys))
        self.o = _matrix(c.hidden_size, queries)
        self.gate = _matrix(c.num_local_experts, c.hidden_size)
        self.w13 = _matrix(c.num_local_experts, 2, c.intermediate_size, c.hidden_size)  # gate and up
        self.w2 = _matrix(c.num_local_experts, c.hidden_size, c.intermediate_size)
        with torch.no_grad():
            self.o.mul_(residual)
            self.w2.mul_(residual)

    def attention(self, x: Tensor, mask: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        c = self.config
        batch, length = mask.shape[0], mask.shape[-1]
        weight = torch.cat((self.q, self.k, self.v)).bfloat16()
        qkv = (x @ weight.t()).view(batch, length, -1, c.head_dim).transpose(1, 2)  # [B, H + 2 KV, L, d]
        heads = [c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads]
        query, key, value = torch.split(qkv, heads, dim=1)
        cos, sin = rotary
        group = c.num_attention_heads // c.num_key_value_heads
        query = query * cos + _rotate_half(query) * sin
        key = (key * cos + _rotate_half(key) * sin).repeat_interleave(group, dim=1)
        value = value.repeat_interleave(group, dim=1)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # [B, H, L, d]
        return out.transpose(1, 2).reshape(batch * length, -1) @ self.o.bfloat16().t()  # [T, D]

    def experts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: [T, D] -> the mixture [T, D], the router's probabilities [T, E], the chosen experts [T, A]."""
        c = self.config
        router_logits = x.float() @ self.gate.t()  # [T, E]
        top_logits, topk_ids = router_logits.topk(c.num_experts_per_tok)  # [T, A]
        topk_weights = top_logits.softmax(-1)
        w13, w2 = self.w13.flatten(1, 2).bfloat16(), self.w2.bfloat16()
        mixed: Tensor = _Experts.apply(x, topk_weights, w13, w2, topk_ids)  # type: ignore[no-untyped-call]
        return mixed, router_logits.softmax(-1), topk_ids


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class DemoNetwork(nn.Module):
    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Parameter(torch.randn(config.vocab_size, config.hidden_size) * 0.1)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(config.hidden_size))
        self.lm_head = nn.Parameter(torch.zeros(config.vocab_size, config.hidden_size))

    def rotary(self, length: int) -> tuple[Tensor, Tensor]:
        half = torch.arange(0, self.config.head_dim, 2) / self.config.head_dim
        angles = torch.outer(torch.arange(length), self.config.rope_theta**-half)
        angles = torch.cat((angles, angles), dim=-1)  # [L, d]
        return angles.cos().bfloat16(), angles.sin().bfloat16()

    def forward(self, ids: Tensor, segments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ids, segments: [B, L]; a token sees the earlier tokens of its own segment; segment 0 is padding.

        Returns the final hidden states [T, D], the load-balancing loss, and the share of each expert [layers, E].
        """
        length = ids.shape[1]
        mask = (segments[:, None, :, None] == segments[:, None, None, :]) & torch.ones(length, length).tril().bool()
        real = (segments.flatten() > 0).float()[:, None]  # [T, 1]
        rotary = self.rotary(length)
        x = F.embedding(ids.flatten(), self.embed_tokens)  # [T, D]
        balance, shares = torch.zeros(()), []
        for layer in self.layers:
            assert isinstance(layer, Layer)
            x = x + layer.attention(self._norm(x, layer.input_layernorm), mask, rotary)
            mixed, probabilities, topk_ids = layer.experts(self._norm(x, layer.post_attention_layernorm))
            x = x + mixed
            chosen = F.one_hot(topk_ids, probabilities.shape[1]).sum(1) * real  # [T, E]
            share = chosen.sum(0) / real.sum()  # [E], sums to A
            balance = balance + probabilities.shape[1] * (share * (probabilities * real).sum(0) / real.sum()).sum()
            shares.append(share / share.sum())
        return self._norm(x, self.norm), balance / len(shares), torch.stack(shares)

    def logits(self, hidden: Tensor) -> Tensor:
        return (hidden @ self.lm_head.bfloat16().t()).float()  # [T, V]

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.config.rms_norm_eps).bfloat16()
