"""What grows for ever, how large it is, and its deletion by hand and by age."""
