"""The networks in use: versions and the stage `champion`, as git tags that GTO reads too."""
