"""Bad input: every reader, a corpus of nasty cases for each, and a tool that makes more of them."""
