"""Write the tables of benchmarks/speed/README.md from the numbers in benchmarks/speed/results/.

The small table of the top-level README.md is that of the files README_NUMBERS.

python -m benchmarks.speed.page
"""

import json
import re
import sys
from pathlib import Path

import numpy as np

from benchmarks.common import LOOKS, ROOT, algorithm_name, markdown_table, update_page
from benchmarks.speed.peers import PROJECTS, load_peers
from benchmarks.speed.rows import TASKS

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER / "README.md"
RESULTS = FOLDER / "results"
README = ROOT / "README.md"
README_NUMBERS = "xeon*.json"  # files of one machine
MEMORY = "memory.json"  # what `python -m benchmarks.speed.memory` measured


def milliseconds(row: dict, pick=np.median) -> float:
    """Return the time of one update of all agents of a row."""
    return 1_000 * float(pick(row["seconds"])) / row["updates"]


def own_table(rows: list[dict]) -> str:
    """Return a table of our configurations."""
    header = ["algorithm", "agents", "execution", "ms per update", "min to max", "updates/s"]
    header += ["agents' updates/s"]
    timed = any("evaluation" in row for row in rows)
    if timed:
        header.append("s per evaluation")
    lines = []
    for row in rows:
        middle = milliseconds(row)
        line = [
            algorithm_name(row["script"]),
            row["seeds"],
            row["execution"],
            f"{middle:.2f}",
            f"{milliseconds(row, min):.2f} to {milliseconds(row, max):.2f}",
            f"{1_000 / middle:.0f}",
            f"{1_000 * row['seeds'] / middle:.0f}",
        ]
        if timed:
            line.append(f"{row['evaluation']:.1f}" if "evaluation" in row else "-")
        lines.append(line)
    return markdown_table(header, lines)


def peer_table(rows: list[dict]) -> str:
    """Return a table of other people's code beside ours: milliseconds per update of one agent."""
    ours = [row for row in rows if row["code"] == "ours"]
    ways = list(dict.fromkeys((row["execution"], row["seeds"]) for row in ours))
    times = {(row["script"], row["execution"], row["seeds"]): milliseconds(row) for row in ours}
    header = ["algorithm", "their code", "ms"]
    for execution, seeds in ways:
        header.append(f"ours, {execution}" if seeds == 1 else f"ours, {execution}, {seeds} agents")
    lines = []
    for row in rows:
        if row["code"] == "ours":
            continue
        their = milliseconds(row)
        language = ", JAX" if row.get("jax") else ""
        code = f"{row['code']} @ {row['commit']}{language}"
        line = [algorithm_name(row["script"]), code, f"{their:.2f}"]
        for execution, seeds in ways:
            own = times[row["script"], execution, seeds] / seeds
            line.append(f"{own:.2f} ({their / own:.2f}×)")
        lines.append(line)
    return markdown_table(header, lines)


def tables(numbers: dict) -> str:
    """Return what one command measured: the command, the machine and the tables."""
    rows = numbers["rows"]
    shape = TASKS[numbers["task"]]
    jax = sorted({f"; JAX {row['jax']}" for row in rows if row.get("jax")})
    blocks = len(rows[0]["seconds"])
    seconds = np.median([np.median(row["seconds"]) for row in rows])
    ours = [row for row in rows if row["code"] == "ours"]
    products = " and ".join(sorted({row["precision"] for row in ours}))
    commit = re.sub(r"^([0-9a-f]{12})[0-9a-f]*", r"\1", numbers["commit"])  # "-dirty" stays
    about = (
        f"{numbers['machine']}{''.join(jax)}; {numbers['threads']} threads. Commit "
        f"{commit}, {numbers['date']}; load before the start {numbers['load']:.1f}."
        f" {numbers['task']}: {shape.obs_dim} observations, {shape.act_dim} actions. Median of "
        f"{blocks} blocks of about {seconds:.1f} s; matrix products of ours: {products}."
    )
    if numbers["phase"] != "train":
        about += f" Phase {numbers['phase']}."
    parts = [f"`{numbers['command']}`"]
    if len(ours) == len(rows):
        parts += [about, own_table(ours)]
    else:
        noise = max(max(row["seconds"]) / np.median(row["seconds"]) for row in rows)
        about += (
            f" The slowest block took {noise:.1f} times the median of its row. Milliseconds per "
            "update and agent; in brackets, how many times as fast ours are."
        )
        parts += [about, peer_table(rows)]
        compared = {row["script"] for row in rows if row["code"] != "ours"}
        alone = [row for row in ours if row["script"] not in compared]
        if alone:
            parts.append(own_table(alone))
    return "\n\n".join(parts)


def all_tables(folder: Path = RESULTS) -> str:
    """Return the tables of all files of numbers, those of the first casting last."""
    parts = ["<!-- Written by benchmarks/speed/page.py from results/*.json. -->"]
    for file in sorted(folder.glob("*.json")):
        if file.name == MEMORY:
            continue  # the README's table has it
        parts += [f"### {file.stem}", tables(json.loads(file.read_text()))]
    first = sorted(folder.glob("first-casting/*.json"))
    if first:
        parts.append("### First casting")
        parts.append(
            "These were measured with the scripts' first form, by commands that are in git's "
            "history, and stay until they are measured again."
        )
    for file in first:
        parts += [f"#### {file.stem}", tables(json.loads(file.read_text()))]
    return "\n\n".join(parts)


