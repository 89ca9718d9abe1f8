"""rerg: the reproducible benchmark of learned regularizing gradients for image restoration."""
