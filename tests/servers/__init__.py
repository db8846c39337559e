"""HTTP servers that stand in for others: the Hub, the receiver of a webhook."""
