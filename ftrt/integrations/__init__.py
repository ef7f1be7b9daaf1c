"""Bridges to the libraries ftrt builds on; each is the only importer of its library."""
