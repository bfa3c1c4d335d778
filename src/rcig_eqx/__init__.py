"""Dataset distillation with convexified implicit gradients, in Equinox."""
