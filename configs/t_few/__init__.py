"""Configs of T-Few."""
