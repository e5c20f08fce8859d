"""Writes the tables of benchmarks/README.md from the JSON files beside it.

    python benchmarks/tables.py

Each table stands between two comments that name it; tests/benchmarks/test_benchmarks.py checks that they agree with
the files.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def table(header: str, rows: list[str]) -> str:
    return "\n".join([f"| {header} |", "|" + "---|" * (header.count("|") + 1), *(f"| {row} |" for row in rows)])


def read_json(name: str) -> dict[str, Any]:
    return json.loads((HERE / f"{name}.json").read_text())


def cpu() -> str:
    """Theirs / ours, in time."""
    document = read_json("train_cpu")
    rows = []
    for r in document["rows"]:
        low, high = r["wall_quartiles"]
        rows.append(
            f"{r['mode']} | {r['params']:,} | **{r['wall_ratio']:.2f}** ({low:.2f} to {high:.2f}) | "
            f"{r['cpu_ratio']:.2f} | {r['compile_s']:.1f} s | {r['compile_from_cache_s']:.2f} s"
        )
    about = (
        f"{document['date']}, {document['cores']} cores of an {document['processor']}, jax {document['jax']}, "
        f"torch {document['torch']}, median of {document['turns']} turns (quartiles):"
    )
    header = "cores | parameters | wall time, PyTorch / ours | CPU time | compile | from the cache"
    return about + "\n\n" + table(header, rows)


def topologies() -> str:
    document = read_json("topologies")
    rows = []
    for r in document["rows"]:
        mesh = " ".join(f"{axis}={size}" for axis, size in r["mesh"].items() if size > 1)
        times = " / ".join(f"{1e3 * r[k]:.0f}" for k in ("compute_seconds", "hbm_seconds", "ici_seconds"))
        best, worst = r["mfu"]["overlapped"], r["mfu"]["in_turn"]
        rows.append(
            f"{r['name']} | {r['chips']} | {mesh} | {r['peak'] / 1e9:.1f} of {r['hbm'] / 1e9:.1f} GB | {times} ms | "
            f"{100 * worst:.0f} to {100 * best:.0f} % | {r['attention']} | {r['compile_seconds']:.0f} s"
        )
    versions = document["versions"]
    about = (
        f"{document['date']}, jax {versions['jax']}, libtpu {versions['libtpu']}, one sequence of 2,048 tokens a chip:"
    )
    header = (
        "shape, topology | chips | mesh | memory a chip | products / HBM / ICI | MFU at the roofline | kernel | compile"
    )
    return about + "\n\n" + table(header, rows)


def precision() -> str:
    document = read_json("precision")
    rows = [("bfloat16, same weights and batches", document["bfloat16_minus_float32"])]
    rows += [(f"{name} (other initial weights)", d) for name, d in document["other_weights_minus_float32"].items()]
    keys = ("smoothed_mean_absolute", "smoothed_largest", "second_half_mean", "validation")
    lines = [" | ".join([name, *(f"{d[k]:{'+' if k in keys[2:] else ''}.4f}" for k in keys)]) for name, d in rows]
    run = document["run"]
    about = (
        f"{document['date']}, {document['params']:,} parameters, {run['tokens']:,} tokens of {run['corpus']}, "
        f"minus float32, "
        f"nats; curves smoothed over {run['window_steps']} steps:"
    )
    header = "run | mean absolute | largest | mean of the second half | final validation"
    return about + "\n\n" + table(header, lines)


def design() -> str:
    """Error of the forecast by what was spent, over tables and seeds."""
    document = read_json("design")
    rows, before = [], ""
    for group, policy in dict.fromkeys((entry["group"], entry["policy"]) for entry in document["summary"]):
        mine = [entry for entry in document["summary"] if (entry["group"], entry["policy"]) == (group, policy)]
        errors = " | ".join(f"{entry['error']:.2%}" for entry in mine)
        rows.append(f"{group if group != before else ''} | {policy} | {errors} | {mine[0]['whole']:.2%}")
        before = group
    shares = " | ".join(f"{share:.0%}" for share in document["shares"])
    least = " / ".join(f"{ratio['0.1']:.1f}" for ratio in document["least"].values())
    about = (
        f"{document['date']}, jax {document['jax']}, {document['simulated_tables']} noises of each planted law, "
        f"{document['public_seeds']} seeds on each public table:"
    )
    after = (
        f"Were the law exact and known and the noise independent, the best set found for 10 % has {least} times the "
        f"standard error of all candidates ({', '.join(document['least'])})."
    )
    return f"{about}\n\n{table(f'runs, law fitted | cells by | {shares} | all candidates', rows)}\n\n{after}"


def design_public() -> str:
    """Each public table at a tenth of its cost; bold where no worse than all candidates."""
    rows = []
    document = [
        entry
        for entry in read_json("design")["tables"]
        if entry["group"] == "public, chinchilla" and entry["v"].get("0.1")
    ]
    policies = [name for name, errors in document[0].items() if isinstance(errors, dict) and errors]
    for entry in document:
        errors = [entry[policy]["0.1"] for policy in policies]
        marked = (f"**{error:.2%}**" if error <= entry["whole"] else f"{error:.2%}" for error in errors)
        rows.append(f"{entry['table']} | {entry['cells']} | {entry['whole']:.2%} | {' | '.join(marked)}")
    return table(f"table | candidates | all of them | {' | '.join(policies)}", rows)


def trunks() -> str:
    """FLOPs saved by shared trunks."""
    document = read_json("trunks")
    rows = []
    for r in document["rows"]:
        saved = " | ".join(f"{-share:.0%}" for share in r["saved"].values())
        rows.append(f"{r['ratio']} | {r['cooldown']:.0%} | {saved} | {-r['formula']:.1%}")
    counts = " | ".join(f"{n} horizons" for n in document["rows"][0]["saved"])
    demo = document["stdlib_cpu"]
    share = f"{-(1 - demo['shared'] / demo['alone']):.0%}"
    about = f"`stdlib_cpu`, {demo['runs']} runs: {demo['shared']:.3g} FLOPs for {demo['alone']:.3g}, {share}."
    return table(f"ratio of horizons | cooldown | {counts} | endless", rows) + "\n\n" + about


def population() -> str:
    """Alone / together, in time."""
    document = read_json("population_cpu")
    rows = [
        f"{r['matmul']:,} | {r['members']} | **{r['run_cpu']:.2f}** | {r['run_wall']:.2f} | {r['step_cpu']:.2f} | "
        f"{r['first_alone_cpu_s']:.1f} + {r['members'] - 1} x {r['next_alone_cpu_s']:.1f} s | "
        f"{r['together_cpu_s']:.1f} s"
        for r in document["rows"]
    ]
    about = (
        f"{document['date']}, one core of an {document['processor']}, jax {document['jax']}, "
        f"runs of {document['steps']} steps of "
        f"{document['batch']} x {document['sequence_length']} tokens:"
    )
    header = "parameters | members | runs, CPU time | runs, wall time | step | CPU time alone | CPU time together"
    return about + "\n\n" + table(header, rows)


def store() -> str:
    """By line / the store, in CPU time."""
    document = read_json("store")
    steps = document["steps"]
    plain = steps["rows"][0]["cpu"]
    rows = [
        f"{r['what']} | {1e3 * r['cpu']:,.0f} ms | " + (f"**{plain / r['cpu']:.1f}**" if "grouped" in r["what"] else "")
        for r in steps["rows"]
    ]
    sizes = steps["bytes"]
    about = (
        f"{document['date']}, an {document['processor']}, pandas {document['versions']['pandas']}, "
        f"pyarrow {document['versions']['pyarrow']}, {steps['runs']} runs of {steps['steps']:,} logged steps, "
        f"{sizes['jsonl'] / 1e6:.0f} MB of JSONL, {sizes['parquet'] / 1e6:.0f} MB of Parquet, median of "
        f"{steps['turns']} turns:"
    )
    costs = [
        f"{r['cells']:,} | {1e3 * r['first_cpu'] / r['cells']:.2f} ms | {1e3 * r['again_cpu'] / r['cells']:.2f} ms"
        for r in document["cells"]
    ]
    collected = table("simulated cells collected | CPU time a cell | with 1 % of them changed", costs)
    return "\n\n".join([about, table("300 runs | CPU time | by line / this", rows), collected])


def executors() -> str:
    """What a sweep adds to a run."""
    document = read_json("executors")["runs"]
    rows = []
    for r in document["rows"]:
        if why := r.get("not_run_here"):
            rows.append(f"{r['executor']} | not run here: {why} |  |  |  | ")
            continue
        rows.append(
            f"{r['executor']} | **{1e3 * r['between']:.0f} ms** | {r['between'] / r['by_hand']:.2%} of "
            f"{r['by_hand']:.1f} s | {r['to_first']:.1f} s | {r['to_end']:.1f} s | {r['cluster_up']:.0f} s"
        )
    tied = read_json("executors")["start"]
    about = (
        f"{document['date']}, {document['cores']} cores of an {document['processor']}, jax {document['jax']}, "
        f"{document['runs']} runs, {document['at_once']} at once, medians, "
        f"others at work on these cores (load {document['load_before']:.0f}):"
    )
    header = (
        "executor | from a run to the next | of a run by hand | command to first run | last result to its end | "
        "cluster up"
    )
    after = (
        f"A process tied to its runner and its core starts and ends in {1e3 * tied['tied']:.0f} ms, a plain one in "
        f"{1e3 * tied['plain']:.1f} ms, in turns."
    )
    return about + "\n\n" + table(header, rows) + "\n\n" + after


def executors_cells() -> str:
    """Milliseconds of CPU a cell."""
    document = read_json("executors")["cells"]
    sizes = document["stages"]
    stages = [name for name in next(iter(sizes.values())) if name != "seconds"]
    rows = [" | ".join([stage, *(f"{one[stage]:.2f}" for one in sizes.values())]) for stage in stages]
    once = [name for name in stages if not name.endswith("again")]
    rows.append(" | ".join(["all but again", *(f"**{sum(one[n] for n in once):.2f}**" for one in sizes.values())]))
    rows.append(" | ".join(["wall seconds of all", *(f"{one['seconds']:.0f}" for one in sizes.values())]))
    about = (
        f"{document['date']}, a core of an {document['processor']}, milliseconds of CPU a cell, load "
        f"{document['load_before']:.1f} before:"
    )
    header = " | ".join(["stage", *(f"{int(count):,} cells" for count in sizes)])
    return about + "\n\n" + table(header, rows)


TABLES = {
    "executors": executors,
    "executors_cells": executors_cells,
    "store": store,
    "trunks": trunks,
    "cpu": cpu,
    "population": population,
    "topologies": topologies,
    "precision": precision,
    "design": design,
    "design_public": design_public,
}


def fill_tables(text: str) -> str:
    """The text of the page with every table, between its two comments, made anew from the JSON files."""
    for name, make in TABLES.items():
        block = f"<!-- {name} -->\n{make()}\n<!-- end -->"
        text, count = re.subn(rf"<!-- {name} -->\n.*?<!-- end -->", lambda _, b=block: b, text, flags=re.DOTALL)
        assert count == 1, f"{count} places for the table {name}"
    return text


if __name__ == "__main__":
    page = HERE / "README.md"
    page.write_text(fill_tables(page.read_text()))
