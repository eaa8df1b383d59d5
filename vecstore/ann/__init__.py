"""Approximate nearest neighbours: rotation, k-means, codes, lists and calibration."""
