"""Speed of a training step: each phase's time beside what the devices could do at best."""
