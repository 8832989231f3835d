"""Bundles: trained networks with everything that is needed to run and to judge them elsewhere."""
