"""The dashboard: pages that a browser runs, out of static/. They know the API over HTTP only."""
