"""A network on disk, and the device that it runs on."""
