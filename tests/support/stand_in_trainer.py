"""Stands in for `scaling train` in the runner's tests: the same contract, no JAX. Standard library only, for speed.

    python stand_in_trainer.py STEP_SECONDS RUN_FOLDER...

Several folders are a population: it makes one after the other, and ends as the first that fails does. It checkpoints
every step, so a killed run resumes; its loss is a running hash, so a step done twice or left out would show. The
config's name says how it misbehaves: crash, diverge, silent, busy (another is there, three times), hungry (for memory,
with more than two sequences at once), killed (once), always_killed, full (no space on the disk until there is a
file named room). A trunk keeps the states that others branch from at
its fourth step.
"""

import fcntl
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

STEPS = 6


def main(folder: Path, step_seconds: float) -> int:
    config = json.loads((folder / "config.json").read_text())
    habit = config["name"].partition(":")[2]
    witness = (folder / "witness").open("a")
    try:
        fcntl.lockf(witness, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        (folder / "overlap").touch()
    with (folder / "starts").open("a") as starts:
        starts.write(f"{os.getpid()} {sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else ''}\n")
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    saved = folder / "saved.json"
    step, state = json.loads(saved.read_text()) if saved.exists() else (0, folder.name)
    if habit == "busy" and (folder / "starts").read_text().count("\n") < 4:
        sys.stderr.write("another process trains in it\n")
        return 73
    if habit == "full" and not (folder.parent.parent / "room").exists():
        sys.stderr.write("no space left\n")
        return 28
    if habit == "hungry" and (config["data"]["microbatch_sequences"] or config["data"]["batch_sequences"]) > 2:
        sys.stderr.write("RESOURCE_EXHAUSTED: too much\n")
        return 12
    while step < STEPS:
        time.sleep(step_seconds)
        if habit == "always_killed" and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        step, state = step + 1, hashlib.sha256(f"{state} {step}".encode()).hexdigest()
        with (folder / "metrics.jsonl").open("a") as metrics:
            line = {"step": step, "tokens": step * 100, "loss": 6.0 - step / 10, "tokens_per_second": 1000.0}
            metrics.write(json.dumps(line) + "\n")
        replace(saved, [step, state])
        if stop:
            return 75
        for kept in config["measure"]["branch_at_steps"] if step == 4 else ():
            (folder / "branches" / str(kept)).mkdir(parents=True)
        if step >= 3:
            misbehave(habit, folder)
    if habit == "silent":
        return 0
    status = "diverged" if habit == "diverge" else "done"
    loss = None if status == "diverged" else int(state[:8], 16) / 2**32
    row = {"run_id": folder.name, "status": status, "tokens": step * 100, "loss": loss, "seconds": time.monotonic()}
    result = {"schema": 1, "status": status, "reason": "", "row": row, "measurements": {}}
    replace(folder / "result.json", result)
    return 4 if status == "diverged" else 0


def misbehave(habit: str, folder: Path) -> None:
    if habit == "crash":
        raise ValueError("the moon is full")
    if habit == "killed" and (folder / "starts").read_text().count("\n") == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def replace(path: Path, value: object) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)


if __name__ == "__main__":
    codes = (main(Path(folder), float(sys.argv[1])) for folder in sys.argv[2:])
    sys.exit(next((code for code in codes if code not in (0, 4 * (len(sys.argv) > 3))), 0))
