"""/v1/responses: answers as lists of typed items, stored so that a later request can continue them."""
