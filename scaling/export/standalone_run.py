"""Generates text with the model in this folder: python run.py "def main(" --tokens 200 --temperature 0.8

The whole model that `scaling export` wrote here, in numpy: model.safetensors holds the weights, config.json the shape,
tokenizer.json the tokenizer. Needs numpy and safetensors. --no-cache recomputes everything at every token.
"""

import argparse
import codecs
import json
import os
import sys

import numpy as np
from safetensors.numpy import load_file

HERE = os.path.dirname(os.path.abspath(__file__))


def read_json(name):
    with open(os.path.join(HERE, name), encoding="utf-8") as file:
        return json.load(file)


CONFIG, TOKENIZER = read_json("config.json"), read_json("tokenizer.json")
BPE = TOKENIZER["model"]
HEADS, KV_HEADS, WIDTH = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"], CONFIG["head_dim"]
W = load_file(os.path.join(HERE, "model.safetensors"))
HEAD = W["model.embed_tokens.weight" if CONFIG["tie_word_embeddings"] else "lm_head.weight"]


def norm(x, name):
    """RMSNorm: x / rms(x), times a learned scale."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(CONFIG["rms_norm_eps"])) * W[name + ".weight"]


def apply_rope(x, start):
    """Rotates x [tokens, heads, width], whose positions are start, start + 1, ...: dimension d pairs with
    d + width / 2."""
    frequency = CONFIG["rope_theta"] ** (-np.arange(0, WIDTH, 2) / WIDTH)
    angle = np.arange(start, start + len(x))[:, None, None] * frequency
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    low, high = np.split(x, 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def attention(x, layer, cache):
    """Causal attention of x [tokens, M]. cache[layer]: keys and values of earlier tokens, to which those of x are
    appended."""
    name = f"model.layers.{layer}.self_attn."
    q, k, v = ((x @ W[f"{name}{n}_proj.weight"].T).reshape(len(x), -1, WIDTH) for n in "qkv")
    if name + "q_norm.weight" in W:
        q, k = norm(q, name + "q_norm"), norm(k, name + "k_norm")
    start = len(cache[layer][0]) if layer in cache else 0
    q, k = apply_rope(q, start), apply_rope(k, start)
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
    """SwiGLU: (silu(x gate) * x up) down."""
    gate, up, down = (W[f"model.layers.{layer}.mlp.{n}_proj.weight"].T for n in ("gate", "up", "down"))
    hidden = x @ gate
    return (hidden / (1 + np.exp(-hidden)) * (x @ up)) @ down


def logits(ids, cache):
    """Logits [V] of the token after ids, which follow the tokens in the cache."""
    x = W["model.embed_tokens.weight"][ids]
    for layer in range(CONFIG["num_hidden_layers"]):
        x = x + attention(norm(x, f"model.layers.{layer}.input_layernorm"), layer, cache)
        x = x + feed_forward(norm(x, f"model.layers.{layer}.post_attention_layernorm"), layer)
    return HEAD @ norm(x[-1], "model.norm")


def generate(ids, max_tokens, temperature=0.0, seed=0, use_cache=True, window=CONFIG["max_position_embeddings"]):
    """Yields the ids after ids, up to max_tokens or the end of the document. The model reads at most `window` tokens,
    by default the length it was trained on; beyond that it continues from the last half of the window."""
    rng, ids, cache = np.random.default_rng(seed), list(ids), {}
    for _ in range(max_tokens):
        if len(ids) > window:
            ids, cache = ids[-(window // 2) :], {}
        scores = logits(ids[-1:] if cache else ids, cache if use_cache else {})
        if temperature > 0:
            scores = scores / temperature + rng.gumbel(size=len(scores))  # argmax samples from softmax
        ids.append(int(scores.argmax()))
        yield ids[-1]
        if ids[-1] == CONFIG["eos_token_id"]:
            return


def encode(text):
    """The ids of a text. With the byte tokenizer, byte b is id b + 3; otherwise pieces are merged as BPE does."""
    if not BPE["byte_fallback"]:
        return [byte + 3 for byte in text.encode()]
    id_of_piece, rank = BPE["vocab"], {tuple(pair): place for place, pair in enumerate(BPE["merges"])}
    ids = []
    for number, part in enumerate(text.split("\u2581")):  # in pieces it stands for a space
        ids += [id_of_piece[byte] for byte in ("<0xE2>", "<0x96>", "<0x81>")] if number else []
        pieces = list(part.replace(" ", "\u2581"))
        while len(pieces) > 1:
            best = min(range(len(pieces) - 1), key=lambda i: rank.get((pieces[i], pieces[i + 1]), len(rank)))
            if (pieces[best], pieces[best + 1]) not in rank:
                break
            pieces[best : best + 2] = [pieces[best] + pieces[best + 1]]
        for piece in pieces:
            known = [piece] if piece in id_of_piece else [f"<0x{byte:02X}>" for byte in piece.encode()]
            ids += [id_of_piece[name] for name in known]
    return ids


def bytes_by_id():
    """{id: bytes of its text}, without special ids."""
    if not BPE["byte_fallback"]:
        return {byte + 3: bytes([byte]) for byte in range(256)}
    special = {token["content"] for token in TOKENIZER["added_tokens"]}
    out = {i: piece.replace("\u2581", " ").encode() for piece, i in BPE["vocab"].items() if piece not in special}
    return out | {BPE["vocab"][f"<0x{byte:02X}>"]: bytes([byte]) for byte in range(256)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Generates text with the model in this folder.")
    parser.add_argument("prompt", nargs="?", default="", help="text to continue; empty begins a document")
    parser.add_argument("--tokens", type=int, default=256, help="most tokens to generate")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token each time")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers, when the temperature is above 0")
    parser.add_argument("--no-cache", action="store_true", help="recompute all keys and values at every token")
    parser.add_argument("--ids", action="store_true", help="print token ids instead of text")
    args = parser.parse_args()
    if args.seed < 0:
        parser.error(f"argument --seed: {args.seed} must be 0 or more")
    ids = [CONFIG["bos_token_id"], *encode(args.prompt)]
    new_ids = generate(ids, args.tokens, args.temperature, args.seed, not args.no_cache)
    pieces, decoder = bytes_by_id(), codecs.getincrementaldecoder("utf-8")(errors="replace")
    with open(sys.stdout.fileno(), "w", encoding="utf-8", closefd=False) as out:
        print("" if args.ids else args.prompt, end="", file=out)
        for i in new_ids:
            print(f"{i} " if args.ids else decoder.decode(pieces.get(i, b"")), end="", file=out, flush=True)
        print(decoder.decode(b"", final=True), file=out)
