"""The data of the tasks beside this file: read for lm-evaluation-harness, and where they are made, written.

    python -m scaling.eval_tasks.data

writes copy_word.jsonl. The other two were written by hand, for this repository.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORDS = """
acorn badge cedar delta ember fjord grape hazel ivory jolly kayak lemon maple noble otter pearl quilt raven salad tulip
umber velvet walnut yarrow zephyr anchor basket candle dragon eleven
"""


def read(file: str, **metadata: Any) -> dict[str, Any]:
    """Split `test` of a file in this folder, as lm-eval's `custom_dataset` wants it."""
    del metadata
    from datasets import Dataset

    return {"test": Dataset.from_list([json.loads(line) for line in (HERE / file).read_text().splitlines()])}


def copies(items: int = 60, seed: int = 7) -> list[dict[str, str]]:
    """Assignments of a word to two names, three times over: the last second one is to be copied."""
    rng = random.Random(seed)
    rows = []
    for _ in range(items):
        *shown, asked = rng.sample(WORDS.split(), 3)
        before = "".join(f'first = "{word}"\nsecond = "{word}"\n' for word in shown)
        rows.append({"context": f'{before}first = "{asked}"\nsecond = "', "answer": asked})
    return rows


if __name__ == "__main__":
    (HERE / "copy_word.jsonl").write_text("".join(json.dumps(row) + "\n" for row in copies()))
