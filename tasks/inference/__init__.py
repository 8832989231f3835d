"""From images to probabilities to masks."""
