"""Losses and evaluations of tasks."""
