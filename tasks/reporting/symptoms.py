"""The symptoms of a finished training as sentences."""

from tasks.support.symptoms import DeadEpochs, DivergedEpochs, pixel_words


def symptom_words(symptom: DeadEpochs | DivergedEpochs) -> str:
    return _dead(symptom) if isinstance(symptom, DeadEpochs) else _diverged(symptom)


def _dead(s: DeadEpochs) -> str:
    epochs, pixels, kept = f"{s.first_epoch} to {s.last_epoch}", pixel_words(s.marks, s.targets), s.kept_epoch
    if s.spoils:
        several = f"Epochs {epochs}, including the kept epoch {kept}, mark"
        which = several if s.last_epoch > s.first_epoch else f"The kept epoch, {kept}, marks"
        sentence = f"{which} {pixels}, so the scores say nothing about the network or the loss"
    elif s.ended:
        sentence = f"Epochs {epochs} mark {pixels}; training then recovered"
    else:
        sentence = f"Epochs {epochs} (the last) mark {pixels}; the kept epoch, {kept}, is an earlier one"
    change = "more steps (more epochs, a smaller batch_size), another" if s.throughout else "a lower"
    return f"{sentence}. Try {change} learning_rate or another loss."


def _diverged(s: DivergedEpochs) -> str:
    end = "; training then recovered" if s.ended else ", and did not recover"
    return (
        f"The training loss diverged: it was {s.lowest_loss:.4g} in epoch {s.lowest_loss_epoch}, then up to "
        f"{s.highest_loss:.4g} in epochs {s.first_epoch} to {s.last_epoch}{end}. Try a lower learning_rate."
    )
