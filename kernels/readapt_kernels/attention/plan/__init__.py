"""Who computes what: made once a step on the device, read by the kernel of every layer."""
