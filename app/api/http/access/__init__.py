"""Who may request what: the key of a request, the scope of each route, and the limits of keys."""
