"""The evaluating child: chooses rows, asks the engine, grades. Knows no torch."""
