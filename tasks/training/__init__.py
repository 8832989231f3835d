"""From images to a network: batches, steps, processes."""
