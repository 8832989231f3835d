"""Git and DVC operations: commands, run checkouts, and refs at origin."""
