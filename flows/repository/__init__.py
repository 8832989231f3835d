"""Git and DVC: commands, checkouts of runs, refs at origin."""
