"""Floor 5: precision policy, optimizer, schedules, losses, checkpoints and the training loops. Import the submodule you need."""
