"""The folder of a finished adapter, its model card, and its verification."""
