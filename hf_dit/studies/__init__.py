"""What changes with guidance, steps, scheduler and attention: samples side by side, times, memory."""
