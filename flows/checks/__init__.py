"""Checks of this machine for `cxr doctor` and the start of a run, in a module for each group."""
