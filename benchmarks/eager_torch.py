"""The decoder of scaling/model/decoder.py as a plain PyTorch eager module, the baseline of benchmarks/train.py.

Runs in an environment of its own (benchmarks/torch.txt). It reads lines of JSON: the first gives the shape; for each
later one it runs that many steps and replies with their wall seconds, CPU seconds and last loss.
The choices are those that a PyTorch user makes for speed without compiling: fused scaled_dot_product_attention, fused
AdamW, one autograd graph a step, gradients set to None.
"""

from __future__ import annotations

import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, shape: dict) -> None:
        super().__init__()
        M, self.H, self.K = shape["width"], shape["heads"], shape["kv_heads"]
        self.D, self.qk_norm = M // self.H, shape["qk_norm"]
        self.q = nn.Linear(M, self.H * self.D, bias=False)
        self.k = nn.Linear(M, self.K * self.D, bias=False)
        self.v = nn.Linear(M, self.K * self.D, bias=False)
        self.o = nn.Linear(self.H * self.D, M, bias=False)
        if self.qk_norm:
            self.q_norm, self.k_norm = nn.RMSNorm(self.D, eps=1e-6), nn.RMSNorm(self.D, eps=1e-6)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, M = x.shape
        q = self.q(x).view(B, T, self.H, self.D)
        k = self.k(x).view(B, T, self.K, self.D)
        v = self.v(x).view(B, T, self.K, self.D).transpose(1, 2)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = turn(q.transpose(1, 2), cos, sin), turn(k.transpose(1, 2), cos, sin)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.K != self.H)
        return self.o(out.transpose(1, 2).reshape(B, T, M))


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


class Block(nn.Module):
    def __init__(self, shape: dict) -> None:
        super().__init__()
        M, width = shape["width"], shape["ff_width"]
        self.attention_norm, self.ff_norm = nn.RMSNorm(M, eps=1e-6), nn.RMSNorm(M, eps=1e-6)
        self.attention = Attention(shape)
        self.gate, self.up = nn.Linear(M, width, bias=False), nn.Linear(M, width, bias=False)
        self.down = nn.Linear(width, M, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        h = self.ff_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    def __init__(self, shape: dict, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape["vocab_size"], shape["width"])
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape["depth"]))
        self.norm = nn.RMSNorm(shape["width"], eps=1e-6)
        self.head = nn.Linear(shape["width"], shape["vocab_size"], bias=False)
        D = shape["width"] // shape["heads"]
        angle = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(0, D, 2) / D)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))


def main() -> None:
    """One shape, then as many rounds as are asked for."""
    shape = json.loads(sys.stdin.readline())
    if shape["threads"]:
        torch.set_num_threads(shape["threads"])
    torch.manual_seed(0)
    model = Decoder(shape, shape["sequence_length"])
    adamw = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1, "fused": shape["fused"]}
    optimizer = torch.optim.AdamW(model.parameters(), **adamw)
    generator = torch.Generator().manual_seed(1)
    batches = torch.randint(shape["vocab_size"], (8, shape["batch"], shape["sequence_length"] + 1), generator=generator)
    count = sum(p.numel() for p in model.parameters())
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "params": count}), flush=True)
    for line in sys.stdin:
        wall, cpu, loss = time.perf_counter(), time.process_time(), torch.zeros(())
        for step in range(int(line)):
            tokens = batches[step % len(batches)]
            logits = model(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        done = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "loss": float(loss.detach())}
        print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
