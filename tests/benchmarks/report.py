"""Write docs/performance.md and docs/performance.png from the benchmarks' JSON.

`python tests/benchmarks/report.py docs/performance.json`: every figure of the document comes from that file, and from
readme-command.json beside it, which `readme_command.py` writes by hand.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import jinja2
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

Case = dict[str, Any]

TITLES = {"fgsm": "FGSM", "pgd": "PGD", "cw": "CW", "mrs": "MRS", "metrics": "PSNR, SSIM, LPIPS"}
TIME_BARS = {"bf16": 0.50, "fp32": 0.60}
MEMORY_BAR, STRENGTH_BAR, DRAWS_BAR, README_BAR = 0.35, 0.98, 0.65, 0.5
AGAIN_BAR, WORKERS_BAR = 0.05, 1.9
COMMAND_BARS = {"report": 5, "site": 5, "run, all known": 4, "list": 1}
STEP_BAR_MS, PEAK_BAR_GB, GRID_BAR_HOURS = 90, 24, 1.5
STEPS = {"fgsm": 1, "bim": 10, "pgd": 10, "cw": 6}
NETWORKS, COLUMNS, IMAGES, SMOOTHED_COLUMNS, DRAWS = 12, 9, 100, 7, 21


def ratio(case: Case, contestant: str, what: str = "seconds", to: str = "plain") -> float:
    """Median over the rounds of a contestant's time, over that of the plain implementation in the same round."""
    pairs = zip(case["times"][contestant], case["times"][to], strict=True)
    return statistics.median(float(ours[what] / other[what]) for ours, other in pairs)


def loss_ratio(case: Case, contestant: str) -> float:
    """The objective that a contestant's attack reached, over what the plain one's did."""
    reached = case["strength"]
    return float(reached[contestant]["loss_attacked"] / reached["plain"]["loss_attacked"])


