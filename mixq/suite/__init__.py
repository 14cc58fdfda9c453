"""The prompt suite: hand tests of a chat model, each with an automatic check."""
