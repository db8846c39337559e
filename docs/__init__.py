"""Scripts that make parts of these pages: settings, the table of needs, screenshots."""
