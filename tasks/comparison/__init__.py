"""What the report says, computed once: scores with intervals, differences, findings, the images shown."""
