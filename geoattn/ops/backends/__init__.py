"""Where the operators run. `reference` is plain torch and defines the truth."""
