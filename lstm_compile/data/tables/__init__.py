"""Readers of long tables and of files of sequences."""
