"""The dashboard: pages for the browser, in `static/`. They use the API over HTTP only."""
