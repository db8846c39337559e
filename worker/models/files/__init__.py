"""The files of base models: found or downloaded, described, read with errors that name them, checked."""
