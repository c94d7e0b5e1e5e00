"""What a learned policy sees, does and is rewarded for."""
