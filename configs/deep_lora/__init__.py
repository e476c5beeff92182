"""Configs of Deep LoRA."""
