"""Trains a network from packed images: batches, optimiser steps, processes."""
