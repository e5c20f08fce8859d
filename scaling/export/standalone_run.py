"""Writes text with the model in this folder: python run.py "def main(" --tokens 200 --temperature 0.8

All of the model that `scaling export` wrote here, in numpy: model.safetensors holds the weights, config.json the shape,
tokenizer.json the vocabulary. Needs numpy and safetensors. --no-cache recomputes everything at every token.
"""

import argparse
import codecs
import json
import os
import sys

import numpy as np
from safetensors.numpy import load_file

HERE = os.path.dirname(os.path.abspath(__file__))


def read(name):
    with open(os.path.join(HERE, name), encoding="utf-8") as file:
        return json.load(file)


CONFIG, TOKENIZER = read("config.json"), read("tokenizer.json")
BPE = TOKENIZER["model"]
HEADS, KV_HEADS, WIDTH = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"], CONFIG["head_dim"]
W = load_file(os.path.join(HERE, "model.safetensors"))
HEAD = W["model.embed_tokens.weight" if CONFIG["tie_word_embeddings"] else "lm_head.weight"]


def norm(x, name):
    """x / rms(x), times a learned scale."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(CONFIG["rms_norm_eps"])) * W[name + ".weight"]


def rotated(x, start):
    """Positions start, start + 1, ... of x [tokens, heads, width] as angles: dimension d pairs with d + width / 2."""
    frequency = CONFIG["rope_theta"] ** (-np.arange(0, WIDTH, 2) / WIDTH)
    angle = np.arange(start, start + len(x))[:, None, None] * frequency
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    low, high = np.split(x, 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def attention(x, layer, cache):
    """What each token reads from those before it; cache holds their keys and values, and then also these."""
    name = f"model.layers.{layer}.self_attn."
    q, k, v = ((x @ W[f"{name}{n}_proj.weight"].T).reshape(len(x), -1, WIDTH) for n in "qkv")
    if name + "q_norm.weight" in W:
        q, k = norm(q, name + "q_norm"), norm(k, name + "k_norm")
    start = len(cache[layer][0]) if layer in cache else 0
    q, k = rotated(q, start), rotated(k, start)
    if layer in cache:
        k, v = np.concatenate([cache[layer][0], k]), np.concatenate([cache[layer][1], v])
    cache[layer] = k, v
    q = q.reshape(len(x), KV_HEADS, HEADS // KV_HEADS, WIDTH)
    scores = np.einsum("tkgd,skd->kgts", q, k) / np.float32(WIDTH**0.5)
    future = np.arange(len(k)) > np.arange(start, start + len(x))[:, None]
    scores = np.where(future, np.float32(-np.inf), scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("kgts,skd->tkgd", weights, v).reshape(len(x), -1) @ W[name + "o_proj.weight"].T


def feed_forward(x, layer):
    gate, up, down = (W[f"model.layers.{layer}.mlp.{n}_proj.weight"].T for n in ("gate", "up", "down"))
    hidden = x @ gate
    return (hidden / (1 + np.exp(-hidden)) * (x @ up)) @ down


def logits(ids, cache):
    """Of the token after the last of ids, which follow those in cache."""
    x = W["model.embed_tokens.weight"][ids]
    for layer in range(CONFIG["num_hidden_layers"]):
        x = x + attention(norm(x, f"model.layers.{layer}.input_layernorm"), layer, cache)
        x = x + feed_forward(norm(x, f"model.layers.{layer}.post_attention_layernorm"), layer)
    return HEAD @ norm(x[-1], "model.norm")


def generate(ids, most, temperature=0.0, seed=0, keep=True, window=CONFIG["max_position_embeddings"]):
    """The ids after ids, one by one, until the document ends or there are `most`. The model reads at most `window`
    tokens, the length it was trained on; where there are more, it goes on from the last half of the window."""
    rng, ids, cache = np.random.default_rng(seed), list(ids), {}
    for _ in range(most):
        if len(ids) > window:
            ids, cache = ids[-(window // 2) :], {}
        scores = logits(ids[-1:] if cache else ids, cache if keep else {})
        if temperature > 0:
            scores = scores / temperature + rng.gumbel(size=len(scores))  # a draw from their softmax
        ids.append(int(scores.argmax()))
        yield ids[-1]
        if ids[-1] == CONFIG["eos_token_id"]:
            return


def encode(text):
    """Ids of a text. A byte b is the id b + 3; pieces are merged in the order of the vocabulary's merges."""
    if not BPE["byte_fallback"]:
        return [byte + 3 for byte in text.encode()]
    vocabulary, rank = BPE["vocab"], {tuple(pair): place for place, pair in enumerate(BPE["merges"])}
    ids = []
    for place, part in enumerate(text.split("\u2581")):  # which stands for a space in pieces, hence is spelt in bytes
        pieces = ["<0xE2>", "<0x96>", "<0x81>"] if place else []
        ids += [vocabulary[piece] for piece in pieces]
        pieces = list(part.replace(" ", "\u2581"))
        while len(pieces) > 1:
            best = min(range(len(pieces) - 1), key=lambda i: rank.get((pieces[i], pieces[i + 1]), len(rank)))
            if (pieces[best], pieces[best + 1]) not in rank:
                break
            pieces[best : best + 2] = [pieces[best] + pieces[best + 1]]
        for piece in pieces:
            spelt = [piece] if piece in vocabulary else [f"<0x{byte:02X}>" for byte in piece.encode()]
            ids += [vocabulary[one] for one in spelt]
    return ids


def bytes_of():
    """The bytes of text that each id stands for; none for specials."""
    if not BPE["byte_fallback"]:
        return {byte + 3: bytes([byte]) for byte in range(256)}
    special = {token["content"] for token in TOKENIZER["added_tokens"]}
    out = {i: piece.replace("\u2581", " ").encode() for piece, i in BPE["vocab"].items() if piece not in special}
    return out | {BPE["vocab"][f"<0x{byte:02X}>"]: bytes([byte]) for byte in range(256)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes text with the model in this folder.")
    parser.add_argument("prompt", nargs="?", default="")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token each time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-cache", action="store_true", help="recompute all keys and values at every token")
    parser.add_argument("--ids", action="store_true", help="write the ids, not their text")
    given = parser.parse_args()
    ids = [CONFIG["bos_token_id"], *encode(given.prompt)]
    made = generate(ids, given.tokens, given.temperature, given.seed, not given.no_cache)
    pieces, decoder = bytes_of(), codecs.getincrementaldecoder("utf-8")(errors="replace")
    with open(sys.stdout.fileno(), "w", encoding="utf-8", closefd=False) as out:
        print("" if given.ids else given.prompt, end="", file=out)
        for i in made:
            print(f"{i} " if given.ids else decoder.decode(pieces.get(i, b"")), end="", file=out, flush=True)
        print(decoder.decode(b"", final=True), file=out)
