"""What pages of other origins may do: the guard of every request, and CORS for the allowed ones."""
