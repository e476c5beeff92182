"""Mixtures of experts: routers, dispatch, grouped matrix products, the feed-forward block."""
