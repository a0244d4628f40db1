"""The verbs of `gristmill`, a file for each kind of work; `add_to(app)` registers a file's verbs."""
