"""Synthetic data: tasks with worked solutions, engines that write, verifiers that check. Import the rooms directly."""
