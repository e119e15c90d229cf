"""Texts that recur: duplicates within train, and prompts of one file that are in another."""
