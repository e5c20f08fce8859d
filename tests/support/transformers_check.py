"""Run by test_export.py with a Python that has torch and transformers: what they make of an exported folder, as JSON.

python tests/support/transformers_check.py FOLDER < {"ids": [...], "texts": [...], "most": 256}
"""

from __future__ import annotations

import json
import sys

import tokenizers
import torch
import transformers


def main() -> None:
    folder, asked = sys.argv[1], json.load(sys.stdin)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids_1T = torch.tensor([asked["ids"]])
    with torch.no_grad():
        logits_TV = model(ids_1T).logits[0]
        made = model.generate(
            ids_1T, attention_mask=torch.ones_like(ids_1T), max_new_tokens=asked["most"], do_sample=False
        )
    json.dump(
        {
            "class": type(model).__name__,
            "tied": model.lm_head.weight is model.get_input_embeddings().weight,
            "logits": logits_TV.tolist(),
            "made": made[0, len(asked["ids"]) :].tolist(),
            "encoded": [tokenizer(text)["input_ids"] for text in asked["texts"]],
            "decoded": [tokenizer.decode(tokenizer(text)["input_ids"][1:]) for text in asked["texts"]],
            "versions": {one.__name__: one.__version__ for one in (torch, transformers, tokenizers)},
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
