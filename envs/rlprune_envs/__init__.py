"""Gymnasium environments over rlprune.task."""
