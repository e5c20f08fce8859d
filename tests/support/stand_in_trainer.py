"""Stands in for `scaling train` and `scaling population` in the tests of the sweep runner: it reads and writes the same
files and ends with the same exit codes, without JAX. Standard library only, so that it starts fast.

    python stand_in_trainer.py STEP_SECONDS RUN_FOLDER...

Several folders are the members of a population: they are trained one after the other, and the exit code is that of the
first that fails. It saves a checkpoint at every step, so that a killed run resumes; its loss is a hash of the steps so
far, so that a step done twice or left out would change it. A trunk saves its branch states at its fourth step.

The config's name, "c0:habit", says how the run misbehaves:
    crash           raises an exception after its third step
    diverge         ends with the status "diverged"
    silent          ends without a result
    stuck           hangs after its third step, and ignores SIGTERM; stuck_once: at its first start
    aborted         aborts (SIGABRT) after its third step, at its first start
    busy            finds its folder locked, at its first three starts
    hungry          runs out of memory with more than two sequences at once
    killed          is killed once; always_killed: at every start
    full            finds no space on the disk until the sweep folder holds a file named room
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
DIVERGED, OUT_OF_MEMORY, DISK_FULL, FOLDER_BUSY, STOPPED = 4, 12, 28, 73, 75
"""Exit codes (scaling/exit_codes.py)."""


def main(folder: Path, step_seconds: float) -> int:
    """Trains one run from its last checkpoint; returns its exit code."""
    config = json.loads((folder / "config.json").read_text())
    habit = config["name"].partition(":")[2]
    # Two processes in one folder at once leave a file named overlap, which the tests look for.
    lock = (folder / "witness").open("a")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        (folder / "overlap").touch()
    with (folder / "starts").open("a") as starts:
        starts.write(f"{os.getpid()} {sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else ''}\n")
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    checkpoint = folder / "saved.json"
    step, state = json.loads(checkpoint.read_text()) if checkpoint.exists() else (0, folder.name)
    if habit == "busy" and (folder / "starts").read_text().count("\n") < 4:
        sys.stderr.write("another process trains in it\n")
        return FOLDER_BUSY
    if habit == "full" and not (folder.parent.parent / "room").exists():
        sys.stderr.write("no space left\n")
        return DISK_FULL
    if habit == "hungry" and (config["data"]["microbatch_sequences"] or config["data"]["batch_sequences"]) > 2:
        sys.stderr.write("RESOURCE_EXHAUSTED: too much\n")
        return OUT_OF_MEMORY
    while step < STEPS:
        time.sleep(step_seconds)
        if habit == "always_killed" and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        step, state = step + 1, hashlib.sha256(f"{state} {step}".encode()).hexdigest()
        with (folder / "metrics.jsonl").open("a") as metrics:
            line = {"step": step, "tokens": step * 100, "loss": 6.0 - step / 10, "tokens_per_second": 1000.0}
            metrics.write(json.dumps(line) + "\n")
        write_json(checkpoint, [step, state])
        if received:
            return STOPPED
        for branch_step in config["measure"]["branch_at_steps"] if step == 4 else ():
            (folder / "branches" / str(branch_step)).mkdir(parents=True)
        if step >= 3:
            misbehave(habit, folder)
    if habit == "silent":
        return 0
    status = "diverged" if habit == "diverge" else "done"
    loss = None if status == "diverged" else int(state[:8], 16) / 2**32
    row = {"run_id": folder.name, "status": status, "tokens": step * 100, "loss": loss, "seconds": time.monotonic()}
    result = {"schema": 1, "status": status, "reason": "", "row": row, "measurements": {}}
    write_json(folder / "result.json", result)
    return DIVERGED if status == "diverged" else 0


def misbehave(habit: str, folder: Path) -> None:
    """What happens after a step of a run with a habit."""
    if habit == "crash":
        raise ValueError("the moon is full")
    is_first_start = (folder / "starts").read_text().count("\n") == 1
    if habit == "killed" and is_first_start:
        os.kill(os.getpid(), signal.SIGKILL)
    if habit == "aborted" and is_first_start:
        os.abort()
    if habit == "stuck" or (habit == "stuck_once" and is_first_start):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)


def write_json(path: Path, value: object) -> None:
    """Writes by rename, as scaling.files.write_json does."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)


if __name__ == "__main__":
    folders = sys.argv[2:]
    good = (0, DIVERGED) if len(folders) > 1 else (0,)  # a population in which a member diverged ends with 0
    codes = (main(Path(folder), float(sys.argv[1])) for folder in folders)
    sys.exit(next((code for code in codes if code not in good), 0))
