"""Checks of what a model wrote: form, answers, mathematics, programs. Import the rooms directly."""
