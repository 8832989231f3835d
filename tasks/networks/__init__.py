"""Saves and loads networks, and sets up the device that they run on."""
