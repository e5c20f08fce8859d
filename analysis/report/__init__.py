"""The report of a fitted sweep: one self-contained HTML page, with figures and a checklist."""