def of_product(case: Case, contestant: str) -> float:
    """Arithmetic a second of what computes in float32 as benchsr does, over that of a matrix product."""
    return float(
        case["flop"] / statistics.median(t["seconds"] for t in case["times"][contestant]) / case["flop_per_second"]
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def title(job: Case) -> str:
    return TITLES[job["attack"]] + (f", {job['steps']} steps" if job["steps"] else "")


def side(job: Case) -> str:
    what = {"images": job["images"], "draws": job["draws"] if job["attack"] == "mrs" else 1}
    return f"{job['width']}x{job['height']}" + "".join(f", {n} {name}" for name, n in what.items() if n > 1)


def speed(cases: list[Case]) -> str:
    rows = []
    for case in cases:
        job = case["job"]
        for name in [c for c in case["times"] if c != "plain"]:
            row = [job["network"], title(job), side(job), name]
            row += [f"{statistics.median(t['seconds'] for t in case['times'][c]):.3g} s" for c in ("plain", name)]
            row += [f"{ratio(case, name):.2f}", f"{ratio(case, name, 'cpu_seconds'):.2f}"]
            row.append(f"{loss_ratio(case, name):.3f}" if "strength" in case else "")
            row.append(f"{of_product(case, name):.0%}" if name != "bf16" and "flop" in case else "")
            rows.append([*row, f"{case['load']:.1f}"])
    head = [
        "network",
        "task",
        "LR",
        "benchsr in",
        "plain",
        "benchsr",
        "time ratio",
        "CPU time ratio",
        "loss ratio",
        "of product",
        "load",
    ]
    return table(head, rows)


def memory(cases: list[Case]) -> str:
    rows = []
    for case in cases:
        job, peak = case["job"], case["peak_bytes"]
        for name in [c for c in peak if c != "plain"]:
            kept = case.get("kept_bytes", {}).get(name)
            row = [job["network"], title(job), side(job), name, case["malloc"]]
            row += [f"{peak[c] / 1e6:.0f} MB" for c in ("plain", name)]
            rows.append([*row, f"{peak[name] / peak['plain']:.2f}", f"{peak[name] / kept:.2f}" if kept else ""])
    head = ["network", "task", "LR", "benchsr in", "memory", "plain", "benchsr", "ratio", "peak / bytes kept"]
    return table(head, rows)


def verdicts(cases: list[Case], readme: Case | None) -> str:
    """The bar's lines, each with what was measured."""
    rows = []

    def line(what: str, value: float, bar: float, most: bool = True) -> None:
        met = value <= bar if most else value >= bar
        rows.append([what, f"{value:.3g}", f"{'at most' if most else 'at least'} {bar:g}", "met" if met else "missed"])

    for case in cases:
        job = case.get("job", {})
        if job.get("network") != "rrdb-23":
            continue
        if case["kind"] == "speed" and job["attack"] == "mrs":
            share = ratio(case, "fp32", to="one by one")
            line(
                f"MRS-{job['draws']}, RRDB-23, LR {job['width']}x{job['height']}: time over that of single passes",
                share,
                DRAWS_BAR,
            )
        if job["attack"] != "pgd":
            continue
        for name, bar in TIME_BARS.items():
            if case["kind"] == "speed" and name in case["times"]:
                line(f"PGD-10, RRDB-23, {name}: time ratio", ratio(case, name), bar)
                line(f"PGD-10, RRDB-23, {name}: loss ratio", loss_ratio(case, name), STRENGTH_BAR, most=False)
            if case["kind"] == "memory" and name in case["peak_bytes"]:
                share = case["peak_bytes"][name] / case["peak_bytes"]["plain"]
                line(f"PGD, RRDB-23, {name}: peak memory ratio ({case['malloc']})", share, MEMORY_BAR)
        if case["kind"] == "whole image" and job["contestant"] == "bf16":
            line("whole image, PGD step, ms", 1e3 * case["step_seconds"], STEP_BAR_MS)
            line("whole image, peak GB", case["peak_bytes"] / 1e9, PEAK_BAR_GB)
            line("paper's grid, hours (extrapolated)", grid_hours(case), GRID_BAR_HOURS)
    for case in cases:
        if case["kind"] == "again":
            line("second identical run / first", case["second_seconds"] / case["first_seconds"], AGAIN_BAR)
        if case["kind"] == "workers":
            one, two = (case["workers"][n]["seconds"] for n in ("1", "2"))
            line(f"{case['cells']:,} cells of mixed cost: two workers' speed over one's", one / two, WORKERS_BAR, False)
        if case["kind"] == "commands":
            for name, bar in COMMAND_BARS.items():
                line(
                    f"`benchsr {name.split(',')[0]}`{''.join(name.partition(',')[1:])}, s",
                    min(case["seconds"][name]),
                    bar,
                )
    if readme:
        line("README's command: today's code / the first round's", readme_ratio(readme), README_BAR)
    return table(["bar", "measured", "wanted", ""], rows)


def readme_ratio(readme: Case) -> float:
    """Median over the rounds of the seconds of today's code over those of the old one."""
    return statistics.median(
        float(new / old) for old, new in zip(readme["seconds"]["old"], readme["seconds"]["new"], strict=True)
    )


def whole_runs(cases: list[Case]) -> str:
    """What whole commands, the runner and the scheduler take."""
    rows = []
    for case in cases:
        load = f"{case.get('load', 0):.1f}"
        if case["kind"] == "commands":
            for name, seconds in case["seconds"].items():
                rows.append(
                    [f"`benchsr {name.split(',')[0]}`{''.join(name.partition(',')[1:])}, best of {len(seconds)}"]
                )
                rows[-1] += [f"{min(seconds):.2f} s", load]
        if case["kind"] == "again":
            for which in ("first", "second"):
                rows.append([f"the {which} of two identical runs", f"{case[f'{which}_seconds']:.2f} s", load])
        if case["kind"] == "runner":
            cost = f"{1e3 * case['cpu_seconds_an_evaluation']:.2f} ms"
            rows.append(["the runner's own work for each of 10,000 evaluations, CPU time", cost, load])
        if case["kind"] == "workers":
            for workers, taken in case["workers"].items():
                what = f"{case['cells']:,} cells, worker processes: {workers} (ready after {taken['start']:.1f} s)"
                rows.append([what, f"{taken['seconds']:.1f} s", load])
    return table(["what", "time", "load"], rows) if rows else ""


def readme_table(readme: Case) -> str:
    """Seconds of the rounds, and in how many figures old and new code agree."""
    rounds = zip(readme["seconds"]["old"], readme["seconds"]["new"], strict=True)
    rows = [
        [str(number), str(readme["photographs"]), f"{old:.0f} s", f"{new:.0f} s", f"{new / old:.2f}"]
        for number, (old, new) in enumerate(rounds, 1)
    ]
    return table(["round", "photographs", readme["old_commit"] or "old", readme["new_commit"] or "new", "ratio"], rows)


def grid_hours(case: Case) -> float:
    """The paper's grid from one step and one forward pass: attacks, their last look, scoring and smoothing."""
    steps = sum(STEPS.values()) * case["step_seconds"] + len(STEPS) * case["forward_seconds"]
    forwards = NETWORKS * COLUMNS + SMOOTHED_COLUMNS * (DRAWS - 1)
    return float(IMAGES * (NETWORKS * steps + forwards * case["forward_seconds"]) / 3600)


def whole(cases: list[Case]) -> str:
    rows = []
    for case in cases:
        job, top = case["job"], case["ceilings"]
        fraction = case["step_flop"] / case["step_seconds"] / top["flop_per_second"]
        row = [job["contestant"], f"{1e3 * case['step_seconds']:.0f} ms", f"{1e3 * case['forward_seconds']:.0f} ms"]
        row += [f"{case['peak_bytes'] / 1e9:.1f} GB", f"{case['step_flop'] / 1e12:.1f}", f"{fraction:.0%}"]
        row += [f"{top['flop_per_second'] / 1e12:.0f} TFLOP/s", f"{top['bytes_per_second'] / 1e12:.2f} TB/s"]
        rows.append([*row, f"{grid_hours(case):.2f} h"])
    head = ["benchsr in", "PGD step", "forward", "peak", "TFLOP a step", "of ceiling", "bf16 product", "copy"]
    return table([*head, "grid, extrapolated"], rows)


GROWN = {"images": ("images", "images"), "side": ("height", "LR side, pixels"), "draws": ("draws", "draws")}
"""What grows, as cases are named: the field of the job that it is, and the axis."""


def plot(cases: list[Case], file: Path) -> None:
    """Time ratios, and seconds against images, LR side and draws."""
    grown = {
        what: sorted(found, key=lambda case: case["job"][GROWN[what][0]])
        for what in GROWN
        if (found := [case for case in cases if case["kind"] == "growth" and what in case["name"]])
    }
    count = 1 + len(grown)
    figure, grid = plt.subplots(1, count, figsize=(3.5 * count, 3.4), layout="constrained", squeeze=False)
    ratios, *axes = grid[0]
    bars = [c for c in cases if c["kind"] == "speed"]
    for k, name in enumerate(("fp32", "bf16")):
        own = [(i, ratio(c, name)) for i, c in enumerate(bars) if name in c["times"]]
        ratios.barh([i + 0.4 * k for i, _ in own], [r for _, r in own], height=0.38, label=name)
    ratios.set_yticks([i + 0.2 for i in range(len(bars))])
    ratios.set_yticklabels([f"{c['job']['network']} {c['job']['attack']}" for c in bars], fontsize=8)
    ratios.axvline(1, color="0.5", lw=0.8)
    ratios.set_xlabel("time / plain implementation")
    ratios.legend(fontsize=8)
    for axis, (what, own_cases) in zip(axes, grown.items(), strict=True):
        field, label = GROWN[what]
        for name in own_cases[0]["times"]:
            points = [(c["job"][field], statistics.median(t["seconds"] for t in c["times"][name])) for c in own_cases]
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel="seconds")
        sizes = [case["job"][field] for case in own_cases]
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_xticks([], minor=True)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.legend(fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)


