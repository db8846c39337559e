"""Downloads base models of the Hub in a child process, searches the Hub, and deletes from its cache."""
