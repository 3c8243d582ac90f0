"""The Agents: loss weights by PID, learning rate by Q-learning."""
