"""Write docs/performance.md and docs/performance.png from the benchmarks' JSON.

`python tests/benchmarks/report.py docs/performance.json`: every figure of the document comes from that file.
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
TIME_BARS = {"bf16": 0.50, "fp32": 0.70}
MEMORY_BAR, STRENGTH_BAR = 0.35, 0.98
STEP_BAR_MS, PEAK_BAR_GB, GRID_BAR_HOURS = 90, 24, 1.5
STEPS = {"fgsm": 1, "bim": 10, "pgd": 10, "cw": 6}
NETWORKS, COLUMNS, IMAGES, SMOOTHED_COLUMNS, DRAWS = 12, 9, 100, 7, 21


def ratio(case: Case, contestant: str, what: str = "seconds") -> float:
    """Median over the rounds of a contestant's time, over that of the plain implementation in the same round."""
    pairs = zip(case["times"][contestant], case["times"]["plain"], strict=True)
    return statistics.median(float(ours[what] / plain[what]) for ours, plain in pairs)


def loss_ratio(case: Case, contestant: str) -> float:
    """The objective that a contestant's attack reached, over what the plain one's did."""
    reached = case["strength"]
    return float(reached[contestant]["loss_attacked"] / reached["plain"]["loss_attacked"])


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
            if "strength" in case:
                reached = {c: case["strength"][c]["loss_attacked"] for c in ("plain", name)}
                row.append(f"{reached[name] / reached['plain']:.3f}")
            rows.append([*row, *[""] * (9 - len(row) - 1), f"{case['load']:.1f}"])
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
        "load",
    ]
    return table(head, [[*r[:-1], *[""] * (len(head) - len(r)), r[-1]] for r in rows])


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


def verdicts(cases: list[Case]) -> str:
    """The bar's lines, each with what was measured."""
    rows = []

    def line(what: str, value: float, bar: float, most: bool = True) -> None:
        met = value <= bar if most else value >= bar
        rows.append([what, f"{value:.3g}", f"{'at most' if most else 'at least'} {bar:g}", "met" if met else "missed"])

    for case in cases:
        job = case.get("job", {})
        if (job.get("network"), job.get("attack")) != ("rrdb-23", "pgd"):
            continue
        for name, bar in TIME_BARS.items():
            if case["kind"] == "speed":
                line(f"PGD-10, RRDB-23, {name}: time ratio", ratio(case, name), bar)
                line(f"PGD-10, RRDB-23, {name}: loss ratio", loss_ratio(case, name), STRENGTH_BAR, most=False)
            if case["kind"] == "memory":
                share = case["peak_bytes"][name] / case["peak_bytes"]["plain"]
                line(f"PGD, RRDB-23, {name}: peak memory ratio ({case['malloc']})", share, MEMORY_BAR)
        if case["kind"] == "whole image" and job["contestant"] == "bf16":
            line("whole image, PGD step, ms", 1e3 * case["step_seconds"], STEP_BAR_MS)
            line("whole image, peak GB", case["peak_bytes"] / 1e9, PEAK_BAR_GB)
            line("paper's grid, hours (extrapolated)", grid_hours(case), GRID_BAR_HOURS)
    for case in cases:
        if case["kind"] == "again":
            line("second identical run / first", case["second_seconds"] / case["first_seconds"], 0.05)
    return table(["bar", "measured", "wanted", ""], rows)


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


def plot(cases: list[Case], file: Path) -> None:
    """Time ratios, and seconds against images, LR side and draws."""
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.4), layout="constrained")
    bars = [c for c in cases if c["kind"] == "speed"]
    for k, name in enumerate(("fp32", "bf16")):
        own = [(i, ratio(c, name)) for i, c in enumerate(bars) if name in c["times"]]
        axes[0].barh([i + 0.4 * k for i, _ in own], [r for _, r in own], height=0.38, label=name)
    axes[0].set_yticks([i + 0.2 for i in range(len(bars))])
    axes[0].set_yticklabels([f"{c['job']['network']} {c['job']['attack']}" for c in bars], fontsize=8)
    axes[0].axvline(1, color="0.5", lw=0.8)
    axes[0].set_xlabel("time / plain implementation")
    for axis, (field, title) in zip(
        axes[1:], (("images", "images"), ("height", "LR side, pixels"), ("draws", "draws")), strict=True
    ):
        own_cases = sorted(
            (c for c in cases if c["kind"] == "growth" and varies(c, field)), key=lambda c: c["job"][field]
        )
        for name in ("plain", "fp32", "bf16"):
            points = [
                (c["job"][field], statistics.median(t["seconds"] for t in c["times"][name]))
                for c in own_cases
                if name in c["times"]
            ]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel=title, ylabel="seconds")
    for axis in axes[:2]:
        axis.legend(fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def varies(case: Case, field: str) -> bool:
    return {"images": "images", "height": "side", "draws": "draws"}[field] in case["name"]


def document(machines: list[Case], plot_name: str) -> str:
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
                "verdicts": verdicts(cases),
            }
        )
    template = Path(__file__).with_name("performance.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, autoescape=False)
    grid = (
        f"{NETWORKS} networks x {COLUMNS} columns x {IMAGES} images, {DRAWS} draws in {SMOOTHED_COLUMNS} columns of one"
    )
    return environment.from_string(template).render(sections=sections, plot=plot_name, grid=grid).rstrip() + "\n"


def main(files: list[str]) -> None:
    machines = []
    for file in files:
        data = json.loads(Path(file).read_text(encoding="utf-8"))
        cases = [{"name": b["name"], **b["extra_info"]} for b in data["benchmarks"]]
        machines.append({"machine_info": data["machine_info"], "cases": cases})
    target = Path(files[0]).with_suffix(".md")
    plot(machines[0]["cases"], target.with_suffix(".png"))
    target.write_text(document(machines, target.with_suffix(".png").name), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