WHOLE_RUNS = ("commands", "again", "runner", "workers")


def document(machines: list[Case], plot_name: str, readme: Case | None) -> str:
    sections = []
    for machine in machines:
        cases = machine["cases"]
        sections.append(
            {
                **machine["machine_info"],
                "weights": sorted({f"{c['job']['network']}: {c['weights']}" for c in cases if "weights" in c}),
                "trunks": sorted({c["trunk"] for c in cases if "trunk" in c}),
                "tables": {
                    kind: make([c for c in cases if c["kind"] == kind])
                    for kind, make in {"speed": speed, "memory": memory, "growth": speed, "whole image": whole}.items()
                    if any(c["kind"] == kind for c in cases)
                },
                "whole_runs": whole_runs(sorted(cases, key=lambda c: (*WHOLE_RUNS, c["kind"]).index(c["kind"]))),
                # By hand, and on one machine, which need not be the one that the rest was measured on.
                "verdicts": verdicts(cases, readme if machine is machines[0] else None),
            }
        )
    template = Path(__file__).with_name("performance.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, autoescape=False)
    grid = (
        f"{NETWORKS} networks x {COLUMNS} columns x {IMAGES} images, {DRAWS} draws in {SMOOTHED_COLUMNS} columns of one"
    )
    return (
        environment.from_string(template)
        .render(
            sections=sections,
            plot=plot_name,
            grid=grid,
            readme=readme and {**readme, "table": readme_table(readme)},
        )
        .rstrip()
        + "\n"
    )


def main(files: list[str]) -> None:
    machines = []
    for file in files:
        data = json.loads(Path(file).read_text(encoding="utf-8"))
        cases = [{"name": b["name"], **b["extra_info"]} for b in data["benchmarks"]]
        machines.append({"machine_info": data["machine_info"], "cases": cases})
    target = Path(files[0]).with_suffix(".md")
    plot(machines[0]["cases"], target.with_suffix(".png"))
    by_hand = target.with_name("readme-command.json")
    readme = json.loads(by_hand.read_text(encoding="utf-8")) if by_hand.exists() else None
    target.write_text(document(machines, target.with_suffix(".png").name, readme), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
