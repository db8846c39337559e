"""Aliases: names that stay while the model behind them changes, and which of several models serves."""
