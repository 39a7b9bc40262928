"""Version 2 of `tldr_mini`: readers disagree about styles that a writer can choose between."""
