"""The arrays of data/packed and data/lungs: how they are written, and how networks read them."""
