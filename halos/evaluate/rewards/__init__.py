"""Rewards: how reward models, and policies by their implicit rewards, rank the responses of a preference set."""
