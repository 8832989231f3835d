"""What the symptoms of a finished training say in sentences."""

from tasks.comparison.document import Dead, Diverged, Symptom


def symptom_words(symptom: Symptom) -> str:
    return _dead(symptom) if isinstance(symptom, Dead) else _diverged(symptom)


def _dead(s: Dead) -> str:
    epochs, pixels, kept = f"{s.first_epoch} to {s.last_epoch}", _pixels(s), s.kept_epoch
    if s.spoils:
        others = f", as epochs {epochs} do" if s.last_epoch > s.first_epoch else ""
        said = f"The epoch kept, {kept}, marks {pixels}{others}: such figures say nothing of network or loss"
    elif s.ended:
        said = f"Epochs {epochs} mark {pixels}; later ones do not"
    else:
        said = f"Epochs {epochs}, the last, mark {pixels}; the epoch kept, {kept}, is from before"
    way = "more steps (epochs, a smaller batch_size), another" if s.throughout else "a lower"
    return f"{said}. What may help: {way} learning_rate, another loss."


def _pixels(s: Dead) -> str:
    """For instance "no Val pixel as infection"."""
    names = (" or " if s.marks == "no" else " and ").join(s.targets)
    return f"{s.marks} Val pixel{' as ' if names else ''}{names}"


def _diverged(s: Diverged) -> str:
    end = "; later it recovered" if s.ended else ", the last"
    return (
        f"The train loss diverged: it was {s.lowest_loss:.4g} in epoch {s.lowest_loss_epoch} and up to "
        f"{s.highest_loss:.4g} in epochs {s.first_epoch} to {s.last_epoch}{end}. "
        "What may help: a lower learning_rate."
    )