def fastest_updates(files: list[dict]) -> dict[str, float]:
    """Return script -> milliseconds per update of one agent, by the fastest kind of execution.

    Of a script that two files have, the last one counts.
    """
    times = {}
    for numbers in files:
        for row in numbers["rows"]:
            if row["code"] == "ours" and row["seeds"] == 1:
                times.setdefault(row["script"], {})[row["execution"]] = milliseconds(row)
    return {script: min(ways.values()) for script, ways in times.items()}


def readme_table(files: list[dict], memory: dict) -> str:
    """Return milliseconds per update of one agent, by algorithm and kind of execution.

    `files` are what several commands measured on one machine with as many threads; of a script that
    two of them have, the last one counts. `memory` is what benchmarks/speed/memory.py measured.
    """
    megabytes = {row["script"]: row["memory_mb"] for row in memory["rows"]}
    about = {(numbers["machine"], numbers["threads"]) for numbers in files}
    if len(about) > 1:
        sys.exit(f"{README_NUMBERS}: these files are not of one machine with one number of threads")
    rows = [row for numbers in files for row in numbers["rows"] if row["seeds"] == 1]
    ours = [row for row in rows if row["code"] == "ours"]
    times = {(row["script"], row["execution"]): milliseconds(row) for row in ours}
    options = {  # of the scripts, which stand behind -- in a command
        row["script"]: numbers["command"].partition(" -- ")[2]
        for numbers in files
        for row in numbers["rows"]
    }
    ways = list(dict.fromkeys(row["execution"] for row in ours))
    lines = []
    fastest = fastest_updates(files)
    for script in [name for name in LOOKS if name in fastest]:
        cells = [f"{times[script, way]:.1f}" if (script, way) in times else "-" for way in ways]
        minutes = f"{fastest[script] * 1_000_000 / 60_000:,.0f}"
        theirs = ", ".join(peer_cells(rows, script)) or "-"
        words = f" (`{options[script]}`)" if options[script] else ""
        space = f"{megabytes[script]:,}" if script in megabytes else "-"
        lines.append([f"{algorithm_name(script)}{words}", *cells, theirs, minutes, space])
    ((machine, threads),) = about
    text = (
        f"Milliseconds per update of one agent ({machine}; CPU threads: {threads}), written by "
        "`python -m benchmarks.speed.page`. Batches of 256 (DT: 64 contexts of 20 steps); the "
        "networks are each algorithm's own. Other people's code was timed in turn with ours, as it "
        "is; the page below says which. Memory: the most that a process takes which trains one "
        f"agent on {memory['transitions']:,} rows of {TASKS[memory['task']].obs_dim} observations, "
        "on a CPU, with the default options and without compiling (`python -m "
        "benchmarks.speed.memory`)."
    )
    header = ["algorithm", *(f"`{way}`" for way in ways), "other people's code"]
    header += ["minutes per million updates, ours", "memory, MB"]
    return f"{markdown_table(header, lines)}\n\n{text}"


def peer_cells(rows: list[dict], script: str) -> list[str]:
    """Return 'CORL 17.4' for each project in PyTorch that has this algorithm."""
    cells = []
    for row in rows:
        if row["code"] != "ours" and row["script"] == script and not row.get("jax"):
            project = row["code"].partition(":")[0].split("/")[-1]
            cells.append(f"{project} {milliseconds(row):.1f}")
    return cells


def readme_numbers() -> list[dict]:
    """Return what the files of the README's table hold."""
    return [json.loads(file.read_text()) for file in sorted(RESULTS.glob(README_NUMBERS))]


def memory_numbers() -> dict:
    """Return what was measured of memory."""
    return json.loads((RESULTS / MEMORY).read_text())


def peer_list() -> str:
    """Return what is timed of each peer, as a list."""
    lines = []
    for project in PROJECTS:
        for peer in load_peers(project):
            url = f"https://github.com/{peer.repository}/tree/{peer.commit}"
            lines.append(f"- [{peer.name}]({url}): {peer.timed}.")
    return "\n".join(lines)


def sections() -> dict[str, str]:
    """Return what stands between the page's marks, by their name."""
    return {"peers": peer_list(), "tables": all_tables()}


def main() -> None:
    for name, text in sections().items():
        changed = update_page(PAGE, f"<!-- {name}: begin -->", f"<!-- {name}: end -->", text)
        print(f"{PAGE}, {name}: {'written' if changed else 'as it was'}")
    table = readme_table(readme_numbers(), memory_numbers())
    changed = update_page(README, "<!-- speed:begin -->", "<!-- speed:end -->", table)
    print(f"{README}: {'written' if changed else 'as it was'}")


if __name__ == "__main__":
    main()
