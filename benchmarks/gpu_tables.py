"""The results of benchmarks/gpu.py as Markdown."""

from typing import Any

from output import MIB, percent, spread_of

Entry = dict[str, Any]

#: Scores of an experiment without results.
NONE = {"": {"": {}}}


def table(parts: dict[str, Entry]) -> str:
    """Return all results as Markdown."""
    keys = ("status", "seconds", "device", "data", "reason")
    rows = [[name, *(of.get(key, "") for key in keys)] for name, of in parts.items()]
    texts = [markdown(["part", *keys], rows)]
    writers = {"smoke": smoke_table, "throughput": throughput_table, "inference": inference_table}
    for name, write in writers.items():
        if name in parts and "device" in parts[name]:
            texts.append(f"## {name}\n\n{write(parts[name])}")
    if scored := {name: of for name, of in parts.items() if "epochs" in of}:
        texts.append(f"## Experiments, scores on Test\n\n{scores_table(scored)}")
    return "\n\n".join(texts)


def markdown(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


def smoke_table(entry: Entry) -> str:
    names = ("network", "training_seconds", "killed", "resumed_same_bytes", "evaluated_same_bytes")
    return markdown(["what", "is"], [[name, entry.get(name, "")] for name in names])


def throughput_table(entry: Entry) -> str:
    rows = []
    for row in entry.get("rows", []):
        setting = [row["precision"], row["layout"], row["compile"], row["batch"]]
        rows.append([*setting, *([row["failed"], *[""] * 5] if "failed" in row else speeds_of(row))])
    head = ["precision", "layout", "compile", "batch", "images/s", "waits", "MiB", "TFLOP/s"]
    return networks_of(entry) + markdown([*head, "matrix rate", "MFU"], rows)


def speeds_of(row: Entry) -> list[str]:
    rate = f"{row['matrix_rate'] / 1e12:.3f} TFLOP/s in {row['number_format']}"
    memory, flops = f"{row['memory'] / MIB:.0f}", f"{row['flops'] / 1e12:.3f}"
    return [
        spread_of(row["images_per_second"]),
        percent(row["wait"]),
        memory,
        flops,
        rate,
        percent(row["mfu"]),
    ]


def inference_table(entry: Entry) -> str:
    rows = []
    for row in entry.get("rows", []):
        iou = "" if row["iou"] is None else f"{row['iou']:.4f}"
        speeds, memory = spread_of(row["images_per_second"]), f"{row['memory'] / MIB:.0f}"
        rows.append([row["name"], speeds, row["number_format"], percent(row["mfu"]), memory, iou])
    return networks_of(entry) + markdown(["", "images/s", "format", "of its matrix rate", "MiB", "IoU"], rows)


def networks_of(entry: Entry) -> str:
    lines = {
        f"{row['network']}: {row['parameters']:,} parameters, {row['forward'] / 2e6:,.1f} million "
        f"multiply-adds per image forward, {row['step'] / 2e6:,.1f} with backward.\n"
        for row in entry.get("rows", [])
        if "network" in row
    }
    return "".join(sorted(lines)) + "\n"


def scores_table(parts: dict[str, Entry]) -> str:
    head = ["experiment", "network", "epochs", "s/epoch", "best", "target", "images", "IoU", "Dice"]
    rows = []
    for name, of in parts.items():
        epochs = f"{of['epochs']} of {of['of_epochs']}"
        facts = [name, of["network"], epochs, of.get("epoch_seconds", ""), of.get("best_epoch", "")]
        for target, sets in of.get("scores", NONE).items():
            for images, score in sets.items():
                rows.append([*facts, target, images, score.get("iou", ""), score.get("dice", "")])
    return markdown(head, rows)
